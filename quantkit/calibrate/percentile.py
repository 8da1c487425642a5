"""The magnitude that a given share of values stays within."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import numpy as np

from quantkit.calibrate.base import ALL_ZERO, Threshold, check_fraction, check_histogram, threshold
from quantkit.collect.histogram import Histogram


@dataclass(frozen=True)
class PercentileCalibrator:
    """At least `percentile` per cent of all values lie within the threshold.

    Counts are compared as integers, so rounding never moves the bin. The threshold is that bin's upper edge, at most
    max|x|. TensorRT's Legacy calibrator does nearly the same with floating-point sums; use that to match it.

    Args:
        percentile: in per cent, 0 to 100; default 99.99. 100 gives max|x|.

    Raises:
        InputError: percentile is no number from 0 to 100.
    """

    percentile: float = 99.99
    name: ClassVar[str] = "percentile"
    trt_algorithm: ClassVar[str | None] = None

    def __post_init__(self) -> None:
        check_fraction("percentile", "percentile", self.percentile, 0.0, 100.0)

    def compute(self, h: Histogram, *, curve: bool = False) -> Threshold:
        """Upper edge of the first bin that reaches the percentile; `curve` changes nothing.

        Raises:
            CalibrationError: the histogram holds NaN, Inf or nothing at all.
        """
        check_histogram(h)
        if h.amax == 0:
            return threshold(0.0, self.name, ALL_ZERO)
        if float(self.percentile) == 100.0:
            return threshold(h.amax, self.name)
        # str() keeps the decimal the user wrote: 99.99 means 9999 of 10000, not the nearest double.
        needed = math.ceil(Fraction(str(float(self.percentile))) * h.total / 100)
        last = int(np.searchsorted(np.cumsum(h.counts), max(needed, 1)))
        return threshold(min((last + 1) * h.bin_width, h.amax), self.name)

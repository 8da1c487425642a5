"""TensorRT's Legacy calibrator: a quantile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from quantkit.calibrate.base import Threshold, check_fraction, check_histogram, threshold
from quantkit.collect.histogram import NUM_BINS, Histogram


@dataclass(frozen=True)
class LegacyCalibrator:
    """The upper edge of the bin where the running sum of shares first exceeds the quantile.

    Args:
        quantile: share of values to keep, 0 to 1; default 0.9999.
        regression_cutoff: 0 to 1; default 1.0, which means no regression.

    Raises:
        InputError: a parameter is no number from 0 to 1.
    """

    quantile: float = 0.9999
    regression_cutoff: float = 1.0
    name: ClassVar[str] = "legacy"
    trt_algorithm: ClassVar[str | None] = "LegacyCalibration"

    def __post_init__(self) -> None:
        check_fraction("legacy", "quantile", self.quantile, 0.0, 1.0)
        check_fraction("legacy", "regression_cutoff", self.regression_cutoff, 0.0, 1.0)

    def compute(self, h: Histogram, *, curve: bool = False) -> Threshold:
        """The threshold for one histogram; there is no search, so `curve` changes nothing.

        Raises:
            CalibrationError: the histogram holds NaN, Inf or nothing at all.
        """
        check_histogram(h)
        if h.amax == 0:
            return threshold(0.0, self.name)
        return threshold(quantile_threshold(h, self.quantile), self.name, "quantile")


def quantile_threshold(h: Histogram, quantile: float) -> float:
    """Upper edge (float64) of the first bin at which the running sum of count / total exceeds `quantile`, else R.

    The shares and their sum are float64, added from bin 0 up, and the comparison is strict. With quantile 1 the sum's
    rounding decides between the bin of the largest value and the whole range R, in TensorRT as here.
    """
    running = np.cumsum(h.counts / float(h.total))
    beyond = np.flatnonzero(running > quantile)
    last = int(beyond[0]) if beyond.size else NUM_BINS - 1
    return (last + 1) * h.bin_width

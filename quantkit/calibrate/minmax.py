"""The largest magnitude: no value is clipped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from quantkit.calibrate.base import ALL_ZERO, Threshold, check_histogram, threshold
from quantkit.collect.histogram import Histogram


@dataclass(frozen=True)
class MinMaxCalibrator:
    """amax = max|x|; no parameters. Equals TensorRT 8.6's IInt8MinMaxCalibrator bit for bit."""

    name: ClassVar[str] = "minmax"
    trt_algorithm: ClassVar[str | None] = "MinMaxCalibration"

    def compute(self, h: Histogram, *, curve: bool = False) -> Threshold:
        """max|x| of `h`; there is no search, so `curve` changes nothing.

        Raises:
            CalibrationError: the histogram holds NaN, Inf or nothing at all.
        """
        check_histogram(h)
        return threshold(h.amax, self.name, "" if h.amax else ALL_ZERO)

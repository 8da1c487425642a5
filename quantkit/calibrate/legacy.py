"""TensorRT's Legacy calibrator: a straight line through the logarithms of the counts, or else a quantile.

Source: worked out from recordings of TensorRT 8.6.0 (docs/tensorrt-calibrators.md says how, and what is not known).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from quantkit.calibrate.base import ALL_ZERO, Threshold, check_fraction, check_histogram, threshold
from quantkit.collect.histogram import NUM_BINS, Histogram

LOG_BASE = np.float32(0.694)
"""What TensorRT subtracts from ln(count + 1): a little more than ln 2, so that counts 0 and 1 are never above 0."""
LONGEST = 2.0
"""A regression estimate of this many times the largest value, or more, is not believed."""
LOGF_ODD = np.array(
    [1579, 3100, 4935, 12014, 18627, 47539, 56198, 58259, 62326, 64341, 70211, 70941, 72376, 74601, 76152, 86450, 86630,
     87173, 96621, 98939, 103900, 111378, 127729, 129372, 132635, 133744, 142136, 142224, 144029, 148790, 157535,
     158018, 159237, 167049, 172955, 174595, 181685, 183958, 184966, 191241, 198278, 200935, 206618, 206883, 232263,
     232460], np.int64
)  # fmt: skip
"""All integers up to 2^18 whose logf in glibc is the float32 on the other side of a near tie (measured, glibc 2.36)."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LegacyCalibrator:
    """Where a line through the log counts reaches 0; where there is no such line, a quantile of the magnitudes.

    Equals TensorRT 8.6's IInt8LegacyCalibrator on the same histogram. With the cutoff at 1 there is never a line, and
    the calibrator is a quantile; with a lower cutoff the quantile matters only where the line is not believed.

    Args:
        quantile: share of values to keep, 0 to 1; default 0.9999.
        regression_cutoff: bins with at least this fraction of the highest log count take part in the line, 0 to 1;
            default 1.0, which means no line.

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
        """The threshold for one histogram, its `reason` "regression" or "quantile"; `curve` changes nothing.

        Raises:
            CalibrationError: the histogram holds NaN, Inf or nothing at all.
        """
        check_histogram(h)
        if h.amax == 0:
            return threshold(0.0, self.name, ALL_ZERO)
        estimate = regression_threshold(h, self.regression_cutoff)
        if 0.0 < estimate < LONGEST * h.amax:
            return threshold(estimate, self.name, "regression")
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


def regression_threshold(h: Histogram, cutoff: float) -> float:
    """Magnitude (float64) at which the least-squares line through the log counts is 0; nan where there is no line.

    Height of a bin: ln(count + 1) - 0.694 in float32. Points: centres and heights of the highest bin but bin 0 (the
    first of equals) and of all bins above it whose height is positive and at least `cutoff` times the highest. The
    result may be negative or infinite where the heights do not fall.
    """
    heights = log_heights(h.counts)
    heights[0] = -math.inf
    peak = int(np.argmax(heights))
    points = np.flatnonzero((heights >= cutoff * heights[peak]) & (heights > 0.0))
    points = points[points >= peak]
    if points.size < 2:
        return math.nan
    # In bins, not in the tensor's unit: nothing under- or overflows, and a power of two scales the result exactly.
    x, y = points + 0.5, heights[points]
    x_mean, y_mean = x.mean(), y.mean()
    covariance = float(np.sum((x - x_mean) * (y - y_mean)))
    if covariance == 0.0:
        return math.inf
    return float(x_mean - y_mean * np.sum((x - x_mean) ** 2) / covariance) * h.bin_width


def log_heights(counts: npt.NDArray[Any]) -> Floats:
    """ln(count + 1) - 0.694 (2048,): float32 values in float64, with the logarithm of the C library TensorRT uses.

    That logarithm, glibc's logf, is the float32 nearest to the true one but for 1 count in 10,000, where the two
    neighbours are nearly equally far and it takes the other. NumPy's own float32 logarithm differs far more often.
    """
    arguments = counts.astype(np.float32).astype(np.float64) + 1.0
    exact = np.log(arguments)
    nearest = exact.astype(np.float32)
    away = np.where(exact > nearest, np.float32(np.inf), np.float32(-np.inf))
    odd = np.isin(arguments, LOGF_ODD)
    logf = np.where(odd, np.nextafter(nearest, away), nearest)
    return np.asarray(logf - LOG_BASE, np.float64)

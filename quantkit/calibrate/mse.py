"""The threshold with the least mean squared error of the INT8 round trip."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from quantkit.calibrate.base import ALL_ZERO, Curve, Threshold, check_histogram, threshold
from quantkit.collect.histogram import NUM_BINS, Histogram
from quantkit.qparams import INT8_MAX

FIRST = 32
"""Smallest candidate in bins. Below about 127 bins INT8's step is finer than a bin, and a histogram says little."""
CHUNK = 128
"""Candidates at a time: their 127 levels each then stay in a core's cache."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class MSECalibrator:
    """Least expected squared error over all bin edges below max|x|, and max|x| itself; no parameters.

    Every value counts as its bin's centre, exact zeros as zero (they cost nothing at any threshold).
    """

    name: ClassVar[str] = "mse"
    trt_algorithm: ClassVar[str | None] = None

    def compute(self, h: Histogram, *, curve: bool = False) -> Threshold:
        """The candidate with the smallest error, the largest of equals; all errors too if `curve`.

        Raises:
            CalibrationError: the histogram holds NaN, Inf or nothing at all.
        """
        check_histogram(h)
        if h.amax == 0:
            return threshold(0.0, self.name, ALL_ZERO)
        candidates, losses = mse_curve(h)
        best = candidates.size - 1 - int(np.argmin(losses[::-1]))
        return threshold(candidates[best], self.name, curve=Curve(candidates, losses, "mse") if curve else None)


def mse_curve(h: Histogram) -> tuple[Floats, Floats]:
    """Candidate thresholds (float64, increasing, the last is max|x|) and their mean squared errors.

    With step s, M0 and M1 the prefix sums of count and of count * centre, and e_k the bin where level k begins, the
    squared errors add up to: sum of count * centre^2
    - 2 s (127 M1[all] - sum of M1[e_k]) + s^2 (127^2 M0[all] - sum of (2 k - 1) M0[e_k]), k = 1 ... 127.
    """
    counts = h.counts.astype(np.float64)
    counts[0] -= h.zero_count
    centres = np.arange(NUM_BINS) + 0.5  # in bins, so that no unit under- or overflows
    moments = (prefix(counts), prefix(counts * centres), float(np.sum(counts * centres**2)))
    positions, edges = _cells()
    top = h.amax / h.bin_width
    stop = int(np.searchsorted(positions, top))
    parts = [slice(lo, min(lo + CHUNK, stop)) for lo in range(0, stop, CHUNK)]
    losses = [_losses(*moments, positions[part], edges[part]) for part in parts]
    last = np.array([top])
    losses.append(_losses(*moments, last, level_edges(last)))
    scale = h.bin_width * h.bin_width / h.total
    return np.append(positions[:stop] * h.bin_width, h.amax), np.maximum(np.concatenate(losses), 0.0) * scale


def prefix(values: npt.NDArray[Any]) -> Floats:
    """Sums of the first 0, 1, ... n values."""
    return np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])


def level_edges(positions: Floats) -> npt.NDArray[np.intp]:
    """For thresholds in bins (n,): (n, 127), the first bin whose centre is nearer to level k than to k - 1."""
    step = positions[:, None] / INT8_MAX
    edges = np.ceil((np.arange(1, INT8_MAX + 1) - 0.5) * step - 0.5)
    return np.asarray(np.clip(edges, 0, NUM_BINS), np.intp)


@cache
def _cells() -> tuple[Floats, npt.NDArray[np.intp]]:
    """The thresholds in bins that every histogram is tried with, and their levels' edges."""
    positions = np.arange(FIRST, NUM_BINS, dtype=np.float64)
    return positions, level_edges(positions)


def _losses(
    counts: Floats, firsts: Floats, second: float, positions: Floats, edges: npt.NDArray[np.intp]
) -> npt.NDArray[np.float64]:
    """Summed squared errors in bins squared, (n,)."""
    step = positions / INT8_MAX
    linear = INT8_MAX * firsts[-1] - np.take(firsts, edges).sum(axis=1)
    square = INT8_MAX**2 * counts[-1] - np.take(counts, edges) @ (2.0 * np.arange(1, INT8_MAX + 1) - 1.0)
    return np.asarray(second - step * (2.0 * linear - step * square))

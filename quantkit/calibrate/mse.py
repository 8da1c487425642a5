"""The threshold with the least mean squared error of the INT8 round trip."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from quantkit.calibrate.base import Curve, Threshold, check_histogram, threshold
from quantkit.collect.histogram import NUM_BINS, Histogram
from quantkit.qparams import INT8_MAX

FIRST = 32
"""Smallest candidate in bins. Below about 127 bins INT8's step is finer than a bin, and a histogram says little."""
CHUNK = 64
"""Candidates at a time: their 128 cells each then stay in a core's cache."""

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
            return threshold(0.0, self.name)
        candidates, losses = mse_curve(h)
        best = candidates.size - 1 - int(np.argmin(losses[::-1]))
        return threshold(candidates[best], self.name, curve=Curve(candidates, losses, "mse") if curve else None)


def mse_curve(h: Histogram) -> tuple[Floats, Floats]:
    """Candidate thresholds (float64, increasing, the last is max|x|) and their mean squared errors.

    With the prefix sums M0, M1, M2 of count, count * centre and count * centre^2, the cell of level k costs
    M2 - 2 k s M1 + (k s)^2 M0 over its bins: 128 terms a candidate instead of 2048.
    """
    counts = h.counts.astype(np.float64)
    counts[0] -= h.zero_count
    centres = np.arange(NUM_BINS) + 0.5  # in bins, so that no unit under- or overflows
    moments = [prefix(counts * centres**power) for power in range(3)]
    top = h.amax / h.bin_width
    stop = int(np.searchsorted(np.arange(FIRST, NUM_BINS), top))
    positions, edges = _cells()
    losses = [
        _losses(moments, positions[lo : min(lo + CHUNK, stop)], edges[lo : min(lo + CHUNK, stop)])
        for lo in range(0, stop, CHUNK)
    ]
    last = np.array([top])
    losses.append(_losses(moments, last, cell_edges(last)))
    width = h.bin_width
    return np.append(positions[:stop] * width, h.amax), np.concatenate(losses) * (width * width / h.total)


def prefix(values: npt.NDArray[Any]) -> Floats:
    """Sums of the first 0, 1, ... n values."""
    return np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])


def cell_edges(positions: Floats) -> npt.NDArray[np.intp]:
    """For thresholds in bins (n,): (n, 129) bin numbers; level k of INT8 takes the bins [edge[k], edge[k + 1]).

    A bin belongs to the level nearest to its centre; the last level takes everything beyond, clipped.
    """
    step = positions[:, None] / INT8_MAX
    edges = np.ceil((np.arange(INT8_MAX + 2) - 0.5) * step - 0.5).astype(np.intp)
    edges = np.clip(edges, 0, NUM_BINS)
    edges[:, 0], edges[:, -1] = 0, NUM_BINS
    return edges


@cache
def _cells() -> tuple[Floats, npt.NDArray[np.intp]]:
    """The thresholds in bins that every histogram is tried with, and their cells."""
    positions = np.arange(FIRST, NUM_BINS, dtype=np.float64)
    return positions, cell_edges(positions)


def _losses(moments: list[Floats], positions: Floats, edges: npt.NDArray[np.intp]) -> Floats:
    """Summed squared errors in bins squared, (n,)."""
    zeroth, first, second = (np.diff(moment[edges], axis=1) for moment in moments)
    level = np.arange(INT8_MAX + 1) * (positions[:, None] / INT8_MAX)
    return np.asarray(np.sum(second - level * (2.0 * first - level * zeroth), axis=1))

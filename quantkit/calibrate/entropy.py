"""TensorRT's entropy calibrators: the threshold whose 128-level histogram diverges least from the original."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from quantkit.calibrate.base import ALL_ZERO, Curve, Threshold, check_histogram, threshold
from quantkit.collect.binning import MAX_FLOAT
from quantkit.collect.histogram import NUM_BINS, Histogram

LEVELS = 128
"""Magnitudes that INT8 can tell apart; also the smallest candidate in bins."""
CHUNK = 128
"""Candidates at a time: their 128 groups each then stay in a core's cache."""
CLOSE = 1e-9
"""Candidates this close to the minimum are compared again without prefix sums, whose rounding is far below it."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class EntropyCalibrator:
    """Least KL divergence over all candidates of 128 bins and more; no parameters.

    Equals TensorRT 8.6's IInt8EntropyCalibrator and IInt8EntropyCalibrator2, which give the same threshold for the same
    histogram. Candidate i keeps the first i bins and stands for the threshold (i + 0.5) bins, so the threshold may
    exceed max|x| by up to one bin and a half, or by the empty half of a range that has just doubled.
    """

    name: ClassVar[str] = "entropy"
    trt_algorithm: ClassVar[str | None] = "EntropyCalibration2"

    def compute(self, h: Histogram, *, curve: bool = False) -> Threshold:
        """The last of the candidates with the least divergence; all divergences too if `curve`.

        Raises:
            CalibrationError: the histogram holds NaN, Inf or nothing at all.
        """
        check_histogram(h)
        if h.amax == 0:
            return threshold(0.0, self.name, ALL_ZERO)
        losses = kl_curve(h.counts)
        best = last_minimum(h.counts, losses)
        candidates = (np.arange(LEVELS, NUM_BINS + 1, dtype=np.float64) + 0.5) * h.bin_width
        # Half a bin beyond the largest value may be beyond float32, where a mask is float32's lowest number.
        chosen = min(float(candidates[best - LEVELS]), MAX_FLOAT)
        return threshold(chosen, self.name, curve=Curve(candidates, losses, "kl") if curve else None)


def prepared(counts: npt.NDArray[Any]) -> Floats:
    """The counts as float64, bin 0 replaced by bin 1: zeros, which every threshold keeps, must not rule the choice."""
    bins = counts.astype(np.float64)
    bins[0] = bins[1]
    return bins


def kl_divergence(counts: npt.NDArray[Any], kept: int) -> float:
    """KL(P || Q) in nats of the candidate that keeps `kept` bins: the definition, written out.

    P is the kept bins with everything beyond added to the last. Q is the kept bins, without what lies beyond, in 128
    groups (bin j in group j * 128 // kept), each group's mass spread evenly over its bins that are not empty. Both are
    normalised. inf where Q is 0 and P is not, which is when the last kept bin is empty and something lies beyond; inf
    too for a candidate that keeps a single bin that is not empty while something lies beyond.
    """
    bins = prepared(counts)
    head, outliers = bins[:kept], bins[kept:].sum()
    filled = head > 0
    group = np.arange(kept) * LEVELS // kept
    mass = np.bincount(group, head, LEVELS)
    share = np.divide(mass, np.bincount(group, filled, LEVELS), out=np.zeros(LEVELS), where=mass > 0)
    p, q = head.copy(), np.where(filled, share[group], 0.0)
    p[-1] += outliers
    if q[-1] == 0 < p[-1] or not filled.any() or (outliers > 0 and filled.sum() == 1):
        return np.inf
    p, q = p[filled] / p.sum(), q[filled] / q.sum()
    return float(np.sum(p * np.log(p / q)))


def last_minimum(counts: npt.NDArray[Any], losses: Floats) -> int:
    """Bins kept by the last candidate with the least divergence.

    `losses` come from prefix sums, which round; the few that are close to the least are computed again by the
    definition, so that equals compare as equals.
    """
    close = np.flatnonzero(losses <= losses.min() + CLOSE) + LEVELS
    exact = np.array([kl_divergence(counts, int(kept)) for kept in close])
    return int(close[exact.size - 1 - int(np.argmin(exact[::-1]))])


def kl_curve(counts: npt.NDArray[Any]) -> Floats:
    """KL divergence of the 1921 candidates that keep 128, 129, ... 2048 bins, float64.

    With the prefix sums of c, of [c > 0] and of c ln c over the bins, a candidate with group masses S and N filled bins
    a group, outliers o and last bin c costs 128 terms: KL = ln(sum S / total) +
    (sum c ln c + (c + o) ln(c + o) - c ln c - sum S ln(S / N) - o ln(S_127 / N_127)) / total.
    """
    bins = prepared(counts)
    mass, filled, entropy = prefix(bins), prefix(bins > 0), prefix(xlogx(bins))
    edges = group_edges()
    terms = [_group_terms(mass, filled, edges[lo : lo + CHUNK]) for lo in range(0, len(edges), CHUNK)]
    spread, last_log = (np.concatenate(parts) for parts in zip(*terms, strict=True))
    total, kept, last = mass[-1], mass[LEVELS:], bins[LEVELS - 1 :]
    outliers = total - kept
    own = entropy[LEVELS:] - xlogx(last) + xlogx(last + outliers)
    with np.errstate(divide="ignore", invalid="ignore"):
        losses = (own - spread - outliers * last_log) / total - np.log(total) + np.log(kept)
    losses[(outliers > 0) & ((last == 0) | (filled[LEVELS:] == 1))] = np.inf
    losses[kept == 0] = np.inf
    return np.asarray(np.maximum(losses, 0.0))


def _group_terms(mass: Floats, filled: Floats, edges: npt.NDArray[np.intp]) -> tuple[Floats, Floats]:
    """Per candidate: sum of S ln(S / N) over its groups, and ln(S / N) of its last group (0 where that is empty)."""
    at_edges = np.take(mass, edges)  # take, differences and reused arrays: twice as fast as fancy indexing and diff
    sums = at_edges[:, 1:] - at_edges[:, :-1]
    at_edges = np.take(filled, edges)
    bins = at_edges[:, 1:] - at_edges[:, :-1]
    np.maximum(bins, 1.0, out=bins)
    logs = np.maximum(sums, 1.0)
    logs /= bins
    np.log(logs, out=logs)
    return np.einsum("ij,ij->i", sums, logs), logs[:, -1]


def prefix(values: npt.NDArray[Any]) -> Floats:
    """Sums of the first 0, 1, ... n values."""
    return np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])


def xlogx(values: Floats) -> Floats:
    """The products x ln x, and 0 at 0; counts below 1 do not occur."""
    return np.asarray(values * np.log(np.maximum(values, 1.0)))


@cache
def group_edges() -> npt.NDArray[np.intp]:
    """(1921, 129): group g of the candidate with i bins takes the bins [ceil(g i / 128), ceil((g + 1) i / 128))."""
    kept = np.arange(LEVELS, NUM_BINS + 1)[:, None]
    edges = -(-np.arange(LEVELS + 1) * kept // LEVELS)
    edges.setflags(write=False)
    return edges.astype(np.intp)

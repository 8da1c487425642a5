"""For every tensor the method that suits it, with the reason.

What a tensor is decides first, where that is known: probabilities lie in [0, 1] whatever the data, and an attention
mask's -10000 is no score. Everything else is decided by the signal to noise ratio of the INT8 round trip, which a
histogram tells without the data (every value counts as its bin's centre, exact zeros cost nothing).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from quantkit.calibrate.base import ALL_ZERO, Calibrator, Threshold, check_fraction, check_histogram, threshold
from quantkit.calibrate.entropy import EntropyCalibrator
from quantkit.calibrate.minmax import MinMaxCalibrator
from quantkit.calibrate.mse import MSECalibrator
from quantkit.calibrate.percentile import PercentileCalibrator
from quantkit.collect.histogram import MASK_LOGITS, NUM_BINS, Histogram
from quantkit.errors import CalibrationError
from quantkit.qparams import INT8_MAX, sqnr_from_power

PROBABILITIES, MASKED = "softmax", "masked logits"
"""The kinds of tensors that have rules of their own; quantkit/network/kinds.py finds them."""
BULK = PercentileCalibrator(99.9)
"""What a heavy tail is measured against."""
CANDIDATES: dict[str, Calibrator] = {
    "minmax": MinMaxCalibrator(),
    "mse": MSECalibrator(),
    "percentile 99.9": BULK,
    "percentile 99.99": PercentileCalibrator(99.99),
    "percentile 99.999": PercentileCalibrator(99.999),
    "entropy": EntropyCalibrator(),
}
"""What is compared, by the words of the reasons; of equals the first is taken."""
WORTH_SAYING = 0.5
"""From this share on a reason tells how many values a wide range rounds to 0."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class AutoCalibrator:
    """The best signal to noise ratio of the INT8 round trip, with rules of their own for two kinds of tensors.

    1. Softmax outputs: amax = 1, the range that probabilities have on any data.
    2. Masked logits (attention scores after the mask): the range without the mask. It comes from the histogram itself
       where mask values were set apart while collecting, else from the tensor before the mask, else from the filled
       bins below 5000.
    3. Heavy tails (max|x| at least `heavy_tail` times the 99.9th percentile): the best ratio of minmax, mse, entropy
       and the percentiles 99.9, 99.99 and 99.999.
    4. All others: minmax, which clips nothing, unless one of those is better by more than `margin_db`.

    Args:
        margin_db: what clipping must gain over minmax, in dB, 0 to 100; default 1.
        heavy_tail: from which max|x| / percentile 99.9 on a tail counts as heavy, 1 to 1e6; default 4.

    Raises:
        InputError: a parameter is no number or out of its range.
    """

    margin_db: float = 1.0
    heavy_tail: float = 4.0
    name: ClassVar[str] = "auto"
    trt_algorithm: ClassVar[str | None] = None

    def __post_init__(self) -> None:
        check_fraction("auto", "margin_db", self.margin_db, 0.0, 100.0)
        check_fraction("auto", "heavy_tail", self.heavy_tail, 1.0, 1e6)

    def compute(self, h: Histogram, *, curve: bool = False) -> Threshold:
        """The threshold of a tensor of which nothing but the histogram is known; `curve` changes nothing.

        Raises:
            CalibrationError: the histogram holds NaN, Inf or nothing at all.
        """
        return self.compute_kind(h)

    def compute_kind(
        self, h: Histogram, kind: str = "", unmasked: Histogram | None = None, source: str = ""
    ) -> Threshold:
        """The threshold of a tensor whose kind is known.

        Args:
            h: its histogram.
            kind: "softmax", "masked logits", or any other word, which is told in the reason; "" when not known.
            unmasked: for masked logits the histogram of the scores before the mask, if there is one.
            source: the name of those scores, for the reason.

        Raises:
            CalibrationError: a histogram that is needed holds NaN, Inf or nothing at all.
        """
        if kind == PROBABILITIES:
            check_histogram(h)
            return threshold(1.0, self.name, "softmax: fixed at 1, probabilities lie in [0, 1]")
        if kind == MASKED and h.mask_logits is None and (h.minimum <= MASK_LOGITS or h.inf_count):
            if unmasked is not None:
                found = self.compute_kind(unmasked)
                where = f"masked logits, range of {source or 'the scores'} before the mask"
                return replace(found, reason=f"{where}: {found.reason}")
            check_histogram(h)
            if (amax := largest_beside_mask(h)) > 0:
                return threshold(amax, self.name, "masked logits: largest value beside the mask, to one bin")
        if kind == MASKED and h.masked_count:
            kind = f"{kind}, {h.masked_count} set apart"
        return self._by_sqnr(h, kind)

    def _by_sqnr(self, h: Histogram, kind: str) -> Threshold:
        """Rules 3 and 4."""
        check_histogram(h)
        if h.amax == 0:
            return threshold(0.0, self.name, ALL_ZERO)
        ranges = candidate_ranges(h)
        sqnr = {label: histogram_sqnr_db(h, amax) for label, amax in ranges.items()}
        best = max(sqnr, key=sqnr.__getitem__)
        tail = h.amax / BULK.compute(h).amax
        heavy = tail >= self.heavy_tail
        chosen = best if heavy or sqnr[best] - sqnr["minmax"] > self.margin_db else "minmax"
        what = [kind] if kind else []
        says = [f"{chosen}, {sqnr[chosen]:.1f} dB"]
        if best != "minmax":
            other = "minmax" if chosen == best else best
            says.append(f"{other} {sqnr[other]:.1f} dB")
        if heavy:
            what.append(f"heavy tail (max {tail:.3g} times the 99.9th percentile)")
            if (lost := share_rounded_to_zero(h, ranges[chosen])) >= WORTH_SAYING:
                says.append(f"{100 * lost:.1f} % of the values become 0")
        reason = "; ".join(says)
        return threshold(ranges[chosen], self.name, f"{', '.join(what)}: {reason}" if what else reason)


def candidate_ranges(h: Histogram) -> dict[str, float]:
    """Candidate -> its threshold; one beyond float32's range is left out."""
    ranges = {}
    for label, calibrator in CANDIDATES.items():
        try:
            ranges[label] = calibrator.compute(h).amax
        except CalibrationError:
            continue
    return ranges


def histogram_sqnr_db(h: Histogram, amax: float) -> float:
    """Signal to quantization noise ratio in dB of rounding to INT8 with the threshold `amax` > 0.

    An estimate: values count as their bin's centre, so below amax = 127 bins, where INT8's step is finer than a bin,
    the noise of rounding comes out too small (that of clipping does not).
    """
    counts, centres, codes, step = _round_trip(h, amax)
    signal, noise = float(counts @ centres**2), float(counts @ (centres - codes * step) ** 2)
    return sqnr_from_power(signal, noise)


def share_rounded_to_zero(h: Histogram, amax: float) -> float:
    """Share of the values that are not 0 but become so in INT8 with the threshold `amax` > 0; 0 without any."""
    counts, _, codes, _ = _round_trip(h, amax)
    return float(counts[codes == 0].sum() / max(counts.sum(), 1.0))


def largest_beside_mask(h: Histogram) -> float:
    """Largest magnitude of a histogram apart from mask logits, to one bin upwards; 0 when it cannot be told."""
    if not 0 < h.bin_width <= -MASK_LOGITS:
        # No bin is left for scores. Their largest positive value is still known, unless the sign of nothing is.
        return h.maximum if 0 < h.maximum < -MASK_LOGITS else 0.0
    filled = np.flatnonzero(h.counts[: math.ceil(-MASK_LOGITS / h.bin_width)])
    return float((filled[-1] + 1) * h.bin_width) if filled.size else 0.0


def _round_trip(h: Histogram, amax: float) -> tuple[Floats, Floats, Floats, float]:
    """Counts without exact zeros, bin centres, INT8 codes of the centres, and the step, the latter three in bins."""
    counts = h.counts.astype(np.float64)
    counts[0] -= h.zero_count
    centres = np.arange(NUM_BINS, dtype=np.float64) + 0.5
    step = amax / h.bin_width / INT8_MAX
    codes = np.minimum(np.rint(centres / step), float(INT8_MAX))
    return counts, centres, codes.astype(np.float64), step

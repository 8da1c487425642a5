"""Histograms of magnitudes: TensorRT's own rule, and one whose ranges are powers of two.

Both modes keep 2048 bins of |x| over [0, R]; the bin of a value is `min(int(|x| * float32(2048 / R)), 2047)` with the
product in float32. They differ in the range R:

`tensorrt`
    R is the largest |x| of the first batch that is not all zero (zeros seen before lie in bin 0). When a later batch
    exceeds R, neighbouring bins are added in pairs and R doubles until it fits; a batch more than 2047 times wider
    than R multiplies R by that whole factor instead, and what was counted goes to bin 0. The result depends on how the
    data was cut into batches, as TensorRT's does. Source: TensorRT 8.6.0's recorded histogram caches, all of which this
    reproduces count for count.
`pow2`
    R is the smallest power of two >= the largest |x|. The product is then exact, so halving the resolution commutes
    with binning and the counts depend neither on batches nor on their order; shards merge exactly. One thing would
    still break that: a value equal to R belongs to the last bin while R stands, but to bin 1024 once R doubles.
    `edge_count` remembers how many of the last bin's values are such.

Values that have no bin are counted by kind: NaN, infinities and, where asked for, mask logits. Attention masks add
something like -10000 or -3.4e38 to the scores they hide; one such value would stretch R until all others share bin 0.
With `mask_logits` = t (a negative number), every value <= t, -inf included, goes to `masked_count` and takes no part in
bins or extremes. It is off by default, because TensorRT makes no such exception.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from quantkit.collect.binning import (
    MASK_LOGITS,
    MAX_FLOAT,
    MAX_KEY,
    MODES,
    NUM_BINS,
    TINY_RANGE,
    Counts,
    Floats,
    Mode,
    as_float32,
    bin_scale,
    check_mask_logits,
    check_mode,
    fitting_range,
    key_of,
    limit_of,
    slot_indices,
    smallest_power_of_two,
    value_of,
    widened,
)
from quantkit.collect.runs import Runs, all_runs, in_memory_order
from quantkit.errors import CalibrationError

__all__ = ["MASK_LOGITS", "MODES", "NUM_BINS", "Histogram", "HistogramAccumulator", "Mode"]


@dataclass(frozen=True, eq=False)
class Histogram:
    """2048 counts of |x| over [0, upper] and what was seen beside them; immutable, compared by value.

    Attributes:
        counts: int64 (2048,), read-only; counts[i] values lie in [i, i + 1) * bin_width, up to the product's rounding.
        upper: the range R as float64; a float32 value unless TensorRT's rule has multiplied it by a whole factor.
        amax: largest finite |x|, a float32 value; 0 when nothing was seen.
        minimum: smallest finite x, a float32 value; 0 when nothing was seen.
        maximum: largest finite x, a float32 value; 0 when nothing was seen.
        nan_count: NaNs, which are in no bin.
        inf_count: infinities of either sign, which are in no bin.
        zero_count: values equal to 0 (all of them in bin 0).
        mode: "tensorrt" or "pow2", see the module.
        edge_count: in mode "pow2", how many values of the last bin equal `upper`; 0 in mode "tensorrt".
        masked_count: values <= mask_logits, which are in no bin.
        mask_logits: the threshold for those, or None when none are set apart.

    Raises:
        CalibrationError: the fields contradict each other.
    """

    counts: Counts
    upper: float
    amax: float
    minimum: float
    maximum: float
    nan_count: int
    inf_count: int
    zero_count: int
    mode: Mode
    edge_count: int = 0
    masked_count: int = 0
    mask_logits: float | None = None

    SCALARS: ClassVar[tuple[str, ...]] = (
        "upper", "amax", "minimum", "maximum", "nan_count", "inf_count", "zero_count", "mode", "edge_count",
        "masked_count", "mask_logits",
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_mode(self.mode)
        check_mask_logits(self.mask_logits)
        counts = np.array(self.counts, np.int64, order="C")
        if counts.shape != (NUM_BINS,) or counts.min() < 0:
            raise CalibrationError(f"A histogram has {NUM_BINS} counts >= 0; shape {counts.shape} came.")
        counts.setflags(write=False)
        object.__setattr__(self, "counts", counts)
        extremes = (self.upper, self.amax, self.minimum, self.maximum)
        if not all(map(math.isfinite, extremes)) or not self.upper >= self.amax >= 0 or self.minimum > self.maximum:
            raise CalibrationError(f"A histogram's (range, amax, minimum, maximum) cannot be {extremes}.")
        if self.amax != max(abs(self.minimum), abs(self.maximum)):
            raise CalibrationError(f"A histogram's amax {self.amax} is none of {self.minimum} and {self.maximum}.")
        kinds = (self.nan_count, self.inf_count, self.zero_count, self.edge_count, self.masked_count)
        if min(kinds) < 0 or self.edge_count > counts[-1] or self.zero_count > counts[0]:
            raise CalibrationError(f"A histogram's (NaN, Inf, zero, edge, masked) counts cannot be {kinds}.")
        if self.mode == "pow2" and self.upper != smallest_power_of_two(self.amax):
            raise CalibrationError(f"In mode pow2 the range for amax {self.amax} cannot be {self.upper}.")

    @classmethod
    def empty(cls, mode: Mode = "tensorrt", mask_logits: float | None = None) -> Histogram:
        """A histogram that has seen nothing: range 0."""
        return cls(np.zeros(NUM_BINS, np.int64), 0.0, 0.0, 0.0, 0.0, 0, 0, 0, mode, 0, 0, mask_logits)

    @property
    def total(self) -> int:
        """How many values are in the bins: all finite ones that are not mask logits."""
        return int(self.counts.sum())

    @property
    def bin_width(self) -> float:
        """Width of one bin, `upper` / 2048."""
        return self.upper / NUM_BINS

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Histogram):
            return NotImplemented
        same = all(getattr(self, name) == getattr(other, name) for name in self.SCALARS)
        return same and bool(np.array_equal(self.counts, other.counts))

    __hash__ = None  # type: ignore[assignment]

    def updated(self, array: npt.ArrayLike) -> Histogram:
        """The histogram after one more batch (float32, any shape): the NumPy reference of the compiled kernel.

        Raises:
            CalibrationError: the array is not float32 and cannot become so without rounding.
        """
        values = as_float32(array).ravel()
        nans, infs = int(np.isnan(values).sum()), np.isinf(values)
        masked = np.zeros(values.shape, np.bool_)
        if self.mask_logits is not None:
            masked = values <= np.float32(self.mask_logits)
            infs &= ~masked
        kept = values[np.isfinite(values) & ~masked]
        seen = replace(
            self,
            nan_count=self.nan_count + nans,
            inf_count=self.inf_count + int(infs.sum()),
            masked_count=self.masked_count + int(masked.sum()),
        )
        return seen._with_finite(kept) if kept.size else seen

    def _with_finite(self, values: Floats) -> Histogram:
        """The histogram with more finite values (1-D, at least one)."""
        magnitudes = np.abs(values)
        low, high = float(values.min()) + 0.0, float(values.max()) + 0.0
        amax = max(self.amax, -low, high)
        upper = fitting_range(self.mode, self.upper, amax)
        slots = widened(self.slots(), self.upper, upper)
        slots += np.bincount(slot_indices(magnitudes, upper), minlength=NUM_BINS + 1)
        return self.from_slots(
            slots,
            upper=upper,
            amax=amax,
            minimum=min(self.minimum, low) if self.total else low,
            maximum=max(self.maximum, high) if self.total else high,
            zero_count=self.zero_count + int(np.count_nonzero(magnitudes == 0)),
        )

    def merge(self, other: Histogram) -> Histogram:
        """The histogram of both sets of values.

        In mode "pow2" this is exact: it equals the histogram of all values, in whatever order and grouping shards are
        merged. In mode "tensorrt" the narrower range is doubled until it equals the wider, which is possible only if
        they differ by a power of two (or one saw zeros only), as when one collection continued from the other's range.

        Raises:
            CalibrationError: modes or mask thresholds differ, or the ranges of mode "tensorrt" do not fit.
        """
        if (self.mode, self.mask_logits) != (other.mode, other.mask_logits):
            mine, theirs = (self.mode, self.mask_logits), (other.mode, other.mask_logits)
            raise CalibrationError(f"Histograms of (mode, mask threshold) {mine} and {theirs} cannot be merged.")
        upper = max(self.upper, other.upper)
        parts = [widened(h.slots(), h.upper, upper) for h in (self, other)]
        filled = [h for h in (self, other) if h.total] or [self]
        return self.from_slots(
            parts[0] + parts[1],
            upper=upper,
            amax=max(self.amax, other.amax),
            minimum=min(h.minimum for h in filled),
            maximum=max(h.maximum for h in filled),
            nan_count=self.nan_count + other.nan_count,
            inf_count=self.inf_count + other.inf_count,
            zero_count=self.zero_count + other.zero_count,
            masked_count=self.masked_count + other.masked_count,
        )

    def slots(self) -> Counts:
        """The counts as 2049 slots, of which the last holds the values equal to `upper` (mode "pow2")."""
        slots = np.append(self.counts, self.edge_count)
        slots[NUM_BINS - 1] -= self.edge_count
        return slots

    def from_slots(self, slots: Counts, **changes: Any) -> Histogram:
        """A copy with other fields, whose counts come from 2049 slots; the last one ends in the last bin."""
        counts = slots[:NUM_BINS].copy()
        counts[-1] += slots[NUM_BINS]
        edge = int(slots[NUM_BINS]) if self.mode == "pow2" else 0
        return replace(self, counts=counts, edge_count=edge, **changes)


LOW, HIGH, ZEROS, NEEDED = range(4)
"""Places in the kernel's statistics: least and greatest key, zeros, and the key that a wider range must hold."""
SLOTS = NUM_BINS + 1
NAN_SLOT, INF_SLOT, MASKED_SLOT = range(SLOTS, SLOTS + 3)
"""Places after the slots of finite values, where the kernel counts the others."""


class HistogramAccumulator:
    """A histogram in the making: one `update` a batch, 17 KiB of memory however many batches come.

    Uses the compiled kernel (quantkit/collect/kernels.py), which counts exactly what `Histogram.updated` counts; where
    numba does not work, that NumPy reference itself. One thread at a time may update it.

    Args:
        mode: see the module.
        mask_logits: see the module.
        start: continue from this histogram; its mode and mask_logits are used.
        compiled: False for the NumPy reference.

    Raises:
        InputError: there is no such mode, or the threshold is no negative float32 number.
    """

    def __init__(
        self,
        mode: Mode = "tensorrt",
        *,
        mask_logits: float | None = None,
        start: Histogram | None = None,
        compiled: bool = True,
    ) -> None:
        self._compiled = compiled
        self._restore(start if start is not None else Histogram.empty(mode, mask_logits))

    def _restore(self, histogram: Histogram) -> None:
        """Takes over what a histogram has counted."""
        h = self._start = histogram
        self._slots = np.append(h.slots(), [h.nan_count, h.inf_count, h.masked_count])
        self._upper = h.upper
        low, high = (key_of(h.minimum), key_of(h.maximum)) if h.total else (MAX_KEY + 1, -MAX_KEY - 2)
        self._statistics = np.array([low, high, h.zero_count, 0], np.int64)
        self._floor = -1 - MAX_KEY if h.mask_logits is None else key_of(h.mask_logits) + 1

    def update(self, array: npt.NDArray[Any], runs: Runs | None = None) -> None:
        """Counts one batch: float32 of any shape, contiguous or not; with `runs` only those parts of it.

        Raises:
            CalibrationError: the array is not float32 and cannot become so without rounding.
        """
        values = as_float32(array)
        runs = all_runs(values) if runs is None else runs
        if not len(runs.starts):
            return
        memory = in_memory_order(values)
        scan = _kernel() if self._compiled else None
        if scan is None or not self._scan(scan, memory.view(np.int32), runs):
            self._restore(self.snapshot().updated(runs.gather(memory)))

    def _scan(self, scan: Any, bits: npt.NDArray[np.int32], runs: Runs) -> bool:
        """Counts one batch with the kernel; False, and nothing done, when the range is too small for it."""
        mode, upper = self._start.mode, self._upper
        if upper == 0:
            upper = fitting_range(mode, 0.0, self._greatest(runs, bits.view(np.float32)))
        if 0 < upper < TINY_RANGE:
            return False
        self._upper, cursor = upper, np.zeros(2, np.int64)
        while not scan(
            bits,
            runs.starts,
            runs.lengths,
            cursor,
            bin_scale(self._upper),
            limit_of(self._upper),
            self._floor,
            self._slots,
            self._statistics,
        ):
            needed = value_of(int(self._statistics[NEEDED]))
            if mode == "tensorrt":
                # TensorRT grows once a batch, by a factor that depends on the batch's largest magnitude. What this
                # batch has counted so far may be moved like the rest: it was within the old range.
                needed = max(needed, self._greatest(runs, bits.view(np.float32)))
            wider = fitting_range(mode, self._upper, needed)
            self._slots[:SLOTS], self._upper = widened(self._slots[:SLOTS], self._upper, wider), wider
        if mode == "tensorrt":
            self._slots[NUM_BINS - 1] += self._slots[NUM_BINS]
            self._slots[NUM_BINS] = 0
        return True

    def _greatest(self, runs: Runs, flat: Floats) -> float:
        """The largest magnitude to be counted, 0.0 if there is none: what the first range is made of."""
        values = runs.gather(flat)
        low, high = float(np.min(values)), float(np.max(values))
        if not (value_of(self._floor) <= low and high <= MAX_FLOAT):  # NaN compares as false
            mask = self._start.mask_logits
            kept = values[np.isfinite(values) & (True if mask is None else values > np.float32(mask))]
            low, high = float(np.min(kept, initial=0.0)), float(np.max(kept, initial=0.0))
        return max(high, -low)

    def snapshot(self) -> Histogram:
        """What has been counted so far, immutable."""
        low, high, zeros, _ = self._statistics.tolist()
        slots, (nans, infs, masked) = self._slots[:SLOTS], self._slots[SLOTS:].tolist()
        minimum, maximum = (value_of(low), value_of(high)) if slots.any() else (0.0, 0.0)
        return self._start.from_slots(
            slots,
            upper=self._upper,
            amax=max(maximum, -minimum),
            minimum=minimum,
            maximum=maximum,
            nan_count=nans,
            inf_count=infs,
            zero_count=zeros,
            masked_count=masked,
        )


@cache
def _kernel() -> Any:
    """The compiled kernel, or None where numba is missing or switched off."""
    try:
        from quantkit.collect.kernels import load

        return load()
    except ImportError:
        return None

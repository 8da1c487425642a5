"""One edge of a network: its channels copied and evened out, its range chosen, its weights and biases on the grid.

The steps are those of `quantkit.network.refine`, which takes the edges in order and folds the shift into constants.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from quantkit.collect.moments import Moments
from quantkit.network.edges import Edge, Vector
from quantkit.network.folding import Floats, Folder, reach, scaled, smoothing_factors
from quantkit.network.precision import Grid, QuantizedWeight
from quantkit.network.ranges import OutputError, full_range
from quantkit.network.rounding import round_nearest, round_second_order
from quantkit.network.splitting import Split, split
from quantkit.qparams import scale_from_amax
from quantkit.tables.table import Entry

SHIFT, SPLIT, SMOOTH, RANGE, ROUND, BIAS = STEPS = ("shift", "split", "smooth", "range", "round", "bias")
WORTH = 0.6
"""Copies of channels take time: they have to lower an edge's error to this share of what it is without them."""
STRENGTHS = (0.5, 0.65, 0.8)
"""What is tried. Beyond 0.8 the error of an edge may fall further, and the logits get worse (docs/accuracy.md)."""
SPLIT_STRENGTHS = (*STRENGTHS, 0.9)
"""What is tried with copies, which take the reason for it: the few channels far wider than all others."""

RangeOf = Callable[[str, Moments], Entry]
"""The range of an activation by the calibration method: (name, moments) -> entry."""


@dataclass(frozen=True, eq=False)
class EdgeResult:
    """What became of one edge."""

    tensor: str
    weights: dict[str, QuantizedWeight]
    biases: dict[str, Vector]
    factors: Vector | None
    summand: Vector | None
    split: Split | None
    entry: Entry | None
    summary: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Form:
    """What a quantizer meets: the moments of its input, the weights behind it, and how both came about."""

    moments: Moments
    weights: Sequence[Vector]
    split: Split | None = None
    strength: float | None = None
    factors: Vector | None = None

    def smoothed(self, strength: float) -> Form:
        """With its channels evened out by a strength."""
        weight_reach = np.max([np.abs(weight).max(axis=1) for weight in self.weights], axis=0).astype(np.float64)
        factors = smoothing_factors(reach(self.moments), weight_reach, strength)
        weights = [weight * factors[:, None] for weight in self.weights]
        return replace(self, moments=scaled(self.moments, factors), weights=weights, strength=strength, factors=factors)

    def error(self, symmetric: bool) -> OutputError:
        """The error of ranges of it."""
        offsets = None if self.split is None else self.split.offsets
        return OutputError(self.moments.sample, self.weights, symmetric, offsets)


@dataclass(frozen=True, eq=False)
class EdgeWork:
    """One edge after the shift: its moments, what of the shift is no constant of the graph, and the constants."""

    edge: Edge
    moments: Moments
    centre: Floats | None
    folder: Folder
    symmetric: bool
    steps: Sequence[str]

    def run(self, range_of: RangeOf, *, smooth: bool) -> EdgeResult:
        """The steps after the shift."""
        form = self._form([self.folder.value(reader.product.weight) for reader in self.edge.readers], smooth)
        moments, weights = form.moments, form.weights
        changed = form.split is not None or form.factors is not None or SHIFT in self.steps
        entry = self._entry(form, range_of, changed=changed)
        moved = self._moved(form, entry)
        quantized = self._rounded(weights, moments)
        names = [reader.product.weight for reader in self.edge.readers]
        # What is rounded to the nearest and not changed, insert_qdq makes itself.
        kept = form.split is not None or form.factors is not None or ROUND in self.steps
        summary = {
            "tensor": self.edge.tensor,
            "shifted": SHIFT in self.steps and (bool(self.edge.offset) or self.centre is not None),
            "strength": form.strength,
            "copies": 0 if form.split is None else len(form.split.channels) - len(self.moments.mean),
            "low": None if entry is None else entry.minimum,
            "high": None if entry is None else entry.maximum,
        }
        return EdgeResult(
            self.edge.tensor,
            dict(zip(names, quantized, strict=True)) if kept else {},
            self._biases(form, quantized, moved, entry),
            None if form.factors is None else (1 / form.factors).astype(np.float32),
            self._summand(form, moved),
            form.split,
            entry,
            summary,
        )

    def _summand(self, form: Form, moved: Floats | None) -> Vector | None:
        """What is added in front of the quantizer, after the factors."""
        if self.centre is None and form.split is None:
            return None
        summand = np.zeros(len(form.moments.mean))
        if self.centre is not None:
            centre = self.centre if form.split is None else self.centre[form.split.channels]
            summand -= centre if form.factors is None else centre / form.factors
        if moved is not None:
            summand += moved
        return summand.astype(np.float32)

    def _biases(
        self, form: Form, quantized: Sequence[QuantizedWeight], moved: Floats | None, entry: Entry | None
    ) -> dict[str, Vector]:
        """What the products' biases take: what is added in front of the quantizer, and what rounding costs on average.

        Args:
            form: what the quantizer meets.
            quantized: INT8 forms of its weights.
            moved: by how much its copies are moved.
            entry: the quantizer's range.
        """
        if self.centre is None and form.split is None and BIAS not in self.steps:
            return {}
        biases = {}
        error = self._mean_error(form, entry)
        for reader, weight, codes in zip(self.edge.readers, form.weights, quantized, strict=True):
            taken = np.zeros(weight.shape[1])
            if BIAS in self.steps:
                taken += form.moments.mean @ (weight.astype(np.float64) - codes.values) - error @ codes.values
            if self.centre is not None:
                taken += self.centre @ self.folder.value(reader.product.weight).astype(np.float64)
            if moved is not None:
                taken -= moved @ codes.values
            biases[reader.bias] = taken.astype(np.float32)
        return biases

    def _moved(self, form: Form, entry: Entry | None) -> Floats | None:
        """By how much copies are moved before they are rounded, float64 (C,); None where nothing is."""
        if form.split is None or entry is None:
            return None
        moved: Floats = form.split.offsets.astype(np.float64) * float(Grid.of(entry, self.symmetric).scale)
        return moved

    def _mean_error(self, form: Form, entry: Entry | None) -> Floats:
        """What the activation's grid changes in each channel on average, over the kept rows; 0 where it is not known.

        Rounding alone leaves next to nothing. Clipping takes from one side, and the logits drift.
        """
        if entry is None or entry.minimum is None or entry.maximum is None or entry.amax == 0:
            return np.zeros(len(form.moments.mean))
        low, high = max(entry.minimum, -entry.amax), min(entry.maximum, entry.amax)
        errors = form.error(self.symmetric).of_rows(min(low, 0.0), max(high, 0.0))
        return np.asarray(errors.mean(axis=0, dtype=np.float64))

    def _form(self, weights: Sequence[Vector], smooth: bool) -> Form:
        """The copies and the smoothing that cost least on the rows kept for it."""
        best, least = self._cheapest(Form(self.moments, weights), STRENGTHS if smooth else ())
        copies = split(self.moments, weights) if SPLIT in self.steps and self.edge.source is not None else None
        if copies is not None:
            form = Form(copies.moments(self.moments), [copies.reading(weight) for weight in weights], copies)
            form, cost = self._cheapest(form, SPLIT_STRENGTHS if smooth else ())
            if cost < WORTH * least:
                best = form
        return best

    def _cheapest(self, form: Form, strengths: Sequence[float]) -> tuple[Form, float]:
        """The form itself, or smoothed by one of some strengths, and what it costs."""
        tried = [form, *(form.smoothed(strength) for strength in strengths)]
        costs = [self._cost(one) for one in tried]
        least = int(np.argmin(costs))
        return tried[least], costs[least]

    def _cost(self, form: Form) -> float:
        """Error at the products' results from the activation's grid over its full range and from the weights' grids."""
        rows = form.moments.sample
        error = form.error(self.symmetric).of_range(*full_range(form.moments))
        lost = np.concatenate([weight - round_nearest(weight).values for weight in form.weights], axis=1)
        centred = rows - rows.mean(axis=0) if BIAS in self.steps else rows
        return error + float(np.sum((centred @ lost) ** 2))

    def _entry(self, form: Form, range_of: RangeOf, *, changed: bool) -> Entry | None:
        """The range of the activation; None where the table's stays right."""
        if RANGE not in self.steps:
            return range_of(self.edge.tensor, form.moments) if changed else None
        low, high = full_range(form.moments)
        if low == high:
            return None
        return refined_entry(*form.error(self.symmetric).best_range(low, high))

    def _rounded(self, weights: Sequence[Vector], moments: Moments) -> list[QuantizedWeight]:
        """The weights on their grids; those of one edge share its second moments, so they are rounded as one."""
        if ROUND not in self.steps:
            return [round_nearest(weight) for weight in weights]
        centre: Floats = moments.mean if BIAS in self.steps else np.zeros(len(moments.mean))
        joined = round_second_order(np.concatenate(weights, axis=1), moments.second_moments(centre))
        ends = np.cumsum([weight.shape[1] for weight in weights])[:-1]
        parts = zip(np.split(joined.codes, ends, axis=1), np.split(joined.scales, ends), strict=True)
        return [QuantizedWeight(np.ascontiguousarray(codes), scales) for codes, scales in parts]


def refined_entry(low: float, high: float) -> Entry:
    """The range step's entry in a table."""
    return Entry(scale_from_amax(max(-low, high)), low, high, "refined", "least error behind the products")

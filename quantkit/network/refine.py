"""Makes ranges and weights fit INT8 better, edge by edge, from statistics of the calibration data; nothing is trained.

Steps, each of which can be left out; those that are made come in this order:

    shift   subtracts the middle of each channel's range: folded into constants at the results of LayerNorms; behind
            a GELU in front of the quantizer, on symmetric grids, and given back in the biases; in attentions see
            `quantkit.network.balancing`
    smooth  evens out the channels in front of each quantizer, in attentions by constants alone; strength by the error
            measured on rows kept for it
    range   chooses each activation's range by that error, instead of by its histogram
    round   rounds weights so that their errors cancel
    bias    adds what rounding and clipping cost on average to the biases

An edge's error is the squared error at the results of its products, over rows that means and moments do not rest on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from quantkit.collect.moments import Moments
from quantkit.errors import InputError, UnknownNameError
from quantkit.network.balancing import Balanced, balance
from quantkit.network.edges import Edge, Vector, find_edges
from quantkit.network.folding import Floats, Folder, middle, reach, scaled, shifted, smoothing_factors
from quantkit.network.heads import find_attentions
from quantkit.network.index import GraphIndex
from quantkit.network.precision import PrecisionPlan, QuantizedWeight
from quantkit.network.ranges import OutputError, full_range
from quantkit.network.refinement import Refinement
from quantkit.network.rounding import round_nearest, round_second_order
from quantkit.qparams import scale_from_amax
from quantkit.tables.table import Entry
from quantkit.types import Progress

SHIFT, SMOOTH, RANGE, ROUND, BIAS = STEPS = ("shift", "smooth", "range", "round", "bias")
STRENGTHS = (0.5, 0.65, 0.8)
"""What is tried. Beyond 0.8 the error of an edge may fall further, and the logits get worse (docs/accuracy.md)."""

RangeOf = Callable[[str, Moments], Entry]
"""The range of an activation by the calibration method: (name, moments) -> entry."""


def parse_steps(text: str) -> tuple[str, ...]:
    """The steps that "all", "none" or names with commas stand for, in their order.

    Raises:
        UnknownNameError: there is no such step.
        InputError: nothing is named.
    """
    names = [part.strip() for part in text.split(",") if part.strip()]
    if not names:
        raise InputError("--refine is empty.", f"Name steps ({', '.join(STEPS)}), all, or none.")
    if unknown := [name for name in names if name not in (*STEPS, "all", "none")]:
        raise UnknownNameError("refinement step", unknown[0], (*STEPS, "all", "none"))
    if names == ["none"]:
        return ()
    if "none" in names:
        raise InputError("--refine names steps and none.", "Leave one of them out.")
    return STEPS if "all" in names else tuple(step for step in STEPS if step in names)


def observed_tensors(index: GraphIndex) -> list[str]:
    """The activations whose moments `refine` needs, in graph order; none where no edge can be refined."""
    wanted = {edge.tensor for edge in find_edges(index)}
    for attention in find_attentions(index) if wanted else ():
        wanted |= {attention.query, attention.key, attention.value, attention.context}
    return [name for name in index.activations if name in wanted]


def refine(
    index: GraphIndex,
    moments: Mapping[str, Moments],
    plan: PrecisionPlan,
    steps: Sequence[str],
    range_of: RangeOf,
    progress: Progress | None = None,
) -> Refinement:
    """Refines all edges of an encoder.

    Args:
        index: of the network with free shapes or fixed ones; names of constants are the same.
        moments: activation -> moments, for all `observed_tensors`; asked for an attention or an edge at a time.
        plan: decides the grid, and whether residual connections read the quantized tensors: those are not smoothed.
            What the plan leaves out is refined all the same, so that plans of one mode and grid share a refinement.
        steps: which of `STEPS` to make.
        range_of: range of an activation that was shifted or smoothed, where the range step is left out.
        progress: told after each edge.
    """
    edges, folder = find_edges(index), Folder(index)
    balanced, entries, summaries = _balanced(index, folder, moments, plan, steps, range_of)
    shifts, centres = dict[str, Floats](), dict[str, Floats]()
    for edge in edges if SHIFT in steps else ():
        centre = middle(moments[edge.tensor])
        if edge.offset:
            folder.shift(edge, centre)
        elif not plan.symmetric or edge.tensor in index.aliases or (plan.places.residual and edge.shared):
            # A zero point does most of it on the other grid. Behind a Reshape no product takes the Add into its kernel.
            continue
        else:
            centres[edge.tensor] = centre
        shifts[edge.tensor] = centre
    results = []
    for edge in edges:
        residual = plan.places.residual and edge.shared
        # One edge's moments at a time: they are as large as a weight, and may lie on disk.
        seen = moments[edge.tensor]
        moved = balanced.get(edge.tensor)
        if moved is not None:
            seen = moved.context(seen)
        if edge.tensor in shifts:
            seen = shifted(seen, shifts[edge.tensor])
        work = _Work(edge, seen, centres.get(edge.tensor), folder, plan.symmetric, steps)
        result = work.run(range_of, smooth=SMOOTH in steps and not residual and moved is None)
        if moved is not None:
            strength = moved.chosen[edge.tensor]
            result = replace(result, summary=result.summary | {"shifted": SHIFT in steps, "strength": strength})
        results.append(result)
        if progress is not None:
            progress(len(results), len(edges))
    return Refinement(
        constants=folder.constants,
        weights={name: weight for result in results for name, weight in result.weights.items()},
        biases={name: bias for result in results for name, bias in result.biases.items()},
        factors={result.tensor: result.factors for result in results if result.factors is not None},
        summands={result.tensor: result.summand for result in results if result.summand is not None},
        entries=entries | {result.tensor: result.entry for result in results if result.entry is not None},
        steps=tuple(step for step in STEPS if step in steps),
        edges=(*(result.summary for result in results), *summaries),
    )


def _balanced(
    index: GraphIndex,
    folder: Folder,
    moments: Mapping[str, Moments],
    plan: PrecisionPlan,
    steps: Sequence[str],
    range_of: RangeOf,
) -> tuple[dict[str, Balanced], dict[str, Entry], list[dict[str, Any]]]:
    """Balances the attentions: context -> what became of its attention; ranges of the products' inputs; summaries."""
    balanced, entries, summaries = dict[str, Balanced](), dict[str, Entry](), list[dict[str, Any]]()
    for attention in find_attentions(index) if {SHIFT, SMOOTH, RANGE} & set(steps) else ():
        done = balanced[attention.context] = balance(attention, folder, moments, steps, plan.symmetric)
        for name, seen in done.moments.items():
            low, high = full_range(seen)
            if low == high:
                continue
            if RANGE in steps:
                entry = refined_entry(*OutputError(seen.sample, [done.readers[name]], True).best_range(low, high))
            else:
                entry = range_of(name, seen)
            entries[name] = entry
            shift = SHIFT in steps and name != attention.query
            strength = done.chosen[name]
            summaries.append(
                {"tensor": name, "shifted": shift, "strength": strength, "low": entry.minimum, "high": entry.maximum}
            )
    return balanced, entries, summaries


@dataclass(frozen=True, eq=False)
class _Result:
    """What became of one edge."""

    tensor: str
    weights: dict[str, QuantizedWeight]
    biases: dict[str, Vector]
    factors: Vector | None
    summand: Vector | None
    entry: Entry | None
    summary: dict[str, Any]


@dataclass(frozen=True, eq=False)
class _Work:
    """One edge after the shift: its moments, what of the shift is no constant of the graph, and the constants."""

    edge: Edge
    moments: Moments
    centre: Floats | None
    folder: Folder
    symmetric: bool
    steps: Sequence[str]

    def run(self, range_of: RangeOf, *, smooth: bool) -> _Result:
        """The steps after the shift."""
        weights = [self.folder.value(reader.product.weight) for reader in self.edge.readers]
        strength, factors = self._smoothing(weights) if smooth else (None, None)
        moments = self.moments if factors is None else scaled(self.moments, factors)
        if factors is not None:
            weights = [weight * factors[:, None] for weight in weights]
        entry = self._entry(moments, weights, range_of, changed=factors is not None or SHIFT in self.steps)
        quantized = self._rounded(weights, moments)
        biases = self._biases(weights, quantized, moments, self._mean_error(moments, weights, entry))
        names = [reader.product.weight for reader in self.edge.readers]
        # What is rounded to the nearest and not smoothed, insert_qdq makes itself.
        kept = factors is not None or ROUND in self.steps
        summary = {
            "tensor": self.edge.tensor,
            "shifted": SHIFT in self.steps and (bool(self.edge.offset) or self.centre is not None),
            "strength": strength,
            "low": None if entry is None else entry.minimum,
            "high": None if entry is None else entry.maximum,
        }
        return _Result(
            self.edge.tensor,
            dict(zip(names, quantized, strict=True)) if kept else {},
            biases,
            None if factors is None else (1 / factors).astype(np.float32),
            self._summand(factors),
            entry,
            summary,
        )

    def _summand(self, factors: Vector | None) -> Vector | None:
        """What is added in front of the quantizer, after the factors."""
        if self.centre is None:
            return None
        return (-self.centre if factors is None else -self.centre / factors).astype(np.float32)

    def _biases(
        self, weights: Sequence[Vector], quantized: Sequence[QuantizedWeight], moments: Moments, error: Floats
    ) -> dict[str, Vector]:
        """What the products' biases take: the shift in front of the quantizer, and what rounding costs on average.

        Args:
            weights: as the quantizer's input meets them.
            quantized: their INT8 forms.
            moments: of the quantizer's input.
            error: (C,), what quantizing changes in the input on average.
        """
        if self.centre is None and BIAS not in self.steps:
            return {}
        biases = {}
        for reader, weight, codes in zip(self.edge.readers, weights, quantized, strict=True):
            taken = np.zeros(weight.shape[1])
            if BIAS in self.steps:
                taken += moments.mean @ (weight.astype(np.float64) - codes.values) - error @ codes.values
            if self.centre is not None:
                taken += self.centre @ self.folder.value(reader.product.weight).astype(np.float64)
            biases[reader.bias] = taken.astype(np.float32)
        return biases

    def _mean_error(self, moments: Moments, weights: Sequence[Vector], entry: Entry | None) -> Floats:
        """What the activation's grid changes in each channel on average, over the kept rows; 0 where it is not known.

        Rounding alone leaves next to nothing. Clipping takes from one side, and the logits drift.
        """
        if entry is None or entry.minimum is None or entry.maximum is None or entry.amax == 0:
            return np.zeros(len(moments.mean))
        low, high = max(entry.minimum, -entry.amax), min(entry.maximum, entry.amax)
        errors = OutputError(moments.sample, weights, self.symmetric).of_rows(min(low, 0.0), max(high, 0.0))
        return np.asarray(errors.mean(axis=0, dtype=np.float64))

    def _smoothing(self, weights: Sequence[Vector]) -> tuple[float | None, Vector | None]:
        """The strength that costs least on the rows kept for it, with its factors; None where none gains anything."""
        moments = self.moments
        weight_reach = np.max([np.abs(weight).max(axis=1) for weight in weights], axis=0).astype(np.float64)
        best: tuple[float | None, Vector | None] = (None, None)
        least = self._cost(moments, weights)
        for strength in STRENGTHS:
            factors = smoothing_factors(reach(moments), weight_reach, strength)
            cost = self._cost(scaled(moments, factors), [weight * factors[:, None] for weight in weights])
            if cost < least:
                best, least = (strength, factors), cost
        return best

    def _cost(self, moments: Moments, weights: Sequence[Vector]) -> float:
        """Error at the products' results from the activation's grid over its full range and from the weights' grids."""
        rows = moments.sample
        error = OutputError(rows, weights, self.symmetric).of_range(*full_range(moments))
        lost = np.concatenate([weight - round_nearest(weight).values for weight in weights], axis=1)
        centred = rows - rows.mean(axis=0) if BIAS in self.steps else rows
        return error + float(np.sum((centred @ lost) ** 2))

    def _entry(self, moments: Moments, weights: Sequence[Vector], range_of: RangeOf, *, changed: bool) -> Entry | None:
        """The range of the activation; None where the table's stays right."""
        if RANGE not in self.steps:
            return range_of(self.edge.tensor, moments) if changed else None
        low, high = full_range(moments)
        if low == high:
            return None
        return refined_entry(*OutputError(moments.sample, weights, self.symmetric).best_range(low, high))

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

"""Makes ranges and weights fit INT8 better, edge by edge, from statistics of the calibration data; nothing is trained.

Steps, each of which can be left out; those that are made come in this order:

    shift   subtracts the middle of each channel's range: folded into constants at the results of LayerNorms; behind
            a GELU in front of the quantizer, on symmetric grids, and given back in the biases; in attentions see
            `quantkit.network.balancing`
    split   copies a hidden layer's widest channels (`quantkit.network.splitting`)
    smooth  evens out the channels in front of each quantizer, in attentions by constants alone; strength by the error
            measured on rows kept for it
    range   chooses each activation's range by that error, instead of by its histogram
    round   rounds weights so that their errors cancel
    bias    adds what rounding and clipping cost on average to the biases

An edge's error is the squared error at the results of its products, over rows that means and moments do not rest on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from quantkit.collect.moments import Moments
from quantkit.errors import InputError, UnknownNameError
from quantkit.network.balancing import Balanced, balance
from quantkit.network.edges import find_edges
from quantkit.network.folding import Floats, Folder, middle, shifted
from quantkit.network.heads import find_attentions
from quantkit.network.index import GraphIndex
from quantkit.network.precision import PrecisionPlan
from quantkit.network.ranges import OutputError, full_range
from quantkit.network.refine_edge import (
    RANGE,
    SHIFT,
    SMOOTH,
    STEPS,
    EdgeWork,
    RangeOf,
    refined_entry,
)
from quantkit.network.refinement import Refinement
from quantkit.tables.table import Entry
from quantkit.types import Progress


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
        work = EdgeWork(edge, seen, centres.get(edge.tensor), folder, plan.symmetric, steps)
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
        channels={result.tensor: result.split.channels for result in results if result.split is not None},
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

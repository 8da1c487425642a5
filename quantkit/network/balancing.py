"""Centres and evens out the channels of query, key and value, whose freedom `quantkit.network.heads` explains.

Everything goes into the projections' constants, so neither the network's function nor its operations change, and a
range that all heads share fits better:

    shift   keys lose the middle of each channel's range. Values lose their mean over the tokens: rounded
            probabilities do not add up to 1, and what is missing or too much is then that much of an average token.
    smooth  query and key are evened out against each other, and the value's channels against the weights behind
    range   by what rounding costs in the scores (query and key) and behind the output projection (value)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from quantkit.collect.moments import Moments
from quantkit.network.edges import Vector
from quantkit.network.folding import Floats, Folder, middle, reach, scaled, shifted, smoothing_factors
from quantkit.network.heads import Attention
from quantkit.network.ranges import OutputError, full_range
from quantkit.network.rounding import round_nearest

EXPONENTS = (0.25, 0.5)
"""Powers of the ratio of the key's reach to the query's that are tried; 0.5 evens them out entirely."""
STRENGTHS = (0.5, 0.65, 0.8)
"""Strengths of the value's smoothing that are tried."""


@dataclass(frozen=True, eq=False)
class Balanced:
    """What became of an attention.

    Attributes:
        moments: query, key and value -> their moments now.
        readers: query, key and value -> matrix (C, outputs) through which an error of theirs is seen.
        centre: float64 (C,), what the context lost.
        factors: float32 (C,), what the context is divided by; None where it is not.
        chosen: query, key, value and context -> strength of the smoothing, for the record.
    """

    moments: Mapping[str, Moments]
    readers: Mapping[str, Vector]
    centre: Floats
    factors: Vector | None
    chosen: Mapping[str, Any] = field(default_factory=dict)

    def context(self, moments: Moments) -> Moments:
        """The moments of the context now, from those before."""
        moved = shifted(moments, self.centre)
        return moved if self.factors is None else scaled(moved, self.factors)


def balance(
    attention: Attention, folder: Folder, moments: Mapping[str, Moments], steps: Collection[str], symmetric: bool
) -> Balanced:
    """Changes an attention's constants in `folder`.

    Args:
        attention: whose.
        folder: the network's constants.
        moments: query, key, value and context -> moments of the network as it was.
        steps: which of the refinement's steps to make; "shift" and "smooth" matter here.
        symmetric: the context's grid is int8 around zero.
    """
    query, key, value, context = (
        moments[name] for name in (attention.query, attention.key, attention.value, attention.context)
    )
    centre = np.zeros(len(context.mean))
    if "shift" in steps:
        offset = middle(key)
        folder.add(attention.key_dense.bias, -offset)
        key = shifted(key, offset)
        centre = value.mean
        folder.add(attention.value_dense.bias, -centre)
        weight = folder.value(attention.output_dense.product.weight)
        folder.add(attention.output_dense.bias, centre @ weight.astype(np.float64))
        value, context = shifted(value, centre), shifted(context, centre)
    exponent, strength, factors = None, None, None
    if "smooth" in steps:
        exponent, evened = _between(query, key, attention.heads)
        if evened is not None:
            folder.scale(attention.query_dense, evened)
            inverse = np.reciprocal(evened)
            folder.scale(attention.key_dense, inverse)
            query, key = scaled(query, inverse), scaled(key, evened)
        weight = folder.value(attention.output_dense.product.weight)
        strength, factors = _behind(value, context, weight, symmetric)
        if factors is not None:
            folder.scale(attention.value_dense, np.reciprocal(factors))
            folder.put(attention.output_dense.product.weight, weight * factors[:, None])
            value = scaled(value, factors)
    return Balanced(
        {attention.query: query, attention.key: key, attention.value: value},
        {
            attention.query: _seen_by_keys(key, attention.heads),
            attention.key: _seen_by_queries(query, attention.heads),
            attention.value: folder.value(attention.output_dense.product.weight),
        },
        centre,
        factors,
        {attention.query: exponent, attention.key: exponent, attention.value: strength, attention.context: strength},
    )


def _between(query: Moments, key: Moments, heads: int) -> tuple[float | None, Vector | None]:
    """The exponent, with its factors for the query, that costs the scores least; None where none gains anything."""

    def cost(factors: Vector) -> float:
        left, right = scaled(query, np.reciprocal(factors)), scaled(key, factors)
        of_query = OutputError(left.sample, [_seen_by_keys(right, heads)], True).of_range(*full_range(left))
        of_key = OutputError(right.sample, [_seen_by_queries(left, heads)], True).of_range(*full_range(right))
        return of_query + of_key

    tiny = float(np.finfo(np.float32).tiny)
    ratio = np.maximum(reach(key), tiny) / np.maximum(reach(query), tiny)
    ratio[(reach(key) <= tiny) | (reach(query) <= tiny)] = 1.0
    return _cheapest({power: (ratio**power).astype(np.float32) for power in EXPONENTS}, cost)


def _behind(value: Moments, context: Moments, weight: Vector, symmetric: bool) -> tuple[float | None, Vector | None]:
    """The strength, with its factors, that costs least behind the output projection; None where none gains anything.

    Errors of values are averaged by the attention, as the values are: their variance tells by how much.
    """
    averaged = float(context.sample.var(axis=0).sum() / max(value.sample.var(axis=0).sum(), np.finfo(np.float32).tiny))

    def cost(factors: Vector) -> float:
        reading = weight * factors[:, None]
        left, right = scaled(value, factors), scaled(context, factors)
        of_value = OutputError(left.sample, [reading], True).of_range(*full_range(left)) / len(left.sample)
        of_context = OutputError(right.sample, [reading], symmetric).of_range(*full_range(right)) / len(right.sample)
        lost = reading - round_nearest(reading).values
        centred = right.sample - right.sample.mean(axis=0)
        return averaged * of_value + of_context + float(np.sum((centred @ lost) ** 2)) / len(centred)

    weight_reach = np.abs(weight).max(axis=1).astype(np.float64)
    return _cheapest({power: smoothing_factors(reach(value), weight_reach, power) for power in STRENGTHS}, cost)


def _cheapest(
    candidates: Mapping[float, Vector], cost: Callable[[Vector], float]
) -> tuple[float | None, Vector | None]:
    best: tuple[float | None, Vector | None] = (None, None)
    least = cost(np.ones(len(next(iter(candidates.values()))), np.float32))
    for power, factors in candidates.items():
        if (found := cost(factors)) < least:
            best, least = (power, factors), found
    return best


def _seen_by_keys(key: Moments, heads: int) -> Vector:
    """Through what an error of the query is seen: what all keys have in common, softmax does not see."""
    return _root_by_heads(key.second_moments(key.mean), heads)


def _seen_by_queries(query: Moments, heads: int) -> Vector:
    """Through what an error of the key is seen."""
    return _root_by_heads(query.second_moments(np.zeros(len(query.mean))), heads)


def _root_by_heads(moments: Floats, heads: int) -> Vector:
    """R with R R^T = the second moments within each head and 0 between heads, float32 (C, C)."""
    size = len(moments) // heads
    root = np.zeros(moments.shape, np.float32)
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        values, vectors = np.linalg.eigh(moments[part, part])
        root[part, part] = vectors * np.sqrt(np.maximum(values, 0))
    return root

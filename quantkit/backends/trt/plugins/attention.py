"""Weights as TensorRT's own attention plugin, CustomQKVToContextPluginDynamic, wants them.

Its versions 2 (packed) and 3 (interleaved) read one product of query, key and value:

    2   (tokens, 3 * width, 1, 1), FP16, or INT8 in the format CHW32; rows head by head: query, key, value of a head
    3   (1, 3 * width, tokens, 1), INT8 in the format CHW32; all heads' queries, then keys, then values

A kernel is made for one width of heads and one longest sentence; the extent of an input without content tells the
plugin which it may take. Scores are scaled by 1 / sqrt(head). INT8 tensors have one scale each, so query, key and value
share theirs, and probabilities have the scale `dq_probs`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

PLUGIN = "CustomQKVToContextPluginDynamic"
PACKED, INTERLEAVED = "2", "3"
"""The versions that are used."""


@dataclass(frozen=True)
class Factors:
    """Numbers that query, key and value are multiplied by, so that what the plugin computes stays what it is.

    Attributes:
        query, key: their product makes up for the plugin's scaling by a wider head.
        value: the output product's weights are divided by it.
    """

    query: float = 1.0
    key: float = 1.0
    value: float = 1.0


def factors(head: int, wide: int, amax: Sequence[float] = ()) -> Factors:
    """The factors for heads of `head` in a kernel for heads of `wide`.

    Args:
        head: width of a head.
        wide: width of the kernel's heads.
        amax: largest magnitudes of query, key and value, for INT8: with these factors all three have the same, so that
            one scale serves them as well as three would.
    """
    rise = float(np.sqrt(wide / head))
    if not amax:
        return Factors(query=rise)
    query, key, value = amax
    shared = float(np.sqrt(query * rise * key))
    return Factors(rise * shared / (query * rise), shared / key, shared / value)


def joint(
    parts: Sequence[npt.NDArray[Any]], heads: int, wide: int, by: Factors, *, by_head: bool
) -> npt.NDArray[np.float32]:
    """Weights or biases of query, key and value as one.

    Args:
        parts: the three, each (heads * head, inputs) or (heads * head,).
        heads: number of heads.
        wide: width of a head in the plugin; rows of zeros fill it up.
        by: factors of the three.
        by_head: rows head by head, as version 2 wants them; else query, key and value side by side.

    Returns:
        (3 * heads * wide, inputs), or (3 * heads * wide,).
    """
    made = []
    for part, factor in zip(parts, (by.query, by.key, by.value), strict=True):
        split = np.asarray(part, np.float32).reshape(heads, -1, *part.shape[1:]) * np.float32(factor)
        made.append(_filled(split, 1, wide))
    stacked = np.stack(made, axis=1 if by_head else 0)
    return np.ascontiguousarray(stacked.reshape(3 * heads * wide, *parts[0].shape[1:]))


def output_weight(weight: npt.NDArray[Any], heads: int, wide: int, by: Factors) -> npt.NDArray[np.float32]:
    """The weight (outputs, heads * head) of the product after attention, for heads filled up to `wide`."""
    split = np.asarray(weight, np.float32).reshape(weight.shape[0], heads, -1) / np.float32(by.value)
    return np.ascontiguousarray(_filled(split, 2, wide).reshape(weight.shape[0], heads * wide))


def _filled(x: npt.NDArray[np.float32], axis: int, extent: int) -> npt.NDArray[np.float32]:
    """`x` with zeros behind, up to an extent."""
    missing = [(0, extent - x.shape[axis] if i == axis else 0) for i in range(x.ndim)]
    return np.pad(x, missing)

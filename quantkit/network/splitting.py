"""Copies of a hidden layer's widest channels, so that they no longer decide the step of all others.

Behind a GELU a few channels in a hundred reach ten times as far as the rest, and their rounding makes most of the
error behind the next product. Nothing lies between the two products of a feed-forward pair but elementwise operations,
so a column of the first product's weight can stand there several times: each copy is computed anew, and the second
product takes the mean of them (outlier channel splitting, Zhao et al. 2019, arXiv:1901.09504). Deviations: channels are
chosen by what their rounding costs behind the second product; the copies of a channel are rounded on grids that lie a
fraction of a step apart, so the mean of m copies has steps of 1/m and not m equal errors; and nothing is copied where
it does not pay, because copies take time.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from quantkit.collect.moments import Moments
from quantkit.network.edges import Vector, find_edges
from quantkit.network.folding import reach
from quantkit.network.index import GraphIndex
from quantkit.network.precision import QuantizedWeight
from quantkit.network.refinement import Refinement
from quantkit.network.rewriting import replace_values

Channels = npt.NDArray[np.int32]
SHARE = 96
"""One channel in so many is added."""
MULTIPLE = 16
"""Channels are added in multiples of this, because kernels work on blocks of them."""


@dataclass(frozen=True, eq=False)
class Split:
    """Channels of which some are copies.

    Attributes:
        channels: int32 (C + added,), which channel each one copies; the first C are the channels themselves.
    """

    channels: Channels

    @cached_property
    def counts(self) -> npt.NDArray[np.int64]:
        """How many there are of each one, itself included, (C + added,)."""
        counts: npt.NDArray[np.int64] = np.bincount(self.channels)[self.channels]
        return counts

    @property
    def shares(self) -> Vector:
        """What each copy counts for behind the next product, float32 (C + added,): 1 / number of copies."""
        shares: Vector = (1 / self.counts).astype(np.float32)
        return shares

    @cached_property
    def offsets(self) -> Vector:
        """By how many steps each copy is moved in front of its quantizer, float32 (C + added,), in (-0.5, 0.5)."""
        order = np.argsort(self.channels, kind="stable")
        number = np.empty(len(order))  # of a copy among those of its channel
        number[order] = np.arange(len(order)) - np.searchsorted(self.channels[order], self.channels[order])
        return ((number + 0.5) / self.counts - 0.5).astype(np.float32)

    def moments(self, moments: Moments) -> Moments:
        """The moments with copies, from those without."""
        at = self.channels
        return replace(
            moments,
            low=moments.low[at],
            high=moments.high[at],
            mean=moments.mean[at],
            gram=moments.gram[np.ix_(at, at)],
            sample=moments.sample[:, at],
        )

    def reading(self, weight: Vector) -> Vector:
        """The weight (C, outputs) that reads the copies: their mean in place of each channel."""
        return weight[self.channels] * self.shares[:, None]


def is_split(channels: Channels) -> bool:
    """Whether channels from a file are all of 0 to C - 1 in order, then copies of some of them."""
    if channels.ndim != 1 or not len(channels):
        return False
    width = int(channels.max()) + 1
    # The length first: a forged number must not decide how much memory is taken.
    return bool(width <= len(channels) and channels.min() >= 0 and np.array_equal(channels[:width], np.arange(width)))


def split(moments: Moments, weights: Sequence[Vector]) -> Split | None:
    """The copies that lower most what rounding costs, one after the other; None where there are too few channels.

    Each goes to the channel whose share of the error, reach^2 |weights|^2 / copies^2, falls most.

    Args:
        moments: of the activation, after the shift.
        weights: what reads it, (C, outputs).
    """
    width = len(moments.mean)
    added = width // SHARE // MULTIPLE * MULTIPLE
    if not added:
        return None
    squares = np.sum([np.square(weight, dtype=np.float64).sum(axis=1) for weight in weights], axis=0)
    cost = reach(moments) ** 2 * squares
    count = np.ones(width)
    for _ in range(added):
        count[np.argmax(cost / count**2 - cost / (count + 1) ** 2)] += 1
    copies = np.repeat(np.arange(width), count.astype(np.int64) - 1)
    return Split(np.concatenate([np.arange(width), copies]).astype(np.int32))


def widen(model: onnx.ModelProto, refinement: Refinement, quantized: Collection[str]) -> Refinement:
    """Puts the copies of a refinement into a model, in place; gives the refinement that goes with it.

    Args:
        model: the network, with the refinement's constants.
        refinement: whose `channels` say what is copied.
        quantized: activations that get a pair; where nothing is quantized, nothing is copied.
    """
    wanted = refinement.channels.keys() & set(quantized)
    if not wanted:
        return refinement
    index = GraphIndex(model.graph)
    weights, biases = dict(refinement.weights), dict(refinement.biases)
    for edge in find_edges(index):
        if edge.tensor not in wanted or edge.source is None:
            continue
        copies = Split(refinement.channels[edge.tensor])
        at = copies.channels
        source = edge.source
        _take(index, source.product.weight, at)
        for name in edge.vectors:
            _take(index, name, at)
        if source.product.weight in weights:
            weight = weights[source.product.weight]
            weights[source.product.weight] = QuantizedWeight(
                np.ascontiguousarray(weight.codes[:, at]), weight.scales[at]
            )
        if source.bias in biases:
            biases[source.bias] = biases[source.bias][at]
        for reader in edge.readers:
            tensor = index.initializers[reader.product.weight]
            replace_values(tensor, copies.reading(numpy_helper.to_array(tensor)))
        for name in edge.between:
            if name in index.info:
                index.info[name].type.tensor_type.shape.dim[-1].dim_value = len(at)
    return replace(refinement, weights=weights, biases=biases)


def _take(index: GraphIndex, name: str, channels: Channels) -> None:
    """Repeats the last dimension of a constant, in place."""
    tensor = index.initializers[name]
    replace_values(tensor, numpy_helper.to_array(tensor)[..., channels])

"""The freedom that attention leaves: query, key and value in other channels, with the same result.

Four changes to the projections' constants leave an attention as it is:

- A vector added to every key: it adds the same to all scores of a query, and softmax does not see that.
- A vector added to every value: probabilities add up to 1, so it comes out of the attention as it went in, and the
  bias of the output projection takes it back.
- A factor on a channel of the query, and its inverse on the key's.
- A factor on a channel of the value, and its inverse on the weights of the output projection that read it.

So channels can be centred and evened out for nothing: no operation is added, as it has to be elsewhere in front of a
quantizer. All of it is found by what nodes do; where something stands between that would not let a change through, the
attention is left alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import onnx
from onnx import numpy_helper

from quantkit.network.edges import Dense, constant, dense_of
from quantkit.network.index import GraphIndex, attribute
from quantkit.network.structure import Products, find_encoder

HIDDEN = -1000.0
"""What a mask puts in a score's place counts as hidden from here on."""


@dataclass(frozen=True)
class Attention:
    """An attention whose projections may be changed.

    Attributes:
        query, key, value: activations (..., C) that only reordering separates from the products; one channel of the
            query meets the same channel of the key, and value and context have the same channels.
        context: what the output projection reads, (..., C).
        query_dense, key_dense, value_dense, output_dense: the projections.
        heads: number of heads; the channels of a head lie side by side.
    """

    query: str
    key: str
    value: str
    context: str
    query_dense: Dense
    key_dense: Dense
    value_dense: Dense
    output_dense: Dense
    heads: int


def find_attentions(index: GraphIndex) -> list[Attention]:
    """The attentions of an encoder that may be changed, in graph order."""
    found = (dense_of(index, product) for product in index.weight_matmuls)
    finder = _Finder(index, {dense.output: dense for dense in found if dense is not None})
    attentions = (finder.attention(pair) for pair in find_encoder(index).products)
    return [attention for attention in attentions if attention is not None]


class _Side(NamedTuple):
    """A projection with its heads: the activation, the projection, (heads, channels a head), where dimensions went."""

    tensor: str
    dense: Dense
    split: tuple[int, int]
    order: tuple[int, ...]


class _Finder:
    """Looks at one attention after the other.

    Args:
        index: of the graph.
        sums: result of a projection, bias included -> the projection.
    """

    def __init__(self, index: GraphIndex, sums: Mapping[str, Dense]) -> None:
        self.index, self.sums = index, sums
        self.nodes = {node.name: node for node in index.graph.node}
        self.outputs = {info.name for info in index.graph.output}

    def attention(self, pair: Products) -> Attention | None:
        """The attention of a pair of products; None where something is not as it has to be."""
        query, key, value = (self._before(tensor) for tensor in (pair.query, pair.key, pair.value))
        if query is None or key is None or value is None or len({query.split, key.split, value.split}) != 1:
            return None
        # (batch, sequence, heads, channels) were dimensions 0 to 3 behind the split.
        if (query.order, key.order, value.order) != ((0, 2, 1, 3), (0, 2, 3, 1), (0, 2, 1, 3)):
            return None
        context = self._behind(self.nodes[pair.context_node].output[0])
        if context is None or not self._adds_up(pair):
            return None
        if len({side.dense.product.node for side in (query, key, value)}) != 3:
            return None
        # So the last extent that the Reshape behind the product makes is that of all heads.
        if int(self.index.initializers[context[1].product.weight].dims[0]) != query.split[0] * query.split[1]:
            return None
        return Attention(
            query=query.tensor,
            key=key.tensor,
            value=value.tensor,
            context=context[0],
            query_dense=query.dense,
            key_dense=key.dense,
            value_dense=value.dense,
            output_dense=context[1],
            heads=query.split[0],
        )

    def _before(self, tensor: str) -> _Side | None:
        """The way back from a product's input to its projection, through one split into heads."""
        order, split, source = [0, 1, 2, 3], None, tensor
        while tensor not in self.sums:
            node = self.index.producer.get(tensor)
            if node is None or self._only_reader(tensor) is None:
                return None
            if node.op_type == "Transpose" and split is None:
                perm = _permutation(node)
                if sorted(perm) != [0, 1, 2, 3]:
                    return None
                order = [perm[i] for i in order]
            elif node.op_type == "Reshape" and split is None:
                split, source = self._split(node), node.input[0]
                if split is None:
                    return None
            elif node.op_type not in ("Mul", "Div") or not self._is_scaling(node, tensor):
                return None
            tensor = next(name for name in node.input if name in self.index.data)
        dense = self.sums[tensor]
        if split is None or self._only_reader(tensor) is None:
            return None
        width = int(self.index.initializers[dense.bias].dims[0])
        return _Side(source, dense, split, tuple(order)) if split[0] * split[1] == width else None

    def _split(self, node: onnx.NodeProto) -> tuple[int, int] | None:
        """Heads and channels a head, the last two of the four extents that a Reshape makes; None where not known."""
        shape = self.index.shape(node.output[0]) or ()
        if len(shape) == 4 and isinstance(shape[2], int) and isinstance(shape[3], int):
            return shape[2], shape[3]
        target = self.index.producer.get(node.input[1])
        tail: list[int] = []
        for name in reversed(target.input) if target is not None and target.op_type == "Concat" else ():
            if name not in self.index.initializers:
                break
            tail = [*numpy_helper.to_array(self.index.initializers[name]).ravel().tolist(), *tail]
        # Extents that are computed, as exporters write it: batch and sequence in front of constants.
        return (int(tail[-2]), int(tail[-1])) if len(tail) == 2 else None

    def _is_scaling(self, node: onnx.NodeProto, output: str) -> bool:
        """Whether a node multiplies or divides its first data input by one constant."""
        constant = next((name for name in node.input if name in self.index.initializers), "")
        return bool(constant) and constant != node.input[0] and _size(self.index, constant) == 1

    def _behind(self, tensor: str) -> tuple[str, Dense] | None:
        """The way on from the second product to the output projection: heads side by side again."""
        after = self._only_reader(tensor)
        if after is None or after.op_type != "Transpose" or _permutation(after) != [0, 2, 1, 3]:
            return None
        joined = self._only_reader(after.output[0])
        if joined is None or joined.op_type != "Reshape":
            return None
        context = joined.output[0]
        found = [dense for dense in self.sums.values() if dense.product.activation == context]
        return (context, found[0]) if len(found) == 1 and self._only_reader(context) is not None else None

    def _only_reader(self, tensor: str) -> onnx.NodeProto | None:
        """The one node that reads a tensor's values, where there is just one."""
        readers = [node for node in self.index.consumers.get(tensor, []) if node.op_type not in ("Shape", "Size")]
        return readers[0] if len(readers) == 1 and tensor not in self.outputs else None

    def _adds_up(self, pair: Products) -> bool:
        """Whether the product's probabilities are those of a softmax over keys, which shifts of all scores pass."""
        softmax = self.index.producer.get(pair.probs)
        if softmax is None or softmax.op_type != "Softmax" or attribute(softmax, "axis", -1) not in (-1, 3):
            return False
        tensor = self.nodes[pair.scores_node].output[0]
        while True:
            node = self._only_reader(tensor)
            if node is None:
                return False
            if node.name == softmax.name:
                return True
            if node.op_type in ("Mul", "Div"):
                if not self._is_scaling(node, tensor):
                    return False
            elif node.op_type == "Where":
                if not self._is_mask(node, tensor):
                    return False
            elif node.op_type != "Add":
                return False
            tensor = node.output[0]

    def _is_mask(self, node: onnx.NodeProto, scores: str) -> bool:
        """Whether a Where keeps scores, or puts constants in their place that no shift makes visible."""
        others = [name for name in node.input[1:] if name != scores]
        if node.input[0] == scores or len(others) != 1 or others[0] not in self.index.initializers:
            return False
        return bool(np.all(constant(self.index, others[0]) <= HIDDEN))


def _size(index: GraphIndex, name: str) -> int:
    return int(np.prod(index.initializers[name].dims))


def _permutation(node: onnx.NodeProto) -> list[int]:
    """Where a Transpose takes its dimensions from; empty where it does not say."""
    return next((list(part.ints) for part in node.attribute if part.name == "perm"), [])

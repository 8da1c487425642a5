"""Finds the encoder layers of a BERT-like graph by what its nodes do, whatever they are called.

A layer is found by its softmax. The product in front of it takes query and key, the one behind it probabilities and
value; the weight matrices met first on the way back from those are the projections, the one met first on the way on is
the attention's output. A feed-forward pair is two dense layers with only elementwise operations between them, whose
result is added to a tensor that does not come from it. What remains (pooler, classifier, heads) belongs to no layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import onnx

from quantkit.network.index import GraphIndex, WeightMatMul

Role = Literal["attention", "attention.output", "ffn"]

PRODUCTS = ("MatMul", "Gemm")
BARRIERS = (*PRODUCTS, "Softmax", "LayerNormalization", "ReduceMean", "ReduceSum", "Gather", "GatherND")
MOVES = ("Reshape", "Transpose", "Identity", "Squeeze", "Unsqueeze", "Flatten", "Split", "Slice", "Gather", "Expand")
SCALES = ("Add", "Sub", "Mul", "Div", "Cast", "Dropout", "Where")


@dataclass(frozen=True)
class Site:
    """A weight product and its place in the encoder."""

    product: WeightMatMul
    layer: int
    role: Role


@dataclass(frozen=True)
class Products:
    """The two attention products of a layer: node names, and their four inputs."""

    layer: int
    scores_node: str
    context_node: str
    query: str
    key: str
    probs: str
    value: str


@dataclass(frozen=True)
class Encoder:
    """What was recognised in a graph.

    Attributes:
        sites: weight products of the layers, in graph order.
        products: attention products, one pair a layer.
        others: weight products outside the layers (pooler, classifier, projections of embeddings).
    """

    sites: tuple[Site, ...]
    products: tuple[Products, ...]
    others: tuple[WeightMatMul, ...]

    @property
    def num_layers(self) -> int:
        """Number of layers found."""
        return len(self.products)


def find_encoder(index: GraphIndex) -> Encoder:
    """The encoder layers of a graph; `num_layers` is 0 when there is no attention in it."""
    finder = _Finder(index)
    products = [pair for node in index.graph.node if node.op_type == "Softmax" and (pair := finder.attention(node))]
    sites: dict[str, Site] = {}
    for layer, pair in enumerate(products):
        for tensor in (pair.query, pair.key, pair.value):
            for product in finder.dense_before(tensor, through=(*MOVES, *SCALES)):
                sites.setdefault(product.node, Site(product, layer, "attention"))
        for product in finder.dense_after(pair.context_node):
            sites.setdefault(product.node, Site(product, layer, "attention.output"))
    starts = [finder.position[pair.context_node] for pair in products]
    for second in index.weight_matmuls:
        if second.node in sites or not finder.has_residual(second):
            continue
        layer = sum(start < finder.position[second.node] for start in starts) - 1
        first = [p for p in finder.dense_before(second.activation) if p.node not in sites]
        if layer >= 0 and first:
            sites.update((product.node, Site(product, layer, "ffn")) for product in (*first, second))
    numbered = [
        Products(i, p.scores_node, p.context_node, p.query, p.key, p.probs, p.value) for i, p in enumerate(products)
    ]
    ordered = tuple(sites[p.node] for p in index.weight_matmuls if p.node in sites)
    return Encoder(ordered, tuple(numbered), tuple(p for p in index.weight_matmuls if p.node not in sites))


class _Finder:
    """Walks over a graph's data edges."""

    def __init__(self, index: GraphIndex) -> None:
        self.index = index
        self.position = {node.name: i for i, node in enumerate(index.graph.node)}
        self.dense = {product.node: product for product in index.weight_matmuls}
        self.pairs = {node.name for node in index.data_matmuls}

    def attention(self, softmax: onnx.NodeProto) -> Products | None:
        """The products in front of and behind a softmax, or None when it is not an attention's."""
        before = self._first_products(softmax.input[0], self._backward, (*MOVES, *SCALES))
        after = self._first_products(softmax.output[0], self._forward, (*MOVES, *SCALES))
        scores = [node for node in before if node.name in self.pairs]
        context = [node for node in after if node.name in self.pairs]
        if not scores or not context:
            return None
        first, second = scores[0], context[0]
        return Products(0, first.name, second.name, first.input[0], first.input[1], second.input[0], second.input[1])

    def dense_before(self, tensor: str, through: Iterable[str] | None = None) -> list[WeightMatMul]:
        """Weight products met first on the way back from a tensor; through every operation that is no barrier."""
        found = self._first_products(tensor, self._backward, through)
        return [self.dense[node.name] for node in found if node.name in self.dense]

    def dense_after(self, node_name: str) -> list[WeightMatMul]:
        """Weight products met first on the way on from a node's result, through reordering only."""
        output = self.index.graph.node[self.position[node_name]].output[0]
        found = self._first_products(output, self._forward, (*MOVES, "Cast", "Dropout"))
        return [self.dense[node.name] for node in found if node.name in self.dense]

    def has_residual(self, product: WeightMatMul) -> bool:
        """Whether a product's result (plus bias) is added to a tensor that does not come from it."""
        frontier, seen = [product.output], set[str]()
        while frontier:
            tensor = frontier.pop()
            for node in self.index.consumers.get(tensor, ()):
                others = [name for name in node.input if name in self.index.data and name != tensor]
                if node.op_type == "Add" and others:
                    if not self._comes_from(others[0], product.output):
                        return True
                elif node.op_type in (*MOVES, "Add", "Cast", "Dropout") and node.output[0] not in seen:
                    seen.add(node.output[0])
                    frontier.append(node.output[0])
        return False

    def _comes_from(self, tensor: str, source: str) -> bool:
        """Whether there is a way from `source` to `tensor`."""
        frontier, seen = [tensor], {tensor}
        floor = self.position[self.index.producer[source].name]
        while frontier:
            name = frontier.pop()
            if name == source:
                return True
            node = self.index.producer.get(name)
            if node is None or self.position[node.name] < floor:
                continue
            fresh = [n for n in node.input if n in self.index.data and n not in seen]
            seen.update(fresh)
            frontier.extend(fresh)
        return False

    def _first_products(
        self, tensor: str, step: Callable[[str], Iterable[onnx.NodeProto]], through: Iterable[str] | None
    ) -> list[onnx.NodeProto]:
        """MatMul and Gemm nodes met first when walking from a tensor, in graph order."""
        allowed = None if through is None else frozenset(through)
        found: dict[str, onnx.NodeProto] = {}
        frontier, seen = [tensor], {tensor}
        while frontier:
            name = frontier.pop()
            for node in step(name):
                if node.op_type in PRODUCTS:
                    found[node.name] = node
                    continue
                passes = node.op_type in allowed if allowed is not None else node.op_type not in BARRIERS
                ends = node.output if step == self._forward else node.input
                fresh = [n for n in ends if passes and n in self.index.data and n not in seen]
                seen.update(fresh)
                frontier.extend(fresh)
        return sorted(found.values(), key=lambda node: self.position[node.name])

    def _backward(self, tensor: str) -> Iterable[onnx.NodeProto]:
        """The node that makes a tensor."""
        node = self.index.producer.get(tensor)
        return () if node is None else (node,)

    def _forward(self, tensor: str) -> Iterable[onnx.NodeProto]:
        """The nodes that read a tensor."""
        return self.index.consumers.get(tensor, ())

"""Who makes and who reads each tensor of an ONNX graph, and which tensors depend on the data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import onnx
from onnx import AttributeProto, TensorProto

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
ALIASING = ("Reshape", "Transpose", "Identity", "Squeeze", "Unsqueeze", "Flatten")
"""Operators whose result holds the very values of their first input, each once, in some order."""


class WeightMatMul(NamedTuple):
    """A product of an activation with a constant matrix, or a convolution with a constant kernel.

    Attributes:
        node: name of the MatMul, Gemm or Conv.
        activation: tensor on the left.
        weight: initializer on the right, (inputs, outputs), or (outputs, inputs) for a Gemm with transB; of a Conv
            (outputs, inputs / groups, kernel...).
        output: tensor it makes.
    """

    node: str
    activation: str
    weight: str
    output: str


@dataclass(frozen=True)
class GraphIndex:
    """Lookups over a graph; the graph must not change while it is used. Subgraphs (If, Loop) are opaque."""

    graph: onnx.GraphProto

    @cached_property
    def producer(self) -> dict[str, onnx.NodeProto]:
        """Tensor -> the node that makes it."""
        return {name: node for node in self.graph.node for name in node.output if name}

    @cached_property
    def consumers(self) -> dict[str, list[onnx.NodeProto]]:
        """Tensor -> the nodes that read it, each once, in graph order."""
        readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.graph.node:
            for name in dict.fromkeys(reads(node)):
                readers.setdefault(name, []).append(node)
        return readers

    @cached_property
    def initializers(self) -> dict[str, onnx.TensorProto]:
        """Name -> constant."""
        return {tensor.name: tensor for tensor in self.graph.initializer}

    @cached_property
    def info(self) -> dict[str, onnx.ValueInfoProto]:
        """Tensor -> what the graph says of its type and shape (inputs, outputs and value_info)."""
        return {
            info.name: info for part in (self.graph.value_info, self.graph.input, self.graph.output) for info in part
        }

    @cached_property
    def inputs(self) -> tuple[onnx.ValueInfoProto, ...]:
        """The inputs that a caller feeds (old models list constants among the inputs)."""
        return tuple(info for info in self.graph.input if info.name not in self.initializers)

    @cached_property
    def data(self) -> frozenset[str]:
        """Tensors whose values depend on the values fed, not only on their shapes."""
        found = {info.name for info in self.inputs}
        for node in self.graph.node:
            if node.op_type not in ("Shape", "Size") and any(name in found for name in reads(node)):
                found.update(name for name in node.output if name)
        return frozenset(found)

    @cached_property
    def activations(self) -> list[str]:
        """Floating-point tensors that nodes compute from the data, in topological order."""
        names = (name for node in self.graph.node for name in node.output if name in self.data)
        return [name for name in names if self.dtype(name) in FLOATS]

    @cached_property
    def aliases(self) -> dict[str, str]:
        """Activation that only reorders or renames another -> that other, followed to its source."""
        sources: dict[str, str] = {}
        activations = set(self.activations)
        for node in self.graph.node:
            if node.op_type in ALIASING and {node.input[0], node.output[0]} <= activations:
                sources[node.output[0]] = sources.get(node.input[0], node.input[0])
        return sources

    @cached_property
    def weight_matmuls(self) -> list[WeightMatMul]:
        """Every MatMul and Gemm of an activation with a constant float32 matrix, in graph order."""
        return [
            WeightMatMul(node.name, node.input[0], node.input[1], node.output[0])
            for node in self.graph.node
            if node.op_type in ("MatMul", "Gemm")
            and node.input[0] in self.data
            and not attribute(node, "transA", 0)
            and (weight := self.initializers.get(node.input[1])) is not None
            and len(weight.dims) == 2
            and weight.data_type == TensorProto.FLOAT
        ]

    @cached_property
    def convolutions(self) -> list[WeightMatMul]:
        """Every Conv of an activation with a constant float32 kernel, in graph order."""
        return [
            WeightMatMul(node.name, node.input[0], node.input[1], node.output[0])
            for node in self.graph.node
            if node.op_type == "Conv"
            and node.input[0] in self.data
            and (weight := self.initializers.get(node.input[1])) is not None
            and weight.data_type == TensorProto.FLOAT
        ]

    @cached_property
    def data_matmuls(self) -> list[onnx.NodeProto]:
        """Every MatMul of two activations (the attention's products), in graph order."""
        return [n for n in self.graph.node if n.op_type == "MatMul" and all(name in self.data for name in n.input)]

    def dtype(self, name: str) -> int:
        """ONNX element type, 0 when unknown."""
        return int(self.info[name].type.tensor_type.elem_type) if name in self.info else 0

    def shape(self, name: str) -> tuple[int | str, ...] | None:
        """Extents (or names, "" when unknown) of a tensor's dimensions; None when not even their number is known."""
        if name in self.initializers:
            return tuple(self.initializers[name].dims)
        if name not in self.info or not self.info[name].type.tensor_type.HasField("shape"):
            return None
        dims = self.info[name].type.tensor_type.shape.dim
        return tuple(d.dim_value if d.HasField("dim_value") else d.dim_param for d in dims)


def reads(node: onnx.NodeProto) -> Iterator[str]:
    """Names of the tensors that a node reads, those of outer scopes that its subgraphs read included."""
    yield from (name for name in node.input if name)
    for attr in node.attribute:
        for graph in [attr.g] if attr.type == AttributeProto.GRAPH else attr.graphs:
            inner = {name for n in graph.node for name in n.output} | {t.name for t in graph.initializer}
            inner |= {info.name for info in graph.input}
            yield from (name for n in graph.node for name in reads(n) if name not in inner)
            yield from (info.name for info in graph.output if info.name not in inner)


def attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    """A whole-number attribute of a node."""
    return next((int(attr.i) for attr in node.attribute if attr.name == name), default)


def has_subgraph(node: onnx.NodeProto) -> bool:
    """Whether a node carries graphs of its own (If, Loop, Scan)."""
    return any(attr.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for attr in node.attribute)

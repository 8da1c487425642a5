"""Edges from an activation to the weight products that read it: where ranges, weights and biases can be refined.

An edge takes part when every one of its products is a MatMul with a weight of its own and a bias behind it, so that
what is done to the activation can be undone in the weight and the bias. Where the activation is the result of a
LayerNorm, its last summand is a vector of constants, and each channel can be shifted: the products that read it and the
residual connections get the shift back through biases. All of it is found by what nodes do, never by their names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from quantkit.network.index import GraphIndex, WeightMatMul
from quantkit.network.rewriting import replace_values
from quantkit.network.structure import find_encoder

Vector = npt.NDArray[np.float32]
ELEMENTWISE = (
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Erf",
    "Tanh",
    "Relu",
    "Gelu",
    "FastGelu",
    "Sigmoid",
    "Identity",
    "Pow",
    "Cast",
)
"""Operators that keep channels apart, as feed-forward pairs have them between their products."""


@dataclass(frozen=True)
class Dense:
    """A weight product and the bias that is added to its result.

    Attributes:
        product: the MatMul.
        bias: initializer (outputs,) read by nothing else.
        output: the sum.
    """

    product: WeightMatMul
    bias: str
    output: str


@dataclass(frozen=True)
class Edge:
    """An activation and the weight products that read it.

    Attributes:
        tensor: the activation, (..., C).
        readers: the products, in graph order.
        offset: initializer (C,) that is the activation's last summand; "" where it cannot be shifted.
        residuals: products to whose results the activation is added; their biases take a shift back.
        shared: whether something else than the readers reads the activation.
        source: the product that the activation comes from through elementwise operations only, each channel from its
            own, where nothing else reads what lies between; None where there is none.
        between: tensors from the source's result to the activation, both included; empty without a source.
        vectors: initializers that meet them channel by channel, the source's bias among them.
    """

    tensor: str
    readers: tuple[Dense, ...]
    offset: str = ""
    residuals: tuple[Dense, ...] = ()
    shared: bool = False
    source: Dense | None = None
    between: tuple[str, ...] = ()
    vectors: tuple[str, ...] = ()


def find_edges(index: GraphIndex) -> list[Edge]:
    """The edges of an encoder's weight products, in graph order; those of which a product has no bias are left out."""
    groups: dict[str, list[Dense | None]] = {}
    for site in find_encoder(index).sites:
        groups.setdefault(site.product.activation, []).append(dense_of(index, site.product))
    found = (dense_of(index, product) for product in index.weight_matmuls)
    sums = {dense.output: dense for dense in found if dense is not None}
    edges = []
    for tensor, group in groups.items():
        readers = tuple(dense for dense in group if dense is not None)
        if len(readers) == len(group):
            offset, residuals = _shift_of(index, tensor, readers, sums)
            reading = {dense.product.node for dense in readers}
            shared = any(node.name not in reading for node in index.consumers[tensor])
            source = None if shared else _source_of(index, tensor, sums)
            edges.append(Edge(tensor, readers, offset, residuals, shared, *(source or ())))
    return edges


def dense_of(index: GraphIndex, product: WeightMatMul) -> Dense | None:
    """The product with its bias; None where the weight or the bias has other readers too, or the node is a Gemm."""
    node = index.producer[product.output]
    after = index.consumers.get(product.output, [])
    if node.op_type != "MatMul" or len(index.consumers[product.weight]) != 1 or len(after) != 1:
        return None
    bias = next((name for name in after[0].input if name in index.initializers), "")
    width = int(index.initializers[product.weight].dims[1])
    if after[0].op_type != "Add" or not _is_own_vector(index, bias, width) or _is_output(index, product.output):
        return None
    return Dense(product, bias, after[0].output[0])


def constant(index: GraphIndex, name: str) -> Vector:
    """The values of an initializer, float32."""
    return np.asarray(numpy_helper.to_array(index.initializers[name]), np.float32)


def with_constants(proto: onnx.ModelProto, constants: Mapping[str, Vector]) -> onnx.ModelProto:
    """A copy of a model in which some initializers have other values."""
    model = onnx.ModelProto()
    model.CopyFrom(proto)
    for tensor in model.graph.initializer:
        if tensor.name in constants:
            replace_values(tensor, constants[tensor.name])
    return model


def _shift_of(
    index: GraphIndex, tensor: str, readers: tuple[Dense, ...], sums: Mapping[str, Dense]
) -> tuple[str, tuple[Dense, ...]]:
    """The offset of a tensor and the residuals that take a shift back; ("", ()) where it cannot be shifted."""
    node = index.producer.get(tensor)
    if node is None or node.op_type not in ("LayerNormalization", "Add") or _is_output(index, tensor):
        return "", ()
    width = int(index.initializers[readers[0].product.weight].dims[0])
    candidates = node.input[2:3] if node.op_type == "LayerNormalization" else node.input
    offset = next((name for name in candidates if _is_own_vector(index, name, width)), "")
    reading = {dense.product.node for dense in readers}
    residuals = []
    for consumer in index.consumers[tensor]:
        if consumer.name in reading:
            continue
        others = [name for name in consumer.input if name != tensor]
        other = others[0] if len(others) == 1 and consumer.op_type == "Add" else ""
        if other not in sums or len(index.consumers[other]) != 1 or _is_output(index, other):
            return "", ()
        residuals.append(sums[other])
    return (offset, tuple(residuals)) if offset else ("", ())


def _source_of(
    index: GraphIndex, tensor: str, sums: Mapping[str, Dense]
) -> tuple[Dense, tuple[str, ...], tuple[str, ...]] | None:
    """`Edge.source`, `between` and `vectors` of a tensor; None where channels cannot be copied."""
    sources, vectors, between, frontier = set[str](), list[str](), {tensor}, [tensor]
    while frontier:
        name = frontier.pop()
        if name in sums:
            sources.add(name)
            continue
        node = index.producer.get(name)
        if node is None or node.op_type not in ELEMENTWISE or len(node.output) != 1:
            return None
        for read in node.input:
            if read in index.data:
                if read not in between:
                    between.add(read)
                    frontier.append(read)
            elif (extents := index.shape(read)) is None or read not in index.initializers:
                return None
            elif any(extent != 1 for extent in extents):
                vectors.append(read)
    if len(sources) != 1:
        return None
    source = sums[sources.pop()]
    width = int(index.initializers[source.product.weight].dims[1])
    inside = {index.producer[name].name for name in between}
    readers = {node.name for name in between - {tensor} for node in index.consumers[name]}
    if readers - inside or any(_is_output(index, name) for name in between):
        return None
    if not all(_is_own_vector(index, name, width) for name in vectors):
        return None
    between.add(source.product.output)
    return source, tuple(name for name in index.activations if name in between), (*vectors, source.bias)


def _is_own_vector(index: GraphIndex, name: str, width: int) -> bool:
    """Whether a name is that of a float32 vector of constants that one node alone reads."""
    tensor = index.initializers.get(name)
    if tensor is None or tensor.data_type != onnx.TensorProto.FLOAT or list(tensor.dims) != [width]:
        return False
    return len(index.consumers[name]) == 1


def _is_output(index: GraphIndex, tensor: str) -> bool:
    """Whether a tensor is a result of the graph."""
    return any(info.name == tensor for info in index.graph.output)

"""Edges from an activation to the weight products that read it: what can be moved across them without a change.

An edge takes part when every one of its products is a MatMul with a weight of its own and a bias behind it, so that
what is done to the activation can be undone in the weight and the bias. Two kinds of activations can be changed:

- The result of a LayerNorm: its last summand is a vector of constants, so each channel can be shifted. The residual
  connections that read it too get the shift back through the bias of the product on their other side. A factor a
  channel would change the residual sum, so there is none.
- The context of the attention: rows of probabilities sum to 1, so a shift of the value's bias is a shift of the
  context, and a factor on the value's columns is one on the context's channels.

A GELU passes neither on. All of it is found by what the nodes do, never by their names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from quantkit.network.index import GraphIndex, WeightMatMul
from quantkit.network.structure import MOVES, Products, find_encoder

Vector = npt.NDArray[np.float32]
PASSING = tuple(op for op in MOVES if op not in ("Split", "Slice", "Gather", "Expand"))
"""Operations behind which every value of their input is still there once."""


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
        layer: number of the encoder layer they belong to.
        offset: initializer (C,) that is the activation's last summand; "" where it cannot be shifted.
        residuals: products to whose results the activation is added; their biases take a shift back.
        source: product whose columns are the activation's channels up to a weighted mean over the tokens; None where
            there is no such product, and so no factor.
    """

    tensor: str
    readers: tuple[Dense, ...]
    layer: int
    offset: str = ""
    residuals: tuple[Dense, ...] = ()
    source: Dense | None = None


def find_edges(index: GraphIndex) -> list[Edge]:
    """The edges of an encoder's weight products, in graph order; those of which a product has no bias are left out."""
    encoder = find_encoder(index)
    dense = {product.output: dense_of(index, product) for product in index.weight_matmuls}
    groups: dict[str, list[tuple[int, Dense | None]]] = {}
    for site in encoder.sites:
        groups.setdefault(site.product.activation, []).append((site.layer, dense[site.product.output]))
    sums = {found.output: found for found in dense.values() if found is not None}
    edges = []
    for tensor, group in groups.items():
        readers = tuple(found for _, found in group if found is not None)
        if len(readers) < len(group):
            continue
        edge = Edge(tensor, readers, group[0][0])
        edges.append(_norm_edge(index, edge, sums) or _context_edge(index, edge, sums, encoder.products) or edge)
    return edges


def dense_of(index: GraphIndex, product: WeightMatMul) -> Dense | None:
    """The product with its bias; None where the weight or the bias has other readers too, or the node is a Gemm."""
    node = index.producer[product.output]
    after = index.consumers.get(product.output, [])
    if node.op_type != "MatMul" or len(index.consumers[product.weight]) != 1 or len(after) != 1:
        return None
    bias = next((name for name in after[0].input if name in index.initializers), "")
    width = index.initializers[product.weight].dims[1]
    if after[0].op_type != "Add" or not _own_vector(index, bias, width):
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
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(constants[tensor.name]), tensor.name))
    return model


def _own_vector(index: GraphIndex, name: str, width: int) -> bool:
    """Whether a name is that of a float32 vector of constants that one node alone reads."""
    tensor = index.initializers.get(name)
    vector = tensor is not None and tensor.data_type == onnx.TensorProto.FLOAT and list(tensor.dims) == [width]
    return vector and len(index.consumers[name]) == 1


def _norm_edge(index: GraphIndex, edge: Edge, sums: Mapping[str, Dense]) -> Edge | None:
    """The edge with its offset and residuals, where its tensor ends in a vector that is added."""
    node = index.producer.get(edge.tensor)
    width = index.initializers[edge.readers[0].product.weight].dims[0]
    if node is None or node.op_type not in ("LayerNormalization", "Add") or edge.tensor in _outputs(index):
        return None
    candidates = node.input[2:3] if node.op_type == "LayerNormalization" else node.input
    offset = next((name for name in candidates if _own_vector(index, name, width)), "")
    reading = {reader.product.node for reader in edge.readers}
    residuals = []
    for consumer in index.consumers.get(edge.tensor, ()):
        if consumer.name in reading:
            continue
        others = [name for name in consumer.input if name != edge.tensor]
        if consumer.op_type != "Add" or len(others) != 1 or others[0] not in sums:
            return None
        if index.consumers[others[0]] != [consumer] or others[0] in _outputs(index):
            return None
        residuals.append(sums[others[0]])
    return Edge(edge.tensor, edge.readers, edge.layer, offset, tuple(residuals)) if offset else None


def _context_edge(
    index: GraphIndex, edge: Edge, sums: Mapping[str, Dense], pairs: tuple[Products, ...]
) -> Edge | None:
    """The edge with the product that gives the values, where its tensor is the context of an attention."""
    behind = _back(index, edge.tensor)
    pair = next((p for p in pairs if index.producer[behind].name == p.context_node), None)
    if pair is None or index.producer[pair.probs].op_type != "Softmax":
        return None
    source = sums.get(_back(index, pair.value))
    if source is None or index.initializers[source.product.weight].dims[1] != _width(index, edge):
        return None
    if not (_private(index, edge.tensor, behind) and _private(index, pair.value, source.output)):
        return None
    if [node.name for node in index.consumers[pair.value]] != [pair.context_node]:
        return None
    reading = {reader.product.node for reader in edge.readers}
    if {node.name for node in index.consumers[edge.tensor]} != reading:
        return None
    return Edge(edge.tensor, edge.readers, edge.layer, source.bias, (), source)


def _width(index: GraphIndex, edge: Edge) -> int:
    return int(index.initializers[edge.readers[0].product.weight].dims[0])


def _outputs(index: GraphIndex) -> set[str]:
    return {info.name for info in index.graph.output}


def _back(index: GraphIndex, tensor: str) -> str:
    """The tensor that another only reorders, at the end of the chain."""
    while (node := index.producer.get(tensor)) is not None and node.op_type in PASSING:
        tensor = node.input[0]
    return tensor


def _private(index: GraphIndex, tensor: str, source: str) -> bool:
    """Whether nothing else reads what lies between a tensor and its source, the source included."""
    outputs = _outputs(index)
    while tensor != source:
        tensor = index.producer[tensor].input[0]
        if len(index.consumers[tensor]) != 1 or tensor in outputs:
            return False
    return True

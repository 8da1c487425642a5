"""Builds ONNX (opset 17: the first with LayerNormalization) and knows every tensor's shape while doing so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from quantkit.network.bert import build_bert
from quantkit.network.builder import Dim
from quantkit.network.checkpoint import Weights
from quantkit.network.config import BertConfig
from quantkit.network.weights import Head
from quantkit.types import Array

OPSET = 17
IR_VERSION = 8  # the IR version that came with opset 17; older runtimes refuse newer ones

Shape = tuple[Dim, ...]


@dataclass(frozen=True)
class Tensor:
    """Handle of a tensor: its name, its shape (a changing dimension by name) and its ONNX element type."""

    name: str
    shape: Shape
    dtype: int = TensorProto.FLOAT


@dataclass
class OnnxBuilder:
    """`GraphBuilder` whose graph is an onnx.ModelProto with the shape of every tensor in value_info.

    Raises:
        ValueError: a name is used twice, or shapes do not fit; a defect of the definition, not of the user's input.
    """

    name: str = "bert"
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    computed: list[Tensor] = field(default_factory=list)
    taken: set[str] = field(default_factory=set)
    proto: onnx.ModelProto = field(default_factory=onnx.ModelProto)
    """The model, with its constants only: a graph that is put into a model later is copied, weights and all."""

    def model(self) -> onnx.ModelProto:
        """The finished model; asked for once."""
        outputs = {tensor.name for tensor in self.outputs}
        model, graph = self.proto, self.proto.graph
        model.ir_version, model.producer_name = IR_VERSION, "quantkit"
        model.opset_import.append(helper.make_opsetid("", OPSET))
        graph.name = self.name
        graph.node.extend(self.nodes)
        graph.input.extend(_info(t) for t in self.inputs)
        graph.output.extend(_info(t) for t in self.outputs)
        graph.value_info.extend(_info(t) for t in self.computed if t.name not in outputs)
        return model

    def input(self, name: str, shape: Sequence[Dim]) -> Tensor:
        """See `GraphBuilder.input`."""
        self._take(name)
        self.inputs.append(Tensor(name, tuple(shape), TensorProto.INT64))
        return self.inputs[-1]

    def output(self, x: Tensor) -> None:
        """See `GraphBuilder.output`."""
        self.outputs.append(x)

    def constant(self, name: str, value: Array) -> Tensor:
        """See `GraphBuilder.constant`."""
        self._take(name)
        # from_array keeps no reference and writes raw little-endian bytes; ascontiguousarray would make scalars 1-D.
        self.proto.graph.initializer.append(numpy_helper.from_array(np.asarray(value, order="C"), name))
        return Tensor(name, tuple(value.shape), helper.np_dtype_to_tensor_dtype(value.dtype))

    def prefix(self, table: Tensor, like: Tensor, axis: int, *, name: str) -> Tensor:
        """See `GraphBuilder.prefix`: Shape of one dimension, then Slice; folded to a constant by `Network.fixed`."""
        extent = self._node("Shape", [like], f"{name}.extent", (1,), TensorProto.INT64, start=axis, end=axis + 1)
        zero = self.constant(f"{name}.start", np.zeros(1, np.int64))
        axes = self.constant(f"{name}.axis", np.array([axis], np.int64))
        shape = (*table.shape[:axis], like.shape[axis], *table.shape[axis + 1 :])
        return self._node("Slice", [table, zero, extent, axes], name, shape)

    def cast_float(self, x: Tensor, *, name: str) -> Tensor:
        """See `GraphBuilder.cast_float`."""
        return self._node("Cast", [x], name, x.shape, to=TensorProto.FLOAT)

    def gather(self, table: Tensor, indices: Tensor, *, name: str) -> Tensor:
        """See `GraphBuilder.gather`."""
        return self._node("Gather", [table, indices], name, (*indices.shape, *table.shape[1:]), axis=0)

    def select(self, x: Tensor, index: int, axis: int, *, name: str) -> Tensor:
        """See `GraphBuilder.select`: Gather with an index that has no dimensions."""
        position = self.constant(f"{name}.index", np.array(index, np.int64))
        return self._node("Gather", [x, position], name, (*x.shape[:axis], *x.shape[axis + 1 :]), axis=axis)

    def matmul(self, a: Tensor, b: Tensor, *, name: str) -> Tensor:
        """See `GraphBuilder.matmul`."""
        if a.shape[-1] != b.shape[-2]:
            raise ValueError(f"{name}: {a.shape} @ {b.shape}")
        leading = _broadcast(a.shape[:-2], b.shape[:-2], name)
        return self._node("MatMul", [a, b], name, (*leading, a.shape[-2], b.shape[-1]))

    def add(self, a: Tensor, b: Tensor, *, name: str) -> Tensor:
        """See `GraphBuilder.add`."""
        return self._node("Add", [a, b], name, _broadcast(a.shape, b.shape, name))

    def sub(self, a: Tensor, b: Tensor, *, name: str) -> Tensor:
        """See `GraphBuilder.sub`."""
        return self._node("Sub", [a, b], name, _broadcast(a.shape, b.shape, name))

    def mul(self, a: Tensor, b: Tensor, *, name: str) -> Tensor:
        """See `GraphBuilder.mul`."""
        return self._node("Mul", [a, b], name, _broadcast(a.shape, b.shape, name))

    def div(self, a: Tensor, b: Tensor, *, name: str) -> Tensor:
        """See `GraphBuilder.div`."""
        return self._node("Div", [a, b], name, _broadcast(a.shape, b.shape, name))

    def reshape(self, x: Tensor, shape: Sequence[int], *, name: str) -> Tensor:
        """See `GraphBuilder.reshape`."""
        target = self.constant(f"{name}.shape", np.array(shape, np.int64))
        return self._node("Reshape", [x, target], name, _reshaped(x.shape, shape, name))

    def transpose(self, x: Tensor, perm: Sequence[int], *, name: str) -> Tensor:
        """See `GraphBuilder.transpose`."""
        return self._node("Transpose", [x], name, tuple(x.shape[d] for d in perm), perm=list(perm))

    def softmax(self, x: Tensor, *, name: str) -> Tensor:
        """See `GraphBuilder.softmax`."""
        return self._node("Softmax", [x], name, x.shape, axis=-1)

    def layer_norm(self, x: Tensor, gamma: Tensor, beta: Tensor, eps: float, *, name: str) -> Tensor:
        """See `GraphBuilder.layer_norm`."""
        return self._node("LayerNormalization", [x, gamma, beta], name, x.shape, axis=-1, epsilon=eps)

    def erf(self, x: Tensor, *, name: str) -> Tensor:
        """See `GraphBuilder.erf`."""
        return self._node("Erf", [x], name, x.shape)

    def tanh(self, x: Tensor, *, name: str) -> Tensor:
        """See `GraphBuilder.tanh`."""
        return self._node("Tanh", [x], name, x.shape)

    def relu(self, x: Tensor, *, name: str) -> Tensor:
        """See `GraphBuilder.relu`."""
        return self._node("Relu", [x], name, x.shape)

    def _node(
        self,
        op: str,
        inputs: Sequence[Tensor],
        name: str,
        shape: Shape,
        dtype: int = TensorProto.FLOAT,
        **attributes: Any,
    ) -> Tensor:
        """Adds a node that is called like its only result."""
        self._take(name)
        self.nodes.append(helper.make_node(op, [x.name for x in inputs], [name], name=name, **attributes))
        self.computed.append(Tensor(name, shape, dtype))
        return self.computed[-1]

    def _take(self, name: str) -> None:
        """Marks a name as used."""
        if name in self.taken:
            raise ValueError(f"the tensor name {name!r} is used twice")
        self.taken.add(name)


def build_bert_onnx(
    config: BertConfig,
    weights: Weights,
    batch: int | None = None,
    seq_len: int | None = None,
    *,
    head: Head = "classifier",
) -> onnx.ModelProto:
    """BERT as an ONNX model; `batch` and `seq_len` are extents, or None for the dimensions "batch" and "sequence"."""
    builder = OnnxBuilder()
    build_bert(builder, config, weights, batch=batch, seq_len=seq_len, head=head)
    return builder.model()


def _info(tensor: Tensor) -> onnx.ValueInfoProto:
    """Type and shape of a tensor as ONNX writes them."""
    return helper.make_tensor_value_info(tensor.name, tensor.dtype, list(tensor.shape))


def _broadcast(a: Shape, b: Shape, name: str) -> Shape:
    """Shape of an elementwise result."""
    rank = max(len(a), len(b))
    pairs = zip((1,) * (rank - len(a)) + a, (1,) * (rank - len(b)) + b, strict=True)
    shape = []
    for left, right in pairs:
        if left != right and left != 1 and right != 1:
            raise ValueError(f"{name}: {a} and {b} cannot be broadcast")
        shape.append(right if left == 1 else left)
    return tuple(shape)


def _reshaped(shape: Shape, target: Sequence[int], name: str) -> Shape:
    """Shape after a Reshape with 0 (keep) and at most one -1 (what is left), with dimensions that have only a name."""
    kept: list[Dim] = [shape[d] if extent == 0 else extent for d, extent in enumerate(target)]
    fixed, given = [d for d in kept if d != -1], list(shape)
    for dim in [d for d in fixed if isinstance(d, str)]:
        given.remove(dim)
    names = [d for d in given if isinstance(d, str)]
    have = int(np.prod([d for d in given if isinstance(d, int)]))
    need = int(np.prod([d for d in fixed if isinstance(d, int)]))
    if len(names) > 1 or have % need or (-1 not in kept and (names or have != need)) or (names and have != need):
        raise ValueError(f"{name}: {shape} cannot be reshaped to {tuple(target)}")
    rest: Dim = names[0] if names else have // need
    return tuple(rest if d == -1 else d for d in kept)

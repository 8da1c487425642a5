"""BERT through TensorRT's network API: a `GraphBuilder` whose graph is an INetworkDefinition.

Tensor names are those of the ONNX graph, so that one calibration table serves both. What TensorRT needs besides has
names of its own, with an "@": constants of another rank ("half@4"), the inside of a dense layer ("...matmul@inner").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from quantkit.errors import BackendError
from quantkit.network.builder import Dim
from quantkit.types import Array


@dataclass(frozen=True, eq=False)
class Handle:
    """A tensor of the network, or a constant that becomes one when its rank is known.

    Attributes:
        name: of the tensor.
        rank: number of dimensions.
        tensor: the ITensor; None for a constant.
        value: the constant's array; None for a tensor.
    """

    name: str
    rank: int
    tensor: Any = None
    value: Array | None = None


@dataclass(frozen=True)
class Group:
    """Products of one tensor with several weights, made as one.

    Attributes:
        name: of the joint product.
        parts: name of each product -> its weight (inputs, outputs), in order.
    """

    name: str
    parts: Mapping[str, npt.NDArray[np.float32]]


@dataclass
class TrtBuilder:
    """`GraphBuilder` over a network definition.

    Args:
        trt: the tensorrt module.
        network: the INetworkDefinition that is filled.
        dense, norm: see `BuildOptions`.
        groups: products to make as one, by the name of each group's first.
    """

    trt: Any
    network: Any
    dense: str = "matmul"
    norm: str = "layer"
    groups: Mapping[str, Group] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # TensorRT keeps pointers into the arrays of weights until the engine is built.
        self.kept: list[Array] = []
        self._constants: dict[tuple[str, int], Any] = {}
        self._ready: dict[str, Handle] = {}
        self.derived: dict[str, tuple[str, ...]] = {}
        """Tensor that only this builder has -> those whose values it holds; their ranges are its range."""

    def input(self, name: str, shape: Sequence[Dim]) -> Handle:
        """See `GraphBuilder.input`; int32, which every version takes."""
        extents = tuple(-1 if isinstance(dim, str) else dim for dim in shape)
        tensor = self.network.add_input(name, self.trt.int32, extents)
        if tensor is None:
            raise BackendError(f"TensorRT does not accept the input {name!r} of shape {extents}.")
        return Handle(name, len(extents), tensor)

    def output(self, x: Handle) -> None:
        """See `GraphBuilder.output`."""
        self.network.mark_output(self._tensor(x))

    def constant(self, name: str, value: Array) -> Handle:
        """See `GraphBuilder.constant`; the layer is added when the constant is first used."""
        return Handle(name, value.ndim, value=value)

    def prefix(self, table: Handle, like: Handle, axis: int, *, name: str) -> Handle:
        """See `GraphBuilder.prefix`: a slice whose extent along `axis` is read from the shape of `like`."""
        if table.value is None:
            raise BackendError(f"{name}: only a constant can be cut to the length of another tensor.")
        shape = self._add("add_shape", f"{name}.shape", like.tensor)
        numbers = np.int64 if shape.dtype != self.trt.int32 else np.int32
        extent = self._add("add_gather", f"{name}.extent", shape, self._numbers(f"{name}.axis", [axis], numbers), 0)
        parts = [
            extent if i == axis else self._numbers(f"{name}.extent{i}", [n], numbers)
            for i, n in enumerate(table.value.shape)
        ]
        wanted = self._add("add_concatenation", f"{name}.extents", parts)
        zeros, ones = (0,) * table.rank, (1,) * table.rank
        layer = self._layer("add_slice", name, self._tensor(table), zeros, table.value.shape, ones)
        layer.set_input(2, wanted)
        return self._named(layer, name)

    def cast_float(self, x: Handle, *, name: str) -> Handle:
        """See `GraphBuilder.cast_float`."""
        return self._op("add_cast", name, x.tensor, self.trt.float32)

    def gather(self, table: Handle, indices: Handle, *, name: str) -> Handle:
        """See `GraphBuilder.gather`."""
        return self._op("add_gather", name, self._tensor(table), self._tensor(indices), 0)

    def select(self, x: Handle, index: int, axis: int, *, name: str) -> Handle:
        """See `GraphBuilder.select`: a gather whose index has no dimensions."""
        position = self._numbers(f"{name}.index", index, np.int32)
        return self._op("add_gather", name, self._tensor(x), position, axis)

    def matmul(self, a: Handle, b: Handle, *, name: str) -> Handle:
        """See `GraphBuilder.matmul`; products with a weight are made as `dense` says."""
        if name in self._ready:
            return self._ready.pop(name)
        if name in self.groups:
            return self._grouped(a, self.groups[name])
        if b.value is not None and b.rank == 2 and self.dense != "matmul" and a.rank == 3:
            return self._dense(a, b.value, name)
        none = self.trt.MatrixOperation.NONE
        rank = max(a.rank, b.rank)
        return self._op("add_matrix_multiply", name, self._tensor(a, rank), none, self._tensor(b, rank), none)

    def add(self, a: Handle, b: Handle, *, name: str) -> Handle:
        """See `GraphBuilder.add`."""
        return self._elementwise(a, b, "SUM", name)

    def sub(self, a: Handle, b: Handle, *, name: str) -> Handle:
        """See `GraphBuilder.sub`."""
        return self._elementwise(a, b, "SUB", name)

    def mul(self, a: Handle, b: Handle, *, name: str) -> Handle:
        """See `GraphBuilder.mul`."""
        return self._elementwise(a, b, "PROD", name)

    def div(self, a: Handle, b: Handle, *, name: str) -> Handle:
        """See `GraphBuilder.div`."""
        return self._elementwise(a, b, "DIV", name)

    def reshape(self, x: Handle, shape: Sequence[int], *, name: str) -> Handle:
        """See `GraphBuilder.reshape`; 0 and -1 mean the same to a shuffle layer."""
        layer = self._layer("add_shuffle", name, self._tensor(x))
        layer.reshape_dims = tuple(shape)
        return self._named(layer, name)

    def transpose(self, x: Handle, perm: Sequence[int], *, name: str) -> Handle:
        """See `GraphBuilder.transpose`."""
        layer = self._layer("add_shuffle", name, self._tensor(x))
        layer.first_transpose = tuple(perm)
        return self._named(layer, name)

    def softmax(self, x: Handle, *, name: str) -> Handle:
        """See `GraphBuilder.softmax`."""
        layer = self._layer("add_softmax", name, self._tensor(x))
        layer.axes = 1 << (x.rank - 1)
        return self._named(layer, name)

    def layer_norm(self, x: Handle, gamma: Handle, beta: Handle, eps: float, *, name: str) -> Handle:
        """See `GraphBuilder.layer_norm`."""
        if self.norm == "elementwise":
            return self._norm_of_parts(x, gamma, beta, eps, name)
        scale, bias = self._tensor(gamma, x.rank), self._tensor(beta, x.rank)
        layer = self._layer("add_normalization", name, self._tensor(x), scale, bias, 1 << (x.rank - 1))
        layer.epsilon = eps
        return self._named(layer, name)

    def erf(self, x: Handle, *, name: str) -> Handle:
        """See `GraphBuilder.erf`."""
        return self._op("add_unary", name, self._tensor(x), self.trt.UnaryOperation.ERF)

    def tanh(self, x: Handle, *, name: str) -> Handle:
        """See `GraphBuilder.tanh`."""
        return self._op("add_activation", name, self._tensor(x), self.trt.ActivationType.TANH)

    def relu(self, x: Handle, *, name: str) -> Handle:
        """See `GraphBuilder.relu`."""
        return self._op("add_activation", name, self._tensor(x), self.trt.ActivationType.RELU)

    def _grouped(self, a: Handle, group: Group) -> Handle:
        """One product with all weights side by side, then a slice a part; the first part's handle."""
        weights = list(group.parts.values())
        joint = np.ascontiguousarray(np.concatenate(weights, axis=1))
        name = f"{group.name}.matmul"
        self.derived[name] = tuple(group.parts)
        product = self.matmul(a, self.constant(f"{group.name}.weight", joint), name=name)
        start = 0
        for part, weight in group.parts.items():
            self._ready[part] = self._last_dimension(product, start, weight.shape[1], part)
            start += weight.shape[1]
        return self._ready.pop(next(iter(group.parts)))

    def _last_dimension(self, x: Handle, start: int, width: int, name: str) -> Handle:
        """Columns [start, start + width) of the last dimension."""
        shape = tuple(x.tensor.shape)
        starts, ones = (0,) * (x.rank - 1) + (start,), (1,) * x.rank
        if -1 not in shape:
            return self._op("add_slice", name, x.tensor, starts, (*shape[:-1], width), ones)
        whole = self._add("add_shape", f"{name}@shape", x.tensor)
        numbers = np.int64 if whole.dtype != self.trt.int32 else np.int32
        leading = self._numbers(f"{name}@axes", list(range(x.rank - 1)), numbers)
        front = self._add("add_gather", f"{name}@front", whole, leading, 0)
        wanted = self._add(
            "add_concatenation", f"{name}@extents", [front, self._numbers(f"{name}@w", [width], numbers)]
        )
        layer = self._layer("add_slice", name, x.tensor, starts, (1,) * (x.rank - 1) + (width,), ones)
        layer.set_input(2, wanted)
        return self._named(layer, name)

    def _dense(self, a: Handle, weight: Array, name: str) -> Handle:
        """A product with a weight as a fully connected layer or a 1 x 1 convolution, between two reshapes."""
        outputs = weight.shape[1]
        kernel = self._kept(np.ascontiguousarray(weight.T))
        parts = self.derived.get(name, (name,))
        self.derived |= {f"{name}@in": self.derived.get(a.name, (a.name,)), f"{name}@inner": parts}
        if self.dense == "fully_connected":
            flat = self.reshape(a, (0, 0, -1, 1, 1), name=f"{name}@in")
            inner = self._op("add_fully_connected", f"{name}@inner", flat.tensor, outputs, self._weights(kernel), None)
            return self.reshape(inner, (0, 0, -1), name=name)
        # Tokens stand along the convolution's height: (batch, inputs, sequence, 1).
        moved = self._shuffled(a, name=f"{name}@in", first=(0, 2, 1), shape=(0, 0, 0, 1))
        arguments = (moved.tensor, outputs, (1, 1), self._weights(kernel), None)
        inner = self._op("add_convolution_nd", f"{name}@inner", *arguments)
        return self._shuffled(inner, name=name, first=(0, 2, 1, 3), shape=(0, 0, -1))

    def _shuffled(self, x: Handle, *, name: str, first: tuple[int, ...], shape: tuple[int, ...]) -> Handle:
        """A transposition, then a reshape, in one layer."""
        layer = self._layer("add_shuffle", name, x.tensor)
        layer.first_transpose = first
        layer.reshape_dims = shape
        return self._named(layer, name)

    def _norm_of_parts(self, x: Handle, gamma: Handle, beta: Handle, eps: float, name: str) -> Handle:
        """LayerNorm from reductions and elementwise operations."""
        trt, last = self.trt, 1 << (x.rank - 1)

        def mean(y: Handle, what: str) -> Handle:
            return self._op("add_reduce", f"{name}@{what}", y.tensor, trt.ReduceOperation.AVG, last, True)

        centred = self.sub(x, mean(x, "mean"), name=f"{name}@centred")
        square = self.mul(centred, centred, name=f"{name}@square")
        shifted = self.add(
            mean(square, "variance"), self.constant(f"{name}@eps", np.array(eps, np.float32)), name=f"{name}@shifted"
        )
        deviation = self._op("add_unary", f"{name}@deviation", shifted.tensor, trt.UnaryOperation.SQRT)
        scaled = self.mul(self.div(centred, deviation, name=f"{name}@normal"), gamma, name=f"{name}@scaled")
        return self.add(scaled, beta, name=name)

    def _elementwise(self, a: Handle, b: Handle, operation: str, name: str) -> Handle:
        """An elementwise layer; a constant of lower rank gets dimensions in front."""
        rank = max(a.rank, b.rank)
        kind = getattr(self.trt.ElementWiseOperation, operation)
        return self._op("add_elementwise", name, self._tensor(a, rank), self._tensor(b, rank), kind)

    def _tensor(self, x: Handle, rank: int | None = None) -> Any:
        """The ITensor of a handle, with `rank` dimensions."""
        rank = x.rank if rank is None else rank
        if x.value is None:
            if rank != x.rank:
                raise BackendError(f"The tensor {x.name!r} has {x.rank} dimensions where {rank} are needed.")
            return x.tensor
        if (x.name, rank) not in self._constants:
            value = self._kept(np.asarray(x.value, order="C"))
            name = x.name if rank == x.rank else f"{x.name}@{rank}"
            shape = (1,) * (rank - x.rank) + value.shape
            self._constants[x.name, rank] = self._add("add_constant", name, shape, self._weights(value))
        return self._constants[x.name, rank]

    def _numbers(self, name: str, value: Any, dtype: type[np.signedinteger[Any]]) -> Any:
        """A constant of whole numbers."""
        array = self._kept(np.array(value, dtype))
        return self._add("add_constant", name, array.shape, self._weights(array))

    def _kept(self, value: Array) -> Array:
        """The array itself, referenced until the builder is gone."""
        self.kept.append(value)
        return value

    def _weights(self, value: Array) -> Any:
        """TensorRT's view of an array."""
        return self.trt.Weights(value)

    def _op(self, method: str, name: str, *arguments: Any) -> Handle:
        """Adds a layer; the handle of its only output."""
        return self._named(self._layer(method, name, *arguments), name)

    def _add(self, method: str, name: str, *arguments: Any) -> Any:
        """Adds a layer; the ITensor of its only output."""
        return self._named(self._layer(method, name, *arguments), name).tensor

    def _layer(self, method: str, name: str, *arguments: Any) -> Any:
        """Adds a layer and names it.

        Raises:
            BackendError: this TensorRT has no such layer, or refuses the arguments.
        """
        maker: Callable[..., Any] | None = getattr(self.network, method, None)
        if maker is None:
            raise BackendError(f"This TensorRT's networks have no {method}, which {name!r} needs.")
        layer = maker(*arguments)
        if layer is None:
            raise BackendError(f"TensorRT refuses the layer {name!r} ({method}).")
        layer.name = name
        return layer

    def _named(self, layer: Any, name: str) -> Handle:
        """The handle of a layer's only output, which gets the name."""
        tensor = layer.get_output(0)
        tensor.name = name
        return Handle(name, len(tensor.shape), tensor)

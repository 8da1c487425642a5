"""TensorRT's own layers between plugins: tensors of four dimensions, named, and told their types."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from quantkit.backends.trt.plugins.definition import STARTS
from quantkit.errors import BackendError


@dataclass
class Layers:
    """Adds layers to a network definition.

    Args:
        trt: the tensorrt module.
        network: the INetworkDefinition.
        constrained: whether layers are told their types.

    Attributes:
        kept: what must live until the engine is built.

    Raises:
        BackendError: TensorRT refuses a layer.
    """

    trt: Any
    network: Any
    constrained: bool
    kept: list[Any] = field(default_factory=list)
    _scalars: dict[str, Any] = field(default_factory=dict)

    def dense(
        self,
        x: Any,
        name: str,
        way: str,
        kernel: npt.NDArray[np.float32],
        bias: npt.NDArray[np.float32],
        precision: Any,
        out: str,
    ) -> Any:
        """A linear layer with a weight (outputs, inputs): a "convolution" or a "fully_connected" layer."""
        outputs, weights, shift = kernel.shape[0], *(self.trt.Weights(self.keep(array)) for array in (kernel, bias))
        if way == "fully_connected":
            layer = self.network.add_fully_connected(x, outputs, weights, shift)
        else:
            layer = self.network.add_convolution_nd(x, outputs, (1, 1), weights, shift)
        return self.named(layer, name, precision, out)

    def gelu(self, x: Any, name: str) -> Any:
        """GELU with the error function, which TensorRT fuses with the product before it."""
        trt = self.trt
        steps = trt.ElementWiseOperation
        y = self.step(x, self.scalar("sqrt_two", math.sqrt(2.0)), steps.DIV, f"{name}.scaled")
        y = self.named(self.network.add_unary(y, trt.UnaryOperation.ERF), f"{name}.erf")
        y = self.step(y, self.scalar("one", 1.0), steps.SUM, f"{name}.shifted")
        y = self.step(x, y, steps.PROD, f"{name}.product")
        return self.step(y, self.scalar("half", 0.5), steps.PROD, name)

    def firsts(self, starts: Any) -> Any:
        """`starts` without the end of the last sentence."""
        count = self.named(self.network.add_shape(starts), f"{STARTS}@shape")
        one = self.constant(f"{STARTS}@one", np.ones(1, np.int32 if count.dtype == self.trt.int32 else np.int64))
        layer = self.network.add_elementwise(count, one, self.trt.ElementWiseOperation.SUB)
        cut = self.network.add_slice(starts, (0,), (1,), (1,))
        cut.set_input(2, self.named(layer, f"{STARTS}@count"))
        return self.named(cut, f"{STARTS}@firsts")

    def step(self, a: Any, b: Any, operation: Any, name: str) -> Any:
        """An elementwise layer; told a type, TensorRT would not fuse it with the product before it."""
        return self.named(self.network.add_elementwise(a, b, operation), name)

    def shuffle(self, x: Any, name: str, *, shape: tuple[int, ...] = (), first: tuple[int, ...] = ()) -> Any:
        """A transposition or a reshape."""
        layer = self.network.add_shuffle(x)
        if first:
            layer.first_transpose = first
        if shape:
            layer.reshape_dims = shape
        return self.named(layer, name)

    def scalar(self, name: str, value: float) -> Any:
        """A number as a tensor of four dimensions, made once."""
        if name not in self._scalars:
            self._scalars[name] = self.constant(name, np.full((1, 1, 1, 1), value, np.float32))
        return self._scalars[name]

    def constant(self, name: str, value: npt.NDArray[Any]) -> Any:
        """A constant."""
        array = self.keep(value)
        return self.named(self.network.add_constant(array.shape, self.trt.Weights(array)), name)

    def keep(self, value: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The array, contiguous, referenced until the builder is gone."""
        array = np.ascontiguousarray(value)
        self.kept.append(array)
        return array

    def named(self, layer: Any, name: str, precision: Any = None, out: str = "") -> Any:
        """A layer's only output; both get the name.

        Args:
            layer: what TensorRT gave; None when it refused.
            name: of both.
            precision: that it shall compute in, if layers are told.
            out: type of the result, likewise: "half", "float" or "int8".
        """
        if layer is None:
            raise BackendError(f"TensorRT refuses the layer {name!r}.")
        layer.name = name
        if self.constrained and precision is not None:
            layer.precision = precision
        if self.constrained and out:
            types = {"half": self.trt.float16, "float": self.trt.float32, "int8": self.trt.int8}
            layer.set_output_type(0, types[out])
        tensor = layer.get_output(0)
        tensor.name = name
        return tensor

"""What a graph must be able to do for BERT to be built in it: a small set of plain operations over opaque handles.

The set is the common ground of ONNX opset 17 and TensorRT's layers: no boolean tensors, no Where, no data-dependent
shapes. Every operation names its result; the name is the same in every builder, so one calibration table serves all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from quantkit.types import Array

T = TypeVar("T")

Dim = int | str
"""A dimension: its extent, or the name of one that may change ("batch", "sequence")."""


class GraphBuilder(Protocol[T]):
    """Builds a graph tensor by tensor. `T` stands for the builder's own handle of a tensor.

    Elementwise operations broadcast like NumPy (a builder whose target wants equal ranks puts ones in front).
    `name` becomes the name of the result and of the node that makes it, and is used only once.
    """

    def input(self, name: str, shape: Sequence[Dim]) -> T:
        """An input of token numbers or flags: int64 (a target without int64 may take int32)."""
        ...

    def output(self, x: T) -> None:
        """Makes `x` an output of the graph under the name it has."""
        ...

    def constant(self, name: str, value: Array) -> T:
        """A constant; float32, or int64 for indices."""
        ...

    def prefix(self, table: T, like: T, axis: int, *, name: str) -> T:
        """The leading part of a constant along `axis`, as long as `like` is along `axis`."""
        ...

    def cast_float(self, x: T, *, name: str) -> T:
        """float32 of whole numbers."""
        ...

    def gather(self, table: T, indices: T, *, name: str) -> T:
        """Rows of `table` (rows, width) by `indices` (...): (..., width)."""
        ...

    def select(self, x: T, index: int, axis: int, *, name: str) -> T:
        """The slice at `index` along `axis`, without that axis."""
        ...

    def matmul(self, a: T, b: T, *, name: str) -> T:
        """Matrix product over the last two dimensions, the leading ones broadcast."""
        ...

    def add(self, a: T, b: T, *, name: str) -> T:
        """Sum."""
        ...

    def sub(self, a: T, b: T, *, name: str) -> T:
        """Difference."""
        ...

    def mul(self, a: T, b: T, *, name: str) -> T:
        """Product, element by element."""
        ...

    def div(self, a: T, b: T, *, name: str) -> T:
        """Quotient, element by element."""
        ...

    def reshape(self, x: T, shape: Sequence[int], *, name: str) -> T:
        """The same elements in another shape; 0 keeps the dimension at that place, one -1 takes what is left."""
        ...

    def transpose(self, x: T, perm: Sequence[int], *, name: str) -> T:
        """Dimensions in another order."""
        ...

    def softmax(self, x: T, *, name: str) -> T:
        """Softmax along the last dimension."""
        ...

    def layer_norm(self, x: T, gamma: T, beta: T, eps: float, *, name: str) -> T:
        """Normalization over the last dimension, times gamma, plus beta."""
        ...

    def erf(self, x: T, *, name: str) -> T:
        """Error function."""
        ...

    def tanh(self, x: T, *, name: str) -> T:
        """Hyperbolic tangent."""
        ...

    def relu(self, x: T, *, name: str) -> T:
        """max(x, 0)."""
        ...

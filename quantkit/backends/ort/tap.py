"""Intermediate tensors of the FP32 graph through onnxruntime."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from quantkit.backends.base import CheckedRunner, serialized
from quantkit.backends.feeds import graph_inputs, rows_of, specs_of, symbols_of
from quantkit.backends.ort import runtime
from quantkit.errors import BackendError
from quantkit.types import Array, TensorSpec

if TYPE_CHECKING:
    from onnx import ModelProto

_FLOAT32 = "tensor(float)"


class OnnxRuntimeTap(CheckedRunner):
    """A runner of the FP32 graph that gives the named tensors.

    The first batch of a shape brings the arrays, and every further batch of that shape is computed right into them;
    another shape replaces them. So memory is that of one batch.
    """

    def __init__(self, proto: ModelProto, names: tuple[str, ...], threads: int) -> None:
        tapped = type(proto)()
        tapped.CopyFrom(proto)
        del tapped.graph.output[:]
        for name in names:
            # A name is enough: onnxruntime infers the type and the shape.
            tapped.graph.output.add(name=name)
        self._session = runtime.session(serialized(tapped), threads)
        outputs = []
        for value in self._session.get_outputs():
            if value.type != _FLOAT32:
                raise BackendError(f"The tensor {value.name!r} is {value.type}; expected float32, which is calibrated.")
            shape = tuple(size if isinstance(size, int) else -1 for size in value.shape)
            outputs.append(TensorSpec(value.name, np.dtype(np.float32), shape))
        inputs = graph_inputs(proto)
        super().__init__("onnxruntime", specs_of(inputs), outputs, symbols_of(inputs), rows_of(proto))
        self._arrays: dict[str, Array] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}

    def _run(self, feed: dict[str, Array]) -> dict[str, Array]:
        shapes = {name: array.shape for name, array in feed.items()}
        try:
            if shapes == self._shapes:
                self._run_into_arrays(feed)
            else:
                # The old arrays go first, so that two shapes are never held at once.
                self._arrays, self._shapes = {}, {}
                names = [spec.name for spec in self._outputs]
                self._arrays = dict(zip(names, self._session.run(names, feed), strict=True))
                self._shapes = shapes
        except Exception as error:  # onnxruntime's exceptions have no base class of their own
            raise runtime.failure("run the graph", error) from error
        return dict(self._arrays)

    def _run_into_arrays(self, feed: dict[str, Array]) -> None:
        """One batch whose outputs are the arrays of the batch before."""
        binding = self._session.io_binding()
        for name, array in feed.items():
            binding.bind_cpu_input(name, array)
        for name, array in self._arrays.items():
            binding.bind_output(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
        self._session.run_with_iobinding(binding)

    def _release(self) -> None:
        self._session = None
        self._arrays = {}

"""Intermediate tensors of the FP32 graph, as views of OpenVINO's own memory.

Two things decide what this costs (benchmarks/tap.py measures it):

- `InferRequest.infer()` copies every output into a new NumPy array unless told otherwise; for all tensors of a BERT
  that is half a gigabyte of page faults a batch. Here outputs are only looked at.
- A tensor that is both an output and the input of the next operation is computed into internal memory and copied to
  the output when the batch is done, as long as all shapes are static. In a graph with a dynamic dimension OpenVINO
  computes it right in the output's memory. So a fixed batch of n is compiled as "1 to n"; feeds are still checked
  against n.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from quantkit.backends.base import CheckedRunner, serialized
from quantkit.backends.feeds import graph_inputs, rows_of, specs_of, symbols_of
from quantkit.backends.openvino import runtime
from quantkit.backends.openvino.engine import Feeder, compile_model, port_index, read_model
from quantkit.errors import BackendError
from quantkit.types import Array, TensorSpec

if TYPE_CHECKING:
    from onnx import ModelProto


_COPIES = frozenset({"Identity", "Dropout"})
"""Operations whose (first) output is their first input when nothing is trained; OpenVINO drops them."""


class OpenVINOTap(CheckedRunner):
    """A runner of the FP32 graph that shows the named tensors.

    The arrays are read-write views: they hold the batch until the next `infer`, and nothing after `close`. Memory is
    that of one batch, however many follow.
    """

    def __init__(self, proto: ModelProto, names: tuple[str, ...], threads: int) -> None:
        model = read_model(serialized(proto))
        sources = _sources(proto, model, names)
        _show_only(model, tuple(dict.fromkeys(sources.values())))
        shapes = {name: _shape(model.outputs[port_index(model.outputs, sources[name])]) for name in names}
        _loosen_batch(model)
        compiled = compile_model(model, "fp32", threads)
        inputs = graph_inputs(proto)
        self._ports = {name: port_index(compiled.outputs, sources[name]) for name in names}
        outputs = [TensorSpec(name, np.dtype(np.float32), shape) for name, shape in shapes.items()]
        super().__init__("openvino", specs_of(inputs), outputs, symbols_of(inputs), rows_of(proto))
        self._feeder = Feeder(compiled, self.inputs)

    def _run(self, feed: dict[str, Array]) -> dict[str, Array]:
        request = self._feeder.run(feed)
        return {name: request.get_output_tensor(port).data for name, port in self._ports.items()}

    def _release(self) -> None:
        self._feeder.close()


def _sources(proto: ModelProto, model: Any, names: tuple[str, ...]) -> dict[str, str]:
    """For each name the name under which the ov.Model has the tensor: its own, or the one that it is a copy of.

    Raises:
        BackendError: a tensor is gone: OpenVINO has folded it into others while it read the graph.
    """
    present = {name for op in model.get_ops() for port in op.outputs() for name in port.get_names()}
    copies = {node.output[0]: node.input[0] for node in proto.graph.node if node.op_type in _COPIES}
    sources = {}
    for name in names:
        source = name
        while source not in present and source in copies:
            source = copies[source]
        sources[name] = source
    if lost := [name for name, source in sources.items() if source not in present]:
        raise BackendError(f"OpenVINO does not compute the tensor {lost[0]!r} of this graph ({len(lost)} are missing).")
    return sources


def _show_only(model: Any, names: tuple[str, ...]) -> None:
    """Makes the named tensors the outputs of an ov.Model, and the only ones.

    Raises:
        BackendError: a tensor is not float32.
    """
    wanted = set(names)
    shown = {name for port in model.outputs for name in port.get_names()}
    try:
        model.add_outputs([name for name in names if name not in shown])
        for result in model.get_results():
            if not wanted & set(result.input(0).get_source_output().get_names()):
                model.remove_result(result)
    except RuntimeError as error:
        raise runtime.failure("tap the graph", error) from error
    for port in model.outputs:
        kind = port.get_element_type().get_type_name()
        if kind != "f32":
            name = next(iter(wanted & set(port.get_names())))
            raise BackendError(f"The tensor {name!r} is {kind}; expected float32, which is what is calibrated.")


def _loosen_batch(model: Any) -> None:
    """Turns a static first dimension n of the inputs into 1..n, if the graph allows it; see the module's docstring."""
    ov = runtime.load()
    if any(port.partial_shape.is_dynamic for port in model.inputs):
        return
    fixed = {port.get_any_name(): port.partial_shape for port in model.inputs}
    loose = {}
    for name, shape in fixed.items():
        sizes = [dimension.get_length() for dimension in shape]
        loose[name] = ov.PartialShape([ov.Dimension(1, sizes[0]), *sizes[1:]] if sizes and sizes[0] > 1 else sizes)
    try:
        model.reshape(loose)
    except RuntimeError:
        # A shape is written into the graph as a number; static outputs are copied once, which costs only time.
        model.reshape(fixed)


def _shape(port: Any) -> tuple[int, ...]:
    """Shape of a model's output; -1 where it may change."""
    return tuple(d.get_length() if d.is_static else -1 for d in port.partial_shape)

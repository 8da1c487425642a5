"""An OpenVINO engine: one compiled model, one request, every call on all of its threads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from quantkit.backends.base import Engine, EngineInfo, Precision, serialized
from quantkit.backends.cpu import NO_VNNI, without_vnni
from quantkit.backends.feeds import graph_inputs, rows_of, specs_of, symbols_of
from quantkit.backends.openvino import runtime
from quantkit.backends.openvino.execution import Execution, matmul_names, read_execution
from quantkit.errors import BackendError
from quantkit.types import Array, TensorSpec

if TYPE_CHECKING:
    from onnx import ModelProto


class OpenVINOEngine(Engine):
    """A graph compiled for the CPU; made by `compile_engine`."""

    def __init__(self, info: EngineInfo, compiled: Any, proto: ModelProto) -> None:
        inputs, outputs = graph_inputs(proto), specs_of(proto.graph.output)
        super().__init__("openvino", info, specs_of(inputs), outputs, symbols_of(inputs), rows_of(proto))
        self._ports = [port_index(compiled.outputs, spec.name) for spec in outputs]
        self._feeder = Feeder(compiled, self.inputs)

    def _run(self, feed: dict[str, Array]) -> dict[str, Array]:
        request = self._feeder.run(feed)
        results = {}
        for spec, port in zip(self._outputs, self._ports, strict=True):
            data = request.get_output_tensor(port).data
            results[spec.name] = np.array(data, np.float32 if data.dtype.kind == "f" else data.dtype)
        return results

    def _release(self) -> None:
        self._feeder.close()


class Feeder:
    """One request of a compiled model: copies a checked feed into the request's own input tensors and runs it.

    Inputs are a few kilobytes of token ids: copying them costs microseconds, and OpenVINO never points at memory that
    belongs to the caller.
    """

    def __init__(self, compiled: Any, inputs: Sequence[TensorSpec]) -> None:
        self._request = compiled.create_infer_request()
        self._ports = {spec.name: port_index(compiled.inputs, spec.name) for spec in inputs}
        self._dynamic = {name: compiled.inputs[i].partial_shape.is_dynamic for name, i in self._ports.items()}

    def run(self, feed: dict[str, Array]) -> Any:
        """The request, after it ran; the calling thread lets others run Python meanwhile.

        Raises:
            BackendError: OpenVINO failed.
        """
        try:
            for name, array in feed.items():
                tensor = self._request.get_input_tensor(self._ports[name])
                if self._dynamic[name]:
                    tensor.shape = array.shape
                tensor.data[...] = array
            # Not infer(): it builds a dictionary over all outputs, and copies every one of them unless told not to.
            self._request.start_async()
            self._request.wait()
        except RuntimeError as error:
            raise runtime.failure("run the graph", error) from error
        return self._request

    def close(self) -> None:
        """Lets go of the request, and with it of the compiled model."""
        self._request = None


def port_index(ports: Sequence[Any], name: str) -> int:
    """Position of the input or output that has `name` among its names.

    Raises:
        BackendError: there is none.
    """
    for index, port in enumerate(ports):
        if name in port.get_names():
            return index
    raise BackendError(f"OpenVINO has lost the tensor {name!r} while it read the graph.")


def read_model(data: bytes) -> Any:
    """The ov.Model of a serialized ONNX graph.

    Raises:
        BackendError: OpenVINO cannot read it.
    """
    try:
        return runtime.core().read_model(data)
    except RuntimeError as error:
        raise runtime.failure("read the graph", error, "Check the graph with onnx.checker.") from error


def compile_model(model: Any, precision: Precision, threads: int) -> Any:
    """The ov.CompiledModel of an ov.Model.

    Raises:
        BackendError: OpenVINO cannot compile it.
    """
    try:
        return runtime.core().compile_model(model, runtime.DEVICE, runtime.settings(precision, threads))
    except RuntimeError as error:
        raise runtime.failure("compile the graph", error) from error


def compile_engine(proto: ModelProto, precision: Precision, threads: int) -> OpenVINOEngine:
    """Compiles an ONNX graph and reads from the result what it really computes.

    Raises:
        BackendError: the graph cannot be read or compiled.
    """
    data = serialized(proto)
    model = read_model(data)
    matmuls = matmul_names(model)
    compiled = compile_model(model, precision, threads)
    execution = read_execution(compiled, matmuls)
    info = EngineInfo(
        precision=precision,
        compute=execution.compute,
        size_bytes=len(data),
        int8_ops=execution.int8_ops,
        float_ops=execution.float_ops,
        notes=(*_notes(precision, execution), *_thread_notes(compiled, threads)),
        audit=execution.audit,
    )
    return OpenVINOEngine(info, compiled, proto)


def _notes(precision: Precision, execution: Execution) -> tuple[str, ...]:
    """What the user should know about the difference between asked and computed."""
    notes = []
    if precision == "fp16" and execution.compute not in ("bf16", "f16"):
        half = runtime.half_precision()
        why = f"it kept this graph in {execution.compute}" if half else "this CPU has no bf16 or f16 arithmetic"
        notes.append(f"Half precision was asked for and {execution.compute} is computed: {why}.")
    if precision == "int8" and not execution.int8_ops:
        notes.append(f"No matrix product runs in INT8: all {execution.float_ops} run in {execution.compute}.")
    if precision == "int8" and execution.int8_ops and without_vnni():
        notes.append(NO_VNNI)
    return tuple(notes)


def _thread_notes(compiled: Any, threads: int) -> tuple[str, ...]:
    """That fewer threads work than were asked for: OpenVINO takes no more than there are cores."""
    granted = int(compiled.get_property("INFERENCE_NUM_THREADS"))
    return (f"OpenVINO uses {granted} of the {threads} threads that were asked for.",) if granted < threads else ()

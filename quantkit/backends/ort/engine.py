"""An onnxruntime engine on the CPU."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quantkit.backends.base import Engine, EngineInfo, Precision, serialized
from quantkit.backends.cpu import NO_VNNI, without_vnni
from quantkit.backends.feeds import graph_inputs, rows_of, specs_of, symbols_of
from quantkit.backends.ort import runtime
from quantkit.backends.ort.unsigned import with_unsigned_activations
from quantkit.types import Array

if TYPE_CHECKING:
    from onnx import ModelProto

_INT8_PRODUCTS = frozenset(
    {"MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QLinearMatMul", "QGemm", "QAttention"}
)
_FLOAT_PRODUCTS = frozenset({"MatMul", "FusedMatMul", "Gemm", "FusedGemm", "Attention", "MultiHeadAttention"})

# It turns MatMul + Add into Gemm before the Q/DQ pairs are looked at, and a Gemm with a float bias and a float output
# matches no INT8 kernel: with it, a graph whose MatMuls are all quantized runs entirely in float32.
_BLOCKS_INT8 = ("MatMulAddFusion",)


class OnnxRuntimeEngine(Engine):
    """A session on the CPU; made by `compile_engine`."""

    def __init__(self, info: EngineInfo, session: Any, proto: ModelProto) -> None:
        inputs, outputs = graph_inputs(proto), specs_of(proto.graph.output)
        super().__init__("onnxruntime", info, specs_of(inputs), outputs, symbols_of(inputs), rows_of(proto))
        self._session = session
        self._names = [spec.name for spec in outputs]

    def _run(self, feed: dict[str, Array]) -> dict[str, Array]:
        try:
            arrays = self._session.run(self._names, feed)
        except Exception as error:  # onnxruntime's exceptions have no base class of their own
            raise runtime.failure("run the graph", error) from error
        return {
            n: a.astype(np.float32, copy=False) if a.dtype.kind == "f" else a
            for n, a in zip(self._names, arrays, strict=True)
        }

    def _release(self) -> None:
        self._session = None


def compile_engine(proto: ModelProto, precision: Precision, threads: int) -> OnnxRuntimeEngine:
    """Compiles an ONNX graph; for INT8 the optimized graph is read back to see which kernels it has.

    Raises:
        BackendError: onnxruntime refuses the graph.
    """
    data = serialized(proto)
    if precision == "int8":
        unsigned, changed = with_unsigned_activations(proto)
        session, nodes = _int8_session(serialized(unsigned) if changed else data, threads)
    else:
        changed = 0
        session, nodes = runtime.session(data, threads), proto.graph.node
    kernels = Counter(node.op_type for node in nodes)
    floats = [node.name for node in nodes if node.op_type in _FLOAT_PRODUCTS]
    int8_ops = sum(kernels[kind] for kind in _INT8_PRODUCTS)
    float_ops = sum(kernels[kind] for kind in _FLOAT_PRODUCTS)
    info = EngineInfo(
        precision=precision,
        compute="int8+f32" if int8_ops else "f32",
        size_bytes=len(data),
        int8_ops=int8_ops,
        float_ops=float_ops,
        notes=_notes(changed, int8_ops, float_ops) if precision == "int8" else (),
        audit={"kernel_counts": dict(sorted(kernels.items())), "float_products": floats} if precision == "int8" else {},
    )
    return OnnxRuntimeEngine(info, session, proto)


def _int8_session(data: bytes, threads: int) -> tuple[Any, Any]:
    """A session for a Q/DQ graph, and the nodes that it executes."""
    import onnx

    with tempfile.TemporaryDirectory(prefix="quantkit-") as folder:
        path = Path(folder) / "optimized.onnx"
        session = runtime.session(data, threads, disabled=_BLOCKS_INT8, save_to=path)
        executed = onnx.load(str(path), load_external_data=False)
    return session, executed.graph.node


def _notes(changed: int, int8_ops: int, float_ops: int) -> tuple[str, ...]:
    """What the user should know about an INT8 engine, `changed` activations of which became uint8."""
    notes = []
    if not int8_ops:
        notes.append(f"No matrix product runs in INT8: all {float_ops} run in f32.")
    if changed:
        notes.append(f"The codes of {changed} int8 activations are moved by 128 into uint8, which changes no value.")
    if int8_ops and without_vnni():
        notes.append(NO_VNNI)
    return tuple(notes)

"""The onnxruntime backend: FP32 and INT8 (Q/DQ graphs) on the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from quantkit.backends.base import Backend, CheckedRunner, Engine, Precision
from quantkit.backends.cpu import cpu_name, physical_cores
from quantkit.backends.ort import runtime

if TYPE_CHECKING:
    from onnx import ModelProto


class OnnxRuntimeBackend(Backend):
    """onnxruntime's CPU execution provider."""

    name = "onnxruntime"
    packages = ("onnxruntime",)

    def available(self) -> str | None:
        """None, or how to install it."""
        return None if runtime.installed() else "onnxruntime is not installed: pip install 'quantkit[onnxruntime]'"

    def unsupported(self, precision: Precision) -> str | None:
        """Half precision: the CPU provider would convert every operation back to float32."""
        if precision == "fp16":
            return "onnxruntime has no half-precision kernels on a CPU; an fp16 engine would compute in float32."
        return None

    def describe(self) -> dict[str, Any]:
        """Version, CPU, precisions and execution providers that this build has."""
        self.require()
        library = runtime.load()
        return {
            "version": str(library.__version__),
            "device": cpu_name(),
            "capabilities": ["FP32", "INT8"],
            "providers": list(library.get_available_providers()),
            "threads": physical_cores(),
        }

    def _compile(self, proto: ModelProto, precision: Precision, threads: int) -> Engine:
        from quantkit.backends.ort.engine import compile_engine

        return compile_engine(proto, precision, threads)

    def _tap(self, proto: ModelProto, names: tuple[str, ...], threads: int) -> CheckedRunner:
        from quantkit.backends.ort.tap import OnnxRuntimeTap

        return OnnxRuntimeTap(proto, names, threads)

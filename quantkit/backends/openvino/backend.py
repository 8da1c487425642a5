"""The OpenVINO backend: FP32, real half precision where the CPU has it, and INT8 from Q/DQ graphs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from quantkit.backends.base import Backend, CheckedRunner, Engine, Precision
from quantkit.backends.cpu import cpu_flags, physical_cores
from quantkit.backends.openvino import runtime

if TYPE_CHECKING:
    from onnx import ModelProto

_TELLING_FLAGS = frozenset(
    {"avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16"}
)


class OpenVINOBackend(Backend):
    """OpenVINO on the CPU."""

    name = "openvino"
    packages = ("openvino",)

    def available(self) -> str | None:
        """None, or that the package is not installed."""
        return None if runtime.installed() else "OpenVINO is not installed: pip install openvino"

    def unsupported(self, precision: Precision) -> str | None:
        """Always None: half precision without hardware compiles too, computes float32, and says so."""
        return None

    def describe(self) -> dict[str, Any]:
        """Version, CPU, what OpenVINO computes fast on it ("capabilities"), its half precision and instruction sets."""
        self.require()
        return {
            "version": str(runtime.load().__version__),
            "device": runtime.device_name(),
            "capabilities": list(runtime.capabilities()),
            "half": runtime.half_precision(),
            "instructions": sorted(cpu_flags() & _TELLING_FLAGS),
            "threads": physical_cores(),
        }

    def _compile(self, proto: ModelProto, precision: Precision, threads: int) -> Engine:
        from quantkit.backends.openvino.engine import compile_engine

        return compile_engine(proto, precision, threads)

    def _tap(self, proto: ModelProto, names: tuple[str, ...], threads: int) -> CheckedRunner:
        from quantkit.backends.openvino.tap import OpenVINOTap

        return OpenVINOTap(proto, names, threads)

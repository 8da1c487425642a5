"""The OpenVINO library itself: loaded quietly and once, asked what the CPU can do, its errors made readable."""

from __future__ import annotations

import sys
import threading
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from quantkit.backends.base import Precision, first_line
from quantkit.backends.cpu import cpu_name
from quantkit.errors import BackendError

DEVICE = "CPU"
_TELEMETRY = "openvino_telemetry"
_LOADING = threading.Lock()


def installed() -> bool:
    """Whether the package openvino can be found; it is not imported."""
    return find_spec("openvino") is not None


def load() -> Any:
    """The module openvino, imported without its telemetry.

    Importing openvino sends an "import" event over the network, unasked, when the package openvino-telemetry is there.
    That package is hidden for the time of the import, and openvino then takes its own silent stand-in.
    """
    with _LOADING:
        if "openvino" in sys.modules or _TELEMETRY in sys.modules:
            return import_module("openvino")
        # None in sys.modules makes `import openvino_telemetry` an ImportError, which openvino expects and handles.
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
        try:
            return import_module("openvino")
        finally:
            del sys.modules[_TELEMETRY]


@lru_cache(maxsize=1)
def core() -> Any:
    """The process's ov.Core; creating one loads the plugins' list, so it is made once.

    Raises:
        BackendError: the installed OpenVINO has no CPU plugin.
    """
    made = load().Core()
    if DEVICE not in made.available_devices:
        raise BackendError(
            f"This OpenVINO has no CPU device; it has {', '.join(made.available_devices) or 'none'}.",
            "Install it again: pip install --force-reinstall openvino.",
        )
    return made


def capabilities() -> tuple[str, ...]:
    """What OpenVINO can compute fast on this CPU: "FP32", and "BF16", "FP16", "INT8" where the CPU has them."""
    return tuple(sorted(str(name) for name in core().get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")))


def device_name() -> str:
    """The CPU's full name: as the system tells it, or as OpenVINO does where that is longer."""
    return max(cpu_name(), str(core().get_property(DEVICE, "FULL_DEVICE_NAME")).strip(), key=len)


def half_precision() -> str | None:
    """The half precision that this CPU computes: "bf16" or "f16", None when there is none.

    bf16 comes first where a CPU has both: it has float32's range, so nothing overflows.
    """
    found = capabilities()
    return "bf16" if "BF16" in found else "f16" if "FP16" in found else None


def settings(precision: Precision, threads: int) -> dict[str, Any]:
    """Compile options: one stream that uses all `threads` for one request, and only the arithmetic that was asked for.

    Threads are not pinned to cores: on the two cores measured pinning changed nothing (within noise), and a pinned
    thread has to wait when something else runs on its core. Dynamic quantization is off, so that INT8 appears only
    where the graph has quantizers.
    """
    hint = (half_precision() or "f32") if precision == "fp16" else "f32"
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": hint,
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        "ENABLE_CPU_PINNING": False,
    }


_FRAMES = (
    "exception from",
    "check '",
    "frontend api failed",
    "model wasn't fully converted",
    "while validating",
    "summary:",
)


def failure(what: str, error: BaseException, hint: str = "") -> BackendError:
    """A BackendError for an OpenVINO exception: `what` failed, and the first line that says why.

    OpenVINO's texts are a stack of source locations and generic headlines around one line that matters.
    """
    lines = [" ".join(line.split()).removeprefix("-- ") for line in str(error).splitlines()]
    telling = [x for x in lines if x and not x.lower().startswith(_FRAMES) and not x.endswith("with a message:")]
    reason = first_line(RuntimeError(telling[0])) if telling else first_line(error)
    return BackendError(f"OpenVINO could not {what}: {reason}", hint)

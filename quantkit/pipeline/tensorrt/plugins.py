"""`quantkit plugins build`: the plugins' library for this GPU and this TensorRT."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from quantkit.backends.trt import runtime
from quantkit.backends.trt.plugins import compiler
from quantkit.errors import BackendError, InputError


def build_plugins(include: Path | None = None, capability: str = "", *, force: bool = False) -> dict[str, Any]:
    """Builds the library unless it is there; what it is, as JSON values.

    Args:
        include: folder with TensorRT's headers; looked for in the usual places when None.
        capability: compute capability to build for ("9.0"), for another machine; this GPU's when empty.
        force: build although it was built before.

    Raises:
        InputError: `capability` is none.
        BackendError: no GPU and no `capability`, no nvcc, no headers, or the compiler's first error.
    """
    wanted = parse_capability(capability) if capability else own_capability()
    # For another machine's GPU the headers alone say which TensorRT it will be.
    library = None if runtime.missing_packages() else runtime.library_version()
    built = compiler.build(wanted, compiler.find_headers(include, library), force=force)
    return {
        "path": str(built.path),
        "fresh": built.fresh,
        "seconds": built.seconds,
        "capability": ".".join(map(str, built.capability)),
        "tensorrt": str(built.headers),
    }


def parse_capability(text: str) -> tuple[int, int]:
    """The compute capability in "9.0"; InputError when it is none."""
    match = re.fullmatch(r"(\d{1,2})\.(\d)", text)
    if match is None:
        raise InputError(f"{text!r} is no compute capability.", "Write it as 9.0.")
    return int(match[1]), int(match[2])


def own_capability() -> tuple[int, int]:
    """The compute capability of the GPU at hand; BackendError when there is none."""
    from quantkit.backends.trt.cuda import find_gpu

    gpu = find_gpu()
    if gpu is None:
        raise BackendError("There is no GPU to build the plugins for.", "Name one: --capability 9.0.")
    return gpu.compute_capability

"""The TensorRT library, imported on first use, and its logger."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from quantkit.backends.base import first_line
from quantkit.backends.trt.capabilities import Capabilities, capabilities
from quantkit.backends.trt.versions import Version, parse_version
from quantkit.errors import BackendError, MissingDependencyError

INSTALL = "pip install 'quantkit[tensorrt]' (TensorRT 8.6 to 10.x and PyCUDA, on Linux with an NVIDIA driver)"
_MISSING_SCALE = re.compile(r"[Mm]issing scale and zero-point for tensor (.+?)(?:, expect fall back|\.?$)")
KEPT_MESSAGES = 200


def missing_packages() -> str | None:
    """None when both packages are installed, else which one is not and how to install it."""
    missing = [name for name in ("tensorrt", "pycuda") if find_spec(name) is None]
    return f"{' and '.join(missing)} not installed: {INSTALL}" if missing else None


@lru_cache(maxsize=1)
def load() -> Any:
    """The tensorrt module.

    Raises:
        MissingDependencyError: it is not installed.
        BackendError: it is installed and cannot be loaded (libraries missing), or is too old.
    """
    if find_spec("tensorrt") is None:
        raise MissingDependencyError("The package tensorrt is not installed.", INSTALL)
    try:
        library = import_module("tensorrt")
        version = parse_version(str(library.__version__))
    except (ImportError, OSError, AttributeError, RuntimeError) as error:
        raise BackendError(f"tensorrt is installed but does not load: {first_line(error)}", INSTALL) from error
    capabilities(version).require("version", "Install TensorRT 8.6 or later.")
    return library


def library_version() -> Version:
    """The version of the library."""
    return parse_version(str(load().__version__))


def table() -> Capabilities:
    """What this TensorRT can do on the current GPU; without a GPU, what it could do on one."""
    from quantkit.backends.trt.cuda import find_gpu

    return capabilities(library_version(), find_gpu())


@dataclass
class Messages:
    """What TensorRT said, by severity; the first of each kind are kept."""

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    missing: dict[str, None] = field(default_factory=dict)

    def add(self, severity: str, text: str) -> None:
        """Takes one message; those on missing scales become names of tensors."""
        if found := _MISSING_SCALE.search(text):
            self.missing.setdefault(found[1].strip())
        elif severity in ("INTERNAL_ERROR", "ERROR") and len(self.errors) < KEPT_MESSAGES:
            self.errors.append(" ".join(text.split()))
        elif severity == "WARNING" and len(self.warnings) < KEPT_MESSAGES:
            self.warnings.append(" ".join(text.split()))

    def cause(self) -> str:
        """The error that explains a failure, as the end of a sentence: the first one, which the others follow from."""
        return self.errors[0].rstrip(".") if self.errors else "TensorRT gave no reason"


def make_logger(messages: Messages, log: Any = None) -> Any:
    """A TensorRT logger that sorts messages into `messages`, and writes all of them to the text file `log` if given."""
    trt = load()

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            name = str(severity).rpartition(".")[2]
            messages.add(name, text)
            if log is not None:
                log.write(f"{name}: {text}\n")
                log.flush()

    return Logger()

"""The TensorRT library, imported on first use, and its logger."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import IO, Any
from weakref import WeakSet

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


@dataclass(eq=False)
class Messages:
    """What TensorRT said while this object lived, by severity; the first of each kind are kept.

    Attributes:
        log: text file that every message is written to as well.
    """

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    missing: dict[str, None] = field(default_factory=dict)
    log: IO[str] | None = None

    def __post_init__(self) -> None:
        _listeners.add(self)

    def add(self, severity: str, text: str) -> None:
        """Takes one message; those on missing scales become names of tensors."""
        if self.log is not None:
            self.log.write(f"{severity}: {text}\n")
            self.log.flush()
        if found := _MISSING_SCALE.search(text):
            self.missing.setdefault(found[1].strip())
        elif severity in ("INTERNAL_ERROR", "ERROR") and len(self.errors) < KEPT_MESSAGES:
            self.errors.append(" ".join(text.split()))
        elif severity == "WARNING" and len(self.warnings) < KEPT_MESSAGES:
            self.warnings.append(" ".join(text.split()))

    def cause(self) -> str:
        """The error that explains a failure, as the end of a sentence: the first one, which the others follow from."""
        return self.errors[0].rstrip(".") if self.errors else "TensorRT gave no reason"


_listeners: WeakSet[Messages] = WeakSet()


@lru_cache(maxsize=1)
def logger() -> Any:
    """The process's TensorRT logger: it tells every `Messages` that is alive.

    There is one, and it is never freed: TensorRT keeps the first logger that it is given for the whole process, and
    with plugins it goes on writing to it after the engine that brought it is gone.
    """
    trt = load()

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            name = str(severity).rpartition(".")[2]
            for messages in list(_listeners):
                messages.add(name, text)

    return Logger()

"""The onnxruntime library itself: sessions with the right options, errors made readable."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from quantkit.backends.base import first_line
from quantkit.errors import BackendError

PROVIDERS = ("CPUExecutionProvider",)
_ONLY_ERRORS = 3
_PREFIX = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")


def installed() -> bool:
    """Whether the package onnxruntime can be found; it is not imported."""
    return find_spec("onnxruntime") is not None


def load() -> Any:
    """The module onnxruntime."""
    module = import_module("onnxruntime")
    module.disable_telemetry_events()
    return module


def session(data: bytes, threads: int, *, disabled: Sequence[str] = (), save_to: Path | None = None) -> Any:
    """An InferenceSession on the CPU.

    Args:
        data: serialized ONNX graph.
        threads: threads that work inside one operation; operations run one after the other.
        disabled: graph optimizers to leave out.
        save_to: where to write the graph that is really executed.

    Raises:
        BackendError: onnxruntime refuses the graph.
    """
    library = load()
    options = library.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ONLY_ERRORS
    # Idle workers would keep spinning after a run, and take the cores from whatever is timed next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if save_to is not None:
        options.optimized_model_filepath = str(save_to)
    try:
        return library.InferenceSession(data, options, providers=list(PROVIDERS), disabled_optimizers=list(disabled))
    except Exception as error:  # onnxruntime's exceptions have no base class of their own
        raise failure("compile the graph", error) from error


def failure(what: str, error: BaseException) -> BackendError:
    """A BackendError for an onnxruntime exception: `what` failed, and the first line that says why."""
    reason = first_line(RuntimeError(_PREFIX.sub("", str(error))))
    return BackendError(f"onnxruntime could not {what}: {reason}")

"""`quantkit audit`: what an engine really computes, from a plan, or from an inspector's JSON without any GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from quantkit.backends.trt.audit import examine
from quantkit.errors import InputError
from quantkit.files import read_bytes


def audit_file(path: Path, *, trust: bool = False, times: Path | None = None) -> dict[str, Any]:
    """The audit of an engine as JSON values, every layer included.

    Args:
        path: a plan; or the JSON that TensorRT's engine inspector gave for one ("Layers"), as trtexec exports it.
        trust: load a plan that was not built by this user on this machine.
        times: for an inspector's JSON, the profile beside it: layer name -> milliseconds, or trtexec's list.

    Raises:
        InputError: the JSON is no inspector's or no profile.
        StorageError, BackendError: the plan cannot be had; see `TensorRTBackend.load`.
    """
    if path.suffix == ".json":
        found = examine(read_inspection(path), None if times is None else read_times(times))
        return {"engine": str(path), **found.as_json(layers=True)}
    from quantkit.backends.trt.backend import TensorRTBackend

    audit, told = TensorRTBackend().inspect(path, trust=trust)
    return {"engine": str(path), **told, **audit.as_json(layers=True)}


def read_inspection(path: Path) -> dict[str, Any]:
    """An inspector's JSON.

    Raises:
        InputError: it is not JSON, or has no list of layers.
    """
    value = read_json(path)
    if not isinstance(value, dict) or not isinstance(value.get("Layers"), list):
        raise InputError(f"{path} is no JSON of TensorRT's engine inspector: it has no list 'Layers'.")
    return value


def read_times(path: Path) -> dict[str, float]:
    """Milliseconds by layer: an object, or the list that `trtexec --exportProfile` writes.

    Raises:
        InputError: neither.
    """
    value = read_json(path)
    if isinstance(value, list):
        entries = [item for item in value if isinstance(item, dict) and "name" in item]
        value = {str(item["name"]): item.get("averageMs", item.get("medianMs")) for item in entries}
    if not isinstance(value, dict) or not all(isinstance(ms, (int, float)) for ms in value.values()):
        raise InputError(f"{path} is no profile: expected layer names with milliseconds.")
    return {str(name): float(ms) for name, ms in value.items()}


def read_json(path: Path) -> Any:
    """A JSON value; InputError when the file holds none."""
    try:
        return read_bytes(path, json.loads)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}.") from error

"""The record of a run: plain JSON that says what was done, with what, and what came out.

`schema` is 1. Later versions may add keys; a reader ignores those it does not know. A failed engine is a row with its
reason, never an absence.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from quantkit import __version__
from quantkit.errors import InputError
from quantkit.files import read_bytes, write_json

SCHEMA = 1
PACKAGES = ("numpy", "scipy", "numba", "onnx", "openvino", "onnxruntime", "transformers", "tokenizers", "tensorrt")


def versions() -> dict[str, str]:
    """Installed version of quantkit and of every package that can change a figure."""
    found = {"python": platform.python_version(), "quantkit": __version__}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def context(settings: Mapping[str, Any], workers: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Machine, versions, time and the settings of this run; `workers` are those that shared the work."""
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command_line(sys.argv),
        "machine": machine(),
        "versions": versions(),
        "settings": dict(settings),
        **({"workers": dict(workers)} if workers else {}),
    }


def machine() -> dict[str, Any]:
    """Processor, the cores that this process may use, and operating system."""
    return {"cpu": cpu_name(), "cores": available_cores(), "system": platform.platform()}


def command_line(argv: Sequence[str]) -> str:
    """The command as one would type it again in a shell; a program that calls the library is named by its file."""
    name = Path(argv[0]).name
    return shlex.join(["quantkit" if name == "__main__.py" else name, *argv[1:]])


def cpu_name() -> str:
    """What the processor calls itself."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def available_cores() -> int:
    """Cores this process may run on, which in a container can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True)
class EngineRow:
    """What one engine is worth; `metrics` maps a metric to value, stderr and higher_is_better."""

    precision: str
    backend: str
    status: str = "ok"
    compute: str = ""
    reason: str = ""
    metrics: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    latency_ms: Mapping[str, float] = field(default_factory=dict)
    throughput_per_s: float | None = None
    speedup: float | None = None
    size_bytes: int | None = None
    model_file: str = ""
    int8_ops: int | None = None
    float_ops: int | None = None
    against_fp32: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The row as it stands in record.json; what was not measured is left out, status and metrics never are."""
        always = {
            "precision",
            "backend",
            "compute",
            "status",
            "metrics",
            "latency_ms",
            "throughput_per_s",
            "size_bytes",
        }
        row = {name: getattr(self, name) for name in self.__dataclass_fields__}
        row["notes"] = list(self.notes)
        return {name: value for name, value in row.items() if name in always or value not in (None, "", [])}


@dataclass(frozen=True)
class Record:
    """One run, whole. `data` is the JSON value described in docs/formats.md."""

    data: dict[str, Any]

    @property
    def engines(self) -> list[dict[str, Any]]:
        """The engine rows."""
        return list(self.data.get("engines", ()))

    def engine(self, precision: str) -> dict[str, Any]:
        """The row of one precision; InputError when the run had none."""
        for row in self.engines:
            if row["precision"] == precision:
                return row
        raise InputError(f"This record has no {precision} engine; it has {[r['precision'] for r in self.engines]}.")

    def save(self, path: Path) -> Path:
        """Writes the record atomically and returns the path."""
        return write_json(path, self.data)


def load_record(path: str | Path) -> Record:
    """Reads a record.json.

    Raises:
        InputError: it is not JSON, not a record, or of a schema this version does not know.
        StorageError: it cannot be read.
    """
    try:
        data = read_bytes(Path(path), json.loads)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}.", "Give the record.json that `quantkit run` wrote.") from error
    if isinstance(data, dict) and isinstance(data.get("sensitivity"), dict):
        data = {"engines": [], **data}  # a record of `quantkit sensitivity` has no engine that was evaluated
    parts = "cells" if isinstance(data, dict) and data.get("kind") == "compare" else "engines"
    if not isinstance(data, dict) or data.get("schema") != SCHEMA or not isinstance(data.get(parts), list):
        raise InputError(
            f"{path} is not a record of schema {SCHEMA}.", "Give the record.json that `quantkit run` wrote."
        )
    return Record(data)

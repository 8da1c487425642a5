"""Refinements on disk: one .npz with a JSON header, read without unpickling anything."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.errors import TableError
from quantkit.files import read_bytes, write_bytes
from quantkit.network.precision import QuantizedWeight
from quantkit.network.refinement import Refinement
from quantkit.tables.table import Entry

VERSION = 2
HEADER = "header"
ENTRY_FIELDS = ("scale", "minimum", "maximum", "method", "reason")


def save_refinement(path: Path, refinement: Refinement, seconds: float) -> Path:
    """Writes a refinement, and how long it took to make."""
    return write_bytes(path, dump_refinement(refinement, seconds))


def dump_refinement(refinement: Refinement, seconds: float = 0.0) -> bytes:
    """The bytes of a refinement's file."""
    arrays: dict[str, Any] = {}
    for part, values in _parts(refinement).items():
        arrays |= {f"{part}/{i}": value for i, value in enumerate(values.values())}
    for i, weight in enumerate(refinement.weights.values()):
        arrays |= {f"codes/{i}": weight.codes, f"scales/{i}": weight.scales}
    header = {
        "version": VERSION,
        "seconds": seconds,
        "names": {part: list(values) for part, values in _parts(refinement).items()}
        | {"weights": list(refinement.weights)},
        "entries": {
            name: [float(entry.scale), entry.minimum, entry.maximum, entry.method, entry.reason]
            for name, entry in refinement.entries.items()
        },
        "steps": list(refinement.steps),
        "edges": [dict(edge) for edge in refinement.edges],
    }
    buffer = io.BytesIO()
    arrays[HEADER] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def load_refinement(path: Path) -> tuple[Refinement, float]:
    """A refinement that `save_refinement` wrote, and the seconds it took.

    Raises:
        TableError: the file is damaged or of another version.
        StorageError: there is no such file, or it cannot be read.
    """
    return parse_refinement(read_bytes(path), str(path))


def parse_refinement(data: bytes, source: str) -> tuple[Refinement, float]:
    """`load_refinement` of bytes; `source` is named in errors."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            header = json.loads(arrays[HEADER].tobytes())
            if header["version"] != VERSION:
                raise TableError(f"{source} has version {header['version']}; expected {VERSION}.")
            names = header["names"]
            parts = {
                part: {name: arrays[f"{part}/{i}"] for i, name in enumerate(names[part])}
                for part in ("constants", "biases", "factors", "summands")
            }
            weights = {
                name: QuantizedWeight(arrays[f"codes/{i}"], arrays[f"scales/{i}"])
                for i, name in enumerate(names["weights"])
            }
        entries = {name: Entry(**dict(zip(ENTRY_FIELDS, row, strict=True))) for name, row in header["entries"].items()}
        steps, edges, seconds = tuple(header["steps"]), tuple(header["edges"]), float(header["seconds"])
    except (
        zipfile.BadZipFile,
        LookupError,
        ValueError,
        TypeError,
        AttributeError,
        RecursionError,
        EOFError,
        OSError,
    ) as error:
        raise TableError(f"{source} is no refinement, or a damaged one: {error}.", "Delete the file.") from error
    return Refinement(**parts, weights=weights, entries=entries, steps=steps, edges=edges), seconds


def _parts(refinement: Refinement) -> dict[str, dict[str, Any]]:
    """The parts that are plain arrays by name."""
    return {
        "constants": dict(refinement.constants),
        "biases": dict(refinement.biases),
        "factors": dict(refinement.factors),
        "summands": dict(refinement.summands),
    }

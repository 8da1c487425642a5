"""Refinements on disk: one .npz with a JSON header, read without unpickling anything."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.collect.store import DAMAGED, read_member
from quantkit.errors import QuantkitError, TableError
from quantkit.files import npz_bytes, read_bytes, sha256_array, sha256_json, write_bytes
from quantkit.network.precision import QuantizedWeight
from quantkit.network.refinement import Refinement
from quantkit.network.splitting import is_split
from quantkit.tables.table import Entry

VERSION = 4
HEADER = "header"
ENTRY_FIELDS = ("scale", "minimum", "maximum", "method", "reason")
PARTS = ("constants", "biases", "factors", "summands")
DTYPES = {"codes": "|i1", "channels": "<i4"}
"""Of the members that are not float32."""
DIGEST = "sha256"


def save_refinement(path: Path, refinement: Refinement, seconds: float) -> Path:
    """Writes a refinement, and how long it took to make (format in docs/formats.md)."""
    return write_bytes(path, dump_refinement(refinement, seconds))


def dump_refinement(refinement: Refinement, seconds: float = 0.0) -> bytes:
    """The bytes of a refinement's file."""
    arrays: dict[str, Any] = {}
    for part, values in _parts(refinement).items():
        arrays |= {f"{part}/{i}": np.asarray(value, "<f4") for i, value in enumerate(values.values())}
    for i, weight in enumerate(refinement.weights.values()):
        arrays |= {f"codes/{i}": weight.codes, f"scales/{i}": np.asarray(weight.scales, "<f4")}
    arrays |= {f"channels/{i}": np.asarray(value, "<i4") for i, value in enumerate(refinement.channels.values())}
    header: dict[str, Any] = {
        "version": VERSION,
        "seconds": seconds,
        "names": {part: list(values) for part, values in _parts(refinement).items()}
        | {"weights": list(refinement.weights), "channels": list(refinement.channels)},
        "shapes": {name: list(array.shape) for name, array in arrays.items()},
        "entries": {
            name: [float(entry.scale), entry.minimum, entry.maximum, entry.method, entry.reason]
            for name, entry in refinement.entries.items()
        },
        "steps": list(refinement.steps),
        "edges": [dict(edge) for edge in refinement.edges],
    }
    header[DIGEST] = digest_of(header, arrays)
    arrays[HEADER] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    return npz_bytes(arrays, compressed=False)


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
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
                raise TableError("a member is compressed, and none should be.")  # so none is larger than the file
            return _read_archive(archive)
    except QuantkitError as error:
        raise TableError(f"{source} cannot be used: {error.message}", "Delete the file.") from error
    except DAMAGED as error:
        raise TableError(f"{source} is no refinement, or a damaged one: {error}.", "Delete the file.") from error


def digest_of(header: Mapping[str, Any], arrays: Mapping[str, Any]) -> str:
    """SHA-256 over the header without its own digest, and over all arrays in the order of their names."""
    digest = hashlib.sha256(sha256_json({key: value for key, value in header.items() if key != DIGEST}).encode())
    for name in sorted(arrays):
        digest.update(name.encode())
        sha256_array(digest, arrays[name])
    return digest.hexdigest()


def _read_archive(archive: zipfile.ZipFile) -> tuple[Refinement, float]:
    """The checked content of an open archive."""
    header = json.loads(read_member(archive, HEADER, ("|u1",), None).tobytes())
    if header["version"] != VERSION:
        raise TableError(f"it has version {header['version']!r}; this release reads {VERSION}.")
    names, shapes = header["names"], header["shapes"]
    kinds = {part: len(names[part]) for part in (*PARTS, "channels")}
    kinds |= {kind: len(names["weights"]) for kind in ("codes", "scales")}
    arrays = {
        name: read_member(archive, name, (DTYPES.get(kind, "<f4"),), tuple(shapes[name]))
        for kind, count in kinds.items()
        for name in (f"{kind}/{i}" for i in range(count))
    }
    if digest_of(header, arrays) != header[DIGEST]:
        raise TableError("its SHA-256 does not fit its content.")
    parts = {part: {str(name): arrays[f"{part}/{i}"] for i, name in enumerate(names[part])} for part in PARTS}
    weights = {
        str(name): QuantizedWeight(arrays[f"codes/{i}"], arrays[f"scales/{i}"])
        for i, name in enumerate(names["weights"])
    }
    if odd := [name for name, w in weights.items() if w.codes.ndim != 2 or w.scales.shape != w.codes.shape[1:]]:
        raise TableError(f"codes and scales of {odd[0]!r} do not fit each other.")
    channels = {str(name): arrays[f"channels/{i}"] for i, name in enumerate(names["channels"])}
    if odd := [name for name, at in channels.items() if not is_split(at)]:
        raise TableError(f"the channels of {odd[0]!r} are no copies of channels.")
    entries = {name: Entry(**dict(zip(ENTRY_FIELDS, row, strict=True))) for name, row in header["entries"].items()}
    steps = tuple(map(str, header["steps"]))
    edges = tuple(dict(edge) for edge in header["edges"])
    refinement = Refinement(**parts, weights=weights, channels=channels, entries=entries, steps=steps, edges=edges)
    return refinement, float(header["seconds"])


def _parts(refinement: Refinement) -> dict[str, dict[str, Any]]:
    """The parts that are plain arrays by name."""
    return {
        "constants": dict(refinement.constants),
        "biases": dict(refinement.biases),
        "factors": dict(refinement.factors),
        "summands": dict(refinement.summands),
    }

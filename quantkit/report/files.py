"""The files beside a record that a report draws from: read if they are there, with a sentence for each that is not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quantkit.collect.histogram import Histogram
from quantkit.collect.store import load_histograms
from quantkit.errors import InputError, QuantkitError
from quantkit.files import read_bytes, sha256_file

TENSORS, HISTOGRAMS, SENSITIVITY = "tensors", "histograms", "sensitivity"
"""Names under which a record lists its files; tensors.json, histograms.npz, sensitivity.json."""
TENSORS_TYPE, TENSORS_VERSION = "quantkit.tensors", 1


@dataclass(frozen=True)
class Beside:
    """What lies beside a record.

    Attributes:
        tensors: rows of tensors.json (docs/report.md); empty without it.
        histograms: tensor name -> histogram; empty without histograms.npz.
        sensitivity: the record of `quantkit sensitivity`, if there is one.
        notes: what is missing or does not belong to the record, one sentence each.
    """

    tensors: list[dict[str, Any]] = field(default_factory=list)
    histograms: Mapping[str, Histogram] = field(default_factory=dict)
    sensitivity: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()


def read_beside(record: Mapping[str, Any], folder: Path) -> Beside:
    """Reads what the record names, and a sensitivity.json in the same folder.

    A file that is missing, damaged, or not the one that the run wrote, is left out with a note; a report of the rest is
    worth more than none.
    """
    notes: list[str] = []
    listed = record.get("files")
    files = listed if isinstance(listed, dict) else {}
    tensors: list[dict[str, Any]] = []
    histograms: Mapping[str, Histogram] = {}
    if (path := _listed(files, TENSORS, folder, notes)) is not None:
        tensors = _try(lambda: _read_tensors(path), notes) or []
    if (path := _listed(files, HISTOGRAMS, folder, notes)) is not None:
        histograms = _try(lambda: load_histograms(path).histograms, notes) or {}
    sensitivity = record.get(SENSITIVITY)
    beside = folder / f"{SENSITIVITY}.json"
    if sensitivity is None and beside.is_file():
        sensitivity = _try(lambda: _read_object(beside), notes)
    if record.get("calibration") and not tensors:
        notes.append("This record comes without tensors.json: there is nothing to show tensor by tensor.")
    elif tensors and not histograms:
        notes.append("The histograms of this run are not at hand: ranges are shown, their histograms are not.")
    return Beside(tensors, histograms, sensitivity if isinstance(sensitivity, dict) else None, tuple(notes))


def _listed(files: Mapping[str, Any], name: str, folder: Path, notes: list[str]) -> Path | None:
    """The path of a file that the record lists, when it is there and unchanged."""
    entry = files.get(name)
    if not isinstance(entry, dict) or not isinstance(entry.get("path"), str):
        return None
    path = folder / Path(entry["path"]).name  # beside the record, whatever the record says
    if not path.is_file():
        notes.append(f"{path.name} is not beside the record.")
        return None
    if sha256_file(path) != entry.get("sha256"):
        notes.append(f"{path.name} is not the file that this run wrote (another SHA-256), and is left out.")
        return None
    return path


def _try(read: Any, notes: list[str]) -> Any:
    """What `read` gives, or None with a note."""
    try:
        return read()
    except QuantkitError as error:
        notes.append(error.message)
        return None


def _read_object(path: Path) -> dict[str, Any]:
    """A JSON object; InputError when it is none."""
    try:
        value = read_bytes(path, json.loads)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path.name} is not JSON: {error}.") from error
    if not isinstance(value, dict):
        raise InputError(f"{path.name} is not a JSON object.")
    return value


def _read_tensors(path: Path) -> list[dict[str, Any]]:
    """The rows of tensors.json; InputError when it is another file."""
    value = _read_object(path)
    rows = value.get("tensors")
    if (value.get("_type"), value.get("_version")) != (TENSORS_TYPE, TENSORS_VERSION) or not isinstance(rows, list):
        raise InputError(f"{path.name} is not a {TENSORS_TYPE} file of version {TENSORS_VERSION}.")
    if not all(isinstance(row, dict) and isinstance(row.get("name"), str) for row in rows):
        raise InputError(f"{path.name} holds a row without a name.")
    return rows

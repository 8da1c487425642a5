"""quantkit's own table format: JSON that keeps everything, one tensor a line.

Scales are written as the shortest decimal of their float64 value, so they come back bit for bit.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from quantkit.errors import TableError
from quantkit.tables.provenance import Provenance
from quantkit.tables.strict_json import parse_json
from quantkit.tables.table import CalibrationTable, Entry, check_count, decode, to_scale

TYPE = "quantkit.CalibrationTable"
VERSION = 1
_FIELDS = ("_type", "_version", "algorithm", "parameters", "provenance", "entries")
_ENTRY_FIELDS = ("scale", "minimum", "maximum", "method", "reason")


def looks_like(data: bytes) -> bool:
    """Whether `data` starts like a JSON object."""
    return data.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"{"


def dumps(table: CalibrationTable, *, algorithm: str | None = None, version: int | None = None) -> str:
    """The table as JSON text that ends in a newline; `algorithm` and `version` are TensorRT's and have no place here.

    Raises:
        TableError: a parameter is no JSON value, or is NaN or infinite.
    """
    head: dict[str, Any] = {
        "_type": TYPE,
        "_version": VERSION,
        "algorithm": table.algorithm,
        "parameters": table.parameters,
        "provenance": table.provenance.to_dict() if table.provenance else None,
    }
    lines = ",\n".join(f"    {_text(name)}: {_text(_entry_fields(entry))}" for name, entry in table.entries.items())
    entries = f"{{\n{lines}\n  }}" if lines else "{}"
    return _text(head, indent=2).removesuffix("\n}") + f',\n  "entries": {entries}\n}}\n'


def loads(data: bytes | str, source: str = "calibration table") -> CalibrationTable:
    """The table in JSON text; `source` names it in messages.

    Raises:
        TableError: not JSON (with the line), another type or version, an unknown or missing field, a value of the
            wrong type, a name given twice, a scale that no build can use (with the tensor).
    """
    return from_json(parse_json(decode(data, source), source), source)


def from_json(document: Any, source: str) -> CalibrationTable:
    """As `loads`, of a parsed document."""
    if not isinstance(document, dict) or document.get("_type") != TYPE:
        raise TableError(f'{source} is JSON, but not a calibration table: there is no "_type": "{TYPE}" in it.')
    if document.get("_version") != VERSION:
        message = f"{source} has format version {document.get('_version')!r}; this quantkit reads version {VERSION}."
        raise TableError(message, "Update quantkit, or calibrate again.")
    try:
        return _table(document)
    except TableError as error:
        raise TableError(f"{source}: {error.message}", error.hint) from error


def _table(document: dict[str, Any]) -> CalibrationTable:
    """The table that a document of the right type and version describes."""
    _check_fields(document, _FIELDS, required=_FIELDS)
    _check_type(document, "algorithm", str)
    _check_type(document, "parameters", dict)
    _check_type(document, "entries", dict)
    provenance = document["provenance"]
    if provenance is not None:
        _check_type(document, "provenance", dict)
        provenance = Provenance.from_dict(provenance)
    check_count(len(document["entries"]), "the table")
    entries = {name: _entry(fields, f"tensor {name!r}: ") for name, fields in document["entries"].items()}
    return CalibrationTable(entries, document["algorithm"], document["parameters"], provenance)


def _text(value: Any, indent: int | None = None) -> str:
    """Strict JSON of one value."""
    try:
        text = json.dumps(value, indent=indent, allow_nan=False, ensure_ascii=False)
        text.encode()  # a lone surrogate has no UTF-8
        return text
    except (TypeError, ValueError) as error:
        raise TableError(f"The table cannot be written as JSON: {error}.") from error


def _entry_fields(entry: Entry) -> dict[str, Any]:
    """The fields of an entry that say something."""
    optional = {name: getattr(entry, name) for name in _ENTRY_FIELDS[1:]}
    return {"scale": float(entry.scale), **{name: value for name, value in optional.items() if value not in (None, "")}}


def _entry(fields: Any, where: str) -> Entry:
    """The entry that a JSON object describes; `where` starts every message."""
    if not isinstance(fields, dict):
        raise TableError(f"{where}expected an object, found {type(fields).__name__}.")
    _check_fields(fields, _ENTRY_FIELDS, required=("scale",), where=where)
    numbers = {name: _number(fields, name, where) for name in _ENTRY_FIELDS[:3] if name in fields}
    for name in ("method", "reason"):
        if name in fields:
            _check_type(fields, name, str, where)
    try:
        scale: np.float32 = to_scale(numbers.pop("scale"))
        return Entry(scale, **numbers, method=fields.get("method", ""), reason=fields.get("reason", ""))
    except TableError as error:
        raise TableError(where + error.message) from error


def _number(fields: dict[str, Any], name: str, where: str) -> float:
    """A field as a float64; integers beyond it become infinite, which no entry takes."""
    _check_type(fields, name, (int, float), where)
    try:
        return float(fields[name])
    except OverflowError:
        return float("inf")


def _check_fields(fields: dict[str, Any], known: tuple[str, ...], required: tuple[str, ...], where: str = "") -> None:
    """Refuses unknown and missing fields."""
    if unknown := [name for name in fields if name not in known]:
        raise TableError(f"{where}unknown field {unknown[0]!r}; known: {', '.join(known)}.")
    if missing := [name for name in required if name not in fields]:
        raise TableError(f"{where}the field {missing[0]!r} is missing.")


def _check_type(fields: dict[str, Any], name: str, expected: type | tuple[type, ...], where: str = "") -> None:
    """Refuses a value of another JSON type; true and false are no numbers."""
    value = fields[name]
    if not isinstance(value, expected) or isinstance(value, bool):
        words = "text" if expected is str else "an object" if expected is dict else "a number"
        raise TableError(f"{where}{name!r} is {type(value).__name__}, expected {words}.")

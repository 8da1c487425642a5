"""Where a calibration table came from, and whether that still fits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from quantkit.errors import TableError

_WORDS = {
    "model_sha256": "model",
    "data_sha256": "calibration data",
    "samples": "samples",
    "seed": "seed",
    "batch": "batch size",
    "seq_len": "sequence length",
    "method": "method",
    "parameters": "parameters",
    "range_mode": "range mode",
    "ignore_padding": "ignore padding",
    "collector": "collector",
}
_OPTIONAL: dict[str, type] = {"seed": int, "seq_len": int}
_TYPES: dict[str, type] = {
    "model_sha256": str,
    "data_sha256": str,
    "samples": int,
    "batch": int,
    "method": str,
    "parameters": dict,
    "range_mode": str,
    "ignore_padding": bool,
    "collector": str,
    "versions": dict,
}


@dataclass(frozen=True)
class Provenance:
    """Everything that decides the numbers of a table.

    Args:
        model_sha256: hexadecimal SHA-256 of the model's weights and graph.
        data_sha256: hexadecimal SHA-256 of the token arrays that were run (not of the file they were read from).
        samples: number of calibration rows.
        seed: of the sampling; None when nothing was drawn.
        batch: rows a batch.
        seq_len: tokens a row; None when every batch has its own length.
        method: name of the calibrator ("entropy").
        parameters: the calibrator's parameters.
        range_mode: how histogram ranges grow ("tensorrt" or "pow2").
        ignore_padding: whether padded positions were left out.
        collector: name of the backend that ran the model.
        versions: package -> version; told, never compared.
    """

    model_sha256: str
    data_sha256: str
    samples: int
    seed: int | None
    batch: int
    seq_len: int | None
    method: str
    parameters: dict[str, Any]
    range_mode: str
    ignore_padding: bool
    collector: str
    versions: dict[str, str] = field(default_factory=dict)

    def mismatches(self, other: Provenance) -> list[str]:
        """Readable reasons why a table of this provenance is not what `other` would give; empty when it is.

        Versions of packages are not compared here: see `version_changes`.
        """
        pairs = ((name, getattr(self, name), getattr(other, name)) for name in _WORDS)
        return [
            f"{_WORDS[name]}: table {_shown(mine)}, this {_WORDS[name]} {_shown(theirs)}"
            if name.endswith("sha256")
            else f"{_WORDS[name]}: table {_shown(mine)}, this run {_shown(theirs)}"
            for name, mine, theirs in pairs
            if mine != theirs
        ]

    def version_changes(self, other: Provenance) -> list[str]:
        """Readable differences of the package versions; worth a warning, no reason to refuse a table."""
        names = sorted(self.versions.keys() | other.versions.keys())
        return [
            f"{name}: table {self.versions.get(name, 'none')}, here {other.versions.get(name, 'none')}"
            for name in names
            if self.versions.get(name) != other.versions.get(name)
        ]

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values, in the order of the class."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Provenance:
        """The inverse of `to_dict`.

        Raises:
            TableError: a field is unknown, missing or of another type.
        """
        names = [f.name for f in fields(cls)]
        if unknown := sorted(set(value) - set(names)):
            raise TableError(f"The provenance has an unknown field {unknown[0]!r}; known: {', '.join(names)}.")
        if missing := [name for name in names if name not in value]:
            raise TableError(f"The provenance lacks the field {missing[0]!r}.")
        for name in names:
            _check_type(name, value[name])
        return cls(**value)


def _check_type(name: str, value: Any) -> None:
    """Refuses a value of the wrong JSON type; bool is no int here."""
    if name in _OPTIONAL:
        expected, allowed = _OPTIONAL[name], value is None
    else:
        expected, allowed = _TYPES[name], False
    fits = isinstance(value, expected) and (expected is bool or not isinstance(value, bool))
    if not (allowed or fits):
        raise TableError(f"The provenance field {name!r} is {value!r}, expected {expected.__name__}.")
    if name == "versions" and not all(isinstance(v, str) for v in value.values()):
        raise TableError("The provenance field 'versions' must map names to strings.")


def _shown(value: Any) -> str:
    """A value as a reader wants it: hashes by their first digits, None and flags in words."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key}={item}" for key, item in sorted(value.items())) or "none"
    text = str(value)
    return f"{text[:12]}..." if len(text) == 64 else text

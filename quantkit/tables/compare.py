"""Two tables against each other, and several made one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quantkit.errors import TableError, UnknownNameError
from quantkit.tables.table import CalibrationTable, Entry

PREFERENCES = ("first", "last", "widest")


@dataclass(frozen=True)
class Change:
    """A tensor whose scale differs: both float32 scales, and second / first (inf or 0 where one is zero)."""

    name: str
    first: np.float32
    second: np.float32

    @property
    def ratio(self) -> float:
        """Second scale / first scale, in float64."""
        if self.first == 0:
            return math.inf
        return float(self.second) / float(self.first)

    @property
    def distance(self) -> float:
        """How far apart they are: the larger of ratio and 1 / ratio, minus 1."""
        low, high = sorted((float(self.first), float(self.second)))
        return math.inf if low == 0 else high / low - 1


@dataclass(frozen=True)
class Difference:
    """What two tables do not share.

    Attributes:
        missing: names that only the first has.
        extra: names that only the second has.
        changed: tensors whose scales differ by more than the tolerance, the farthest apart first.
        same: number of tensors whose scales do not.
    """

    missing: tuple[str, ...]
    extra: tuple[str, ...]
    changed: tuple[Change, ...]
    same: int

    def __bool__(self) -> bool:
        return bool(self.missing or self.extra or self.changed)


def diff(first: CalibrationTable, second: CalibrationTable, tolerance: float = 0.0) -> Difference:
    """Compares names and scales.

    Args:
        first: the table that ratios are against.
        second: the other.
        tolerance: largest ratio of two scales, minus 1, that counts as no difference; with 0 they must be equal bit
            for bit.
    """
    common = [name for name in first.names if name in second]
    pairs = (Change(name, first.entries[name].scale, second.entries[name].scale) for name in common)
    changed = [pair for pair in pairs if pair.first != pair.second and not pair.distance <= tolerance]
    return Difference(
        tuple(name for name in first.names if name not in second),
        tuple(name for name in second.names if name not in first),
        tuple(sorted(changed, key=lambda change: -change.distance)),
        len(common) - len(changed),
    )


def merge(tables: Sequence[CalibrationTable], names: Sequence[str], prefer: str = "") -> CalibrationTable:
    """One table with the tensors of all, in the order in which they first come.

    Method, parameters and provenance are kept where all tables agree, and left out otherwise; each entry keeps its own.

    Args:
        tables: at least one.
        names: what the tables are called in messages.
        prefer: which entry is taken where the scales of a tensor differ: that of the first or last table that has it,
            or the one with the larger scale; "" takes none.

    Raises:
        TableError: the scales of a tensor differ and `prefer` is empty; tensor and tables are named.
        UnknownNameError: there is no such preference.
    """
    if prefer and prefer not in PREFERENCES:
        raise UnknownNameError("preference", prefer, PREFERENCES)
    entries: dict[str, Entry] = {}
    home: dict[str, str] = {}
    for table, label in zip(tables, names, strict=True):
        for name, entry in table.entries.items():
            mine = entries.get(name)
            if mine is not None and mine.scale != entry.scale and not prefer:
                raise TableError(
                    f"{home[name]} and {label} give {name!r} the scales {mine.scale:g} and {entry.scale:g}.",
                    f"Say with --prefer which to take: {', '.join(PREFERENCES)}.",
                )
            if mine is None or prefer == "last" or (prefer == "widest" and entry.scale > mine.scale):
                entries[name], home[name] = entry, label
    first = tables[0]
    agree = all((t.algorithm, t.parameters) == (first.algorithm, first.parameters) for t in tables)
    same_origin = all(t.provenance == first.provenance for t in tables)
    return CalibrationTable(
        entries,
        first.algorithm if agree else "",
        first.parameters if agree else {},
        first.provenance if same_origin else None,
    )

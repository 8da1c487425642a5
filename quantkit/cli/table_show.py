"""How the table toolbox shows tables, differences and findings: 80 columns, or JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table

from quantkit.cli.show import show_json
from quantkit.cli.table import SORTS
from quantkit.errors import UnknownNameError

if TYPE_CHECKING:
    from quantkit.tables.compare import Difference
    from quantkit.tables.scan import Finding, Level
    from quantkit.tables.table import CalibrationTable, Entry

MOST_SHOWN = 20
LEVELS: tuple[Level, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Selection:
    """Which rows of a table, in which order."""

    match: str = "*"
    sort: str = "file"
    reverse: bool = False
    limit: int = 0

    def of(self, table: CalibrationTable) -> list[tuple[str, Entry]]:
        """The rows; UnknownNameError when there is no such order."""
        if self.sort not in SORTS:
            raise UnknownNameError("order", self.sort, SORTS)
        rows = [(name, entry) for name, entry in table.entries.items() if fnmatchcase(name, self.match)]
        if self.sort == "name":
            rows.sort(key=lambda row: row[0])
        elif self.sort == "amax":
            rows.sort(key=lambda row: row[1].scale)
        elif self.sort == "method":
            rows.sort(key=lambda row: row[1].method)
        if self.reverse:
            rows.reverse()
        return rows[: self.limit] if self.limit else rows


def grid(*titles: str, folded: int = 1) -> Table:
    """A table without lines; the first `folded` columns are text that may wrap, the others are numbers."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, title in enumerate(titles):
        text = i < folded
        table.add_column(title, overflow="fold", no_wrap=not text, justify="left" if text else "right")
    return table


def show_table(path: Path, kind: str | None, chosen: Selection, json: bool, quiet: bool) -> None:
    """Prints the tensors of a table."""
    from quantkit.pipeline.toolbox import activation_rows, is_model, load_any

    loaded = load_any(path, kind)
    rows = chosen.of(loaded.table)
    grids = {row["tensor"]: row for row in activation_rows(path)} if is_model(path, kind) else {}
    if json:
        tensors = [_row(name, entry, grids.get(name)) for name, entry in rows]
        head = {"file": str(path), "format": loaded.format, "method": loaded.table.algorithm, "notes": loaded.notes}
        show_json({**head, "tensors": tensors})
        return
    view = grid("tensor", "amax", "scale", "bits", *(["zero", "codes"] if grids else []))
    for name, entry in rows:
        cells = [name, f"{entry.amax:.6g}", f"{float(entry.scale):.7g}", bits(entry)]
        if own := grids.get(name):
            cells[2:4] = [f"{own['scale']:.7g}", bits_of(own["scale"])]
            cells += [str(own["zero_point"]), own["dtype"]]
        view.add_row(*cells)
    console = Console(highlight=False, markup=False)
    console.print(view)
    if not quiet:
        method = f", method {loaded.table.algorithm}" if loaded.table.algorithm else ""
        console.print(f"{len(rows)} of {len(loaded.table)} tensors, format {loaded.format}{method}")
        say(loaded.notes)


def _row(name: str, entry: Entry, own: dict[str, Any] | None) -> dict[str, Any]:
    """One tensor as JSON."""
    row = {
        "tensor": name,
        "amax": entry.amax,
        "scale": float(entry.scale),
        "bits": bits(entry),
        "minimum": entry.minimum,
        "maximum": entry.maximum,
        "method": entry.method,
        "reason": entry.reason,
    }
    return {**row, "grid": {key: own[key] for key in ("scale", "zero_point", "dtype")}} if own else row


def bits(entry: Entry) -> str:
    """The bits of an entry's scale, hexadecimal, as TensorRT's cache writes them."""
    return bits_of(float(entry.scale))


def bits_of(scale: float) -> str:
    """The bits of a float32, hexadecimal without leading zeros."""
    import numpy as np

    return f"{int(np.float32(scale).view(np.uint32)):x}"


def show_weights(path: Path, json: bool) -> None:
    """Prints the weights of a Q/DQ model, a row each; every scale in JSON."""
    from quantkit.pipeline.toolbox import weight_rows

    rows = weight_rows(path)
    if json:
        show_json({"file": str(path), "weights": rows})
        return
    view = grid("weight", "codes", "axis", "scales", "smallest", "largest")
    for row in rows:
        axis = "-" if row["axis"] is None else str(row["axis"])
        ends = (f"{end(row['scales']):.6g}" if row["scales"] else "-" for end in (min, max))
        view.add_row(row["tensor"], row["dtype"], axis, str(len(row["scales"])), *ends)
    Console(highlight=False, markup=False).print(view)


def show_difference(found: Difference, names: Sequence[str], notes: Sequence[str], json: bool, quiet: bool) -> None:
    """Prints what two tables do not share, and remarks on how they were read."""
    if json:
        changed = [
            {"tensor": c.name, "first": float(c.first), "second": float(c.second), "ratio": _finite(c.ratio)}
            for c in found.changed
        ]
        show_json(
            {"missing": found.missing, "extra": found.extra, "changed": changed, "same": found.same, "notes": notes}
        )
        return
    if quiet:
        return
    console = Console(highlight=False, markup=False)
    if found.changed:
        view = grid("tensor", "first", "second", "ratio")
        for change in found.changed:
            ratio = f"{change.ratio:.6f}" if change.ratio < 1000 else f"{change.ratio:.3g}"
            view.add_row(change.name, f"{float(change.first):.7g}", f"{float(change.second):.7g}", ratio)
        console.print(view)
    for name in found.missing:
        console.print(f"missing in {names[1]}: {name}")
    for name in found.extra:
        console.print(f"extra in {names[1]}: {name}")
    counts = {
        "equal": found.same,
        "different": len(found.changed),
        "missing": len(found.missing),
        "extra": len(found.extra),
    }
    console.print(", ".join(f"{count} {word}" for word, count in counts.items()))
    say(notes)


def _finite(value: float) -> float | None:
    return None if value == float("inf") else value


def show_findings(path: Path, count: int, findings: Sequence[Finding], json: bool, quiet: bool) -> None:
    """Prints what `validate` found, kinds that many tensors share cut short."""
    if json:
        show_json({"file": str(path), "tensors": count, "findings": [vars(finding) for finding in findings]})
        return
    if quiet:
        return
    console = Console(highlight=False, markup=False)
    shown: Counter[tuple[str, str]] = Counter()
    for finding in findings:
        key = (finding.level, finding.code)
        shown[key] += 1
        if shown[key] <= MOST_SHOWN:
            where = f"{finding.tensor}: " if finding.tensor else ""
            console.print(f"{finding.level}: {finding.code}: {where}{finding.text}")
    for (level, code), total in shown.items():
        if total > MOST_SHOWN:
            console.print(f"{level}: {code}: and {total - MOST_SHOWN} more; --json lists them all")
    counts = Counter(finding.level for finding in findings)
    summary = ", ".join(f"{counts[level]} {level}{'' if counts[level] == 1 else 's'}" for level in LEVELS)
    console.print(f"{path}: {count} tensors; {summary}", soft_wrap=True)


def say(notes: Iterable[str]) -> None:
    """Prints remarks on standard error."""
    for note in notes:
        typer.echo(f"note: {note}", err=True)

"""What `quantkit repeat` shows in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LEAST_SHOWN = 12
"""Characters of a hash that are enough to tell two apart."""


def show_repeated(found: Mapping[str, Any]) -> None:
    """Prints what is not the same, what is, and the times."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False)
    different = [row for row in found["rows"] if not row["same"]]
    for row in different:
        console.print(f"{row['what']}: {brief(row['before'])} before, {brief(row['after'])} now")
    equal = len(found["rows"]) - len(different)
    console.print(f"{equal} of {len(found['rows'])} results are the same, bit for bit.")
    if found["times"]:
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("only told")
        for title in ("before", "now"):
            table.add_column(title, justify="right")
        for row in found["times"]:
            table.add_row(row["what"], f"{row['before']:.2f}", f"{row['after']:.2f}")
        console.print(table)
    for note in found["notes"]:
        console.print(note)


def brief(value: Any) -> str:
    """A value in few characters."""
    if value is None:
        return "nothing"
    if isinstance(value, str):
        return value[:LEAST_SHOWN] if len(value) == 64 else value
    if isinstance(value, list):
        return " ± ".join(brief(part) for part in value if part is not None)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {brief(part)}" for key, part in value.items())
    return f"{value:.17g}" if isinstance(value, float) else str(value)

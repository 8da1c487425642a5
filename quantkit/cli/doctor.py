"""`quantkit doctor`: what this machine can do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import typer

from quantkit.cli.options import JSON, QUIET

ALL = Annotated[bool, typer.Option("--all", help="Say of everything that a backend can and cannot do how or why.")]


def doctor(
    every: ALL = False,
    json: JSON = False,
    quiet: QUIET = False,
) -> None:
    """Say which backends work here, which precisions they compute, and what is missing."""
    from quantkit.pipeline.doctor import examine

    facts = examine()
    if json:
        from quantkit.cli.show import show_json

        show_json(facts)
    elif quiet:
        for row in facts["backends"]:
            typer.echo(f"{row['name']}: {', '.join(row['precisions']) or row['says']}")
    else:
        show(facts, every=every)


def show(facts: dict[str, Any], *, every: bool = False) -> None:
    """Prints the facts in one screen of 24 lines and 80 columns; with `every`, in as many as it takes."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False)
    machine = facts["machine"]
    console.print(f"{machine['cpu']}, {machine['cores']} cores; {machine['system']}")
    console.print(", ".join(f"{name} {version}" for name, version in facts["versions"].items()))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("backend", "precisions"):
        table.add_column(title, no_wrap=True)
    table.add_column("what it says", overflow="fold")
    for row in facts["backends"]:
        table.add_row(row["name"], ", ".join(row["precisions"]) or "none", row["says"])
    console.print(table)
    for row in facts["backends"]:
        for line in capability_lines(row["name"], (row["facts"] or {}).get("table", ()), every=every):
            console.print(line)
    for row in facts["demo"]:
        console.print(row)
    console.print(f"cache: {facts['cache']}", soft_wrap=True)


def capability_lines(name: str, rows: Sequence[dict[str, Any]], *, every: bool) -> Iterator[str]:
    """A backend's capability table: a line each, or one with what it can do and one with what it cannot."""
    if every:
        yield from (f"{name} {row['name']}: {'yes' if row['possible'] else 'no'}. {row['says']}" for row in rows)
        return
    for possible, verb in ((True, "can"), (False, "cannot")):
        if found := [row["name"] for row in rows if row["possible"] == possible]:
            yield f"{name} {verb}: {', '.join(found)}" + ("" if possible else " (--all says why)")

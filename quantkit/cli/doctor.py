"""`quantkit doctor`: what this machine can do."""

from __future__ import annotations

from typing import Annotated, Any

import typer


def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """Say which backends work here, which precisions they compute, and what is missing."""
    from quantkit.pipeline.doctor import examine

    facts = examine()
    if json:
        from quantkit.cli.show import show_json

        show_json(facts)
        return
    show(facts)


def show_capabilities(console: Any, name: str, rows: Any) -> None:
    """Prints a backend's capability table, where it has one."""
    for row in rows:
        console.print(f"{name} {row['name']}: {'yes' if row['possible'] else 'no'}. {row['says']}", markup=False)


def show(facts: dict[str, Any]) -> None:
    """Prints the facts in one screen."""
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
        show_capabilities(console, row["name"], (row["facts"] or {}).get("table", ()))
    for row in facts["demo"]:
        console.print(row)
    console.print(f"cache: {facts['cache']}", soft_wrap=True)

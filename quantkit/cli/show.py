"""How a command ends: a table for people, JSON for programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

from quantkit.cli.options import Output
from quantkit.types import Watcher


def show_json(value: Any) -> None:
    """Prints a JSON value on standard output."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def watcher(output: Output) -> Watcher:
    """The watcher for this command: bars on standard error, or silence."""
    from quantkit.report.terminal import SilentWatcher, TerminalWatcher

    return SilentWatcher() if output.quiet or output.json else TerminalWatcher()


def tell_report(folder: Path | None, output: Output) -> None:
    """Says on standard error where the report lies, when there is one."""
    path = None if folder is None else folder / "report.html"
    if path is not None and path.is_file() and not (output.json or output.quiet):
        typer.echo(f"Report: {path}", err=True)


def finish(record: dict[str, Any], output: Output) -> None:
    """Prints a record, and ends with exit code 1 when every engine failed."""
    if output.json:
        show_json(record)
    else:
        from quantkit.report.terminal import show_record

        show_record(record)
    if record["engines"] and all(row["status"] != "ok" for row in record["engines"]):
        raise typer.Exit(1)

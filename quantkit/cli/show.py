"""How a command ends: a table for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
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


def answers(output: Output, folder: Path | None) -> bool:
    """Whether the command is to print a table: with --quiet only an answer that goes to no folder."""
    return not output.json and not (output.quiet and folder is not None)


def finish(record: dict[str, Any], output: Output, folder: Path | None) -> None:
    """Prints a record, and ends with exit code 1 when every engine failed.

    Args:
        record: of a run.
        output: how the command is to answer.
        folder: where the record was written, None where it was not.
    """
    if output.json:
        show_json(record)
    elif answers(output, folder):
        from quantkit.report.terminal import show_record

        show_record(record, remarks=not output.quiet)
    end_if_all_failed(record["engines"], output)


def end_if_all_failed(rows: Sequence[dict[str, Any]], output: Output) -> None:
    """Exit code 1 when every engine failed; the reasons are errors, so that --quiet says them too."""
    if not rows or any(row["status"] == "ok" for row in rows):
        return
    if output.quiet:
        for reason in dict.fromkeys(str(row.get("reason", "")) for row in rows):
            typer.echo(f"quantkit: every engine failed: {reason}", err=True)
    raise typer.Exit(1)

"""`quantkit repeat`: a record's job once more, and whether it gives the same."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from quantkit.cli.options import JSON, OPTIONS, QUIET, Output
from quantkit.pipeline.settings import Settings

MOVED = "Where things are now"


def _moved(name: str, kind: Any = str) -> Any:
    """An option of the other commands, here without a default: what is not given stays as the record has it."""
    _, flags, text, _ = OPTIONS[name]
    return Annotated[kind | None, typer.Option(flags[0], help=text, rich_help_panel=MOVED)]


def repeat(
    record: Annotated[Path, typer.Argument(help="A record.json or sensitivity.json, or the folder that holds it.")],
    model: Annotated[
        str | None, typer.Option("--model", help="The model, as for `run`.", rich_help_panel=MOVED)
    ] = None,
    data: _moved("data") = None,  # type: ignore[valid-type]
    calib_data: _moved("calib_data") = None,  # type: ignore[valid-type]
    adapter: _moved("adapter") = None,  # type: ignore[valid-type]
    tokenizer: _moved("tokenizer") = None,  # type: ignore[valid-type]
    table: _moved("table", Path) = None,  # type: ignore[valid-type]
    plan: _moved("plan", Path) = None,  # type: ignore[valid-type]
    threads: _moved("threads", int) = None,  # type: ignore[valid-type]
    workers: _moved("workers", int) = None,  # type: ignore[valid-type]
    scheduler: _moved("scheduler") = None,  # type: ignore[valid-type]
    anyway: Annotated[bool, typer.Option("--anyway", help="Go on though model or data are not those.")] = False,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the new results.")] = Path("quantkit-repeat"),
    json: JSON = False,
    quiet: QUIET = False,
) -> None:
    """Run what a record says once more and compare: table, graphs, answers and metrics, bit for bit.

    Nothing of the cache is used. Exit code 1 when something differs; times are told and decide nothing.
    """
    from quantkit.cli.show import show_json, watcher
    from quantkit.pipeline.repeat import repeat as run_again

    values = {
        name: value for name, value in locals().items() if name in Settings.__dataclass_fields__ and name != "out"
    }
    given = {name: value for name, value in values.items() if value is not None}
    found = run_again(record, out, given, watcher(Output(json, quiet, {})), anyway=anyway)
    if json:
        show_json(found.as_json())
    elif not quiet:
        from quantkit.report.repeated import show_repeated

        show_repeated(found.as_json())
    if not found.same:
        raise typer.Exit(1)

"""`quantkit report`: a stored record as one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quantkit.cli.options import JSON, QUIET


def report(
    record: Annotated[Path, typer.Argument(help="A record.json, a sensitivity.json, or the folder that holds it.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File; report.html beside the record.")] = None,
    json: JSON = False,
    quiet: QUIET = False,
) -> None:
    """Render a stored record as one HTML file that needs no network; nothing is computed."""
    from quantkit.report.html import write_report

    path, notes = write_report(record, out)
    if json:
        from quantkit.cli.show import show_json

        show_json({"report": str(path), "bytes": path.stat().st_size, "notes": list(notes)})
        return
    if quiet:
        return
    typer.echo(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")
    for note in notes:
        typer.echo(note)

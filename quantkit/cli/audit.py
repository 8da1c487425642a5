"""`quantkit audit`: what a TensorRT engine really computes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from quantkit.cli.options import JSON, QUIET

SLOWEST = 12


def audit(
    engine: Annotated[Path, typer.Argument(help="A plan; or the engine inspector's JSON, which needs no GPU.")],
    times: Annotated[
        Path | None, typer.Option("--times", help="Profile beside an inspector's JSON: milliseconds by layer.")
    ] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Load a plan that was not built here; it can run code.")
    ] = False,
    layers: Annotated[bool, typer.Option("--layers", help="Show every layer, not only the slowest.")] = False,
    json: JSON = False,
    quiet: QUIET = False,
) -> None:
    """Say per layer which precision runs, how many products are INT8, where the time goes, and a verdict in words."""
    from quantkit.pipeline.tensorrt.audit import audit_file

    found = audit_file(engine, trust=trust, times=times)
    if json:
        from quantkit.cli.show import show_json

        show_json(found)
    elif quiet:
        for line in found["verdict"]:
            typer.echo(line)
    else:
        show(found, every=layers)


def show(found: dict[str, Any], *, every: bool = False) -> None:
    """Prints the verdict, the counts and the layers."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    for line in found["verdict"]:
        console.print(line, markup=False)
    counts = ", ".join(f"{count} {name}" for name, count in found["gemms"].items()) or "none seen"
    console.print(f"matrix products: {counts}; {found['layers']} layers, {found['reformats']} reformats", markup=False)
    if found["time_share"]:
        shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in found["time_share"].items())
        console.print(f"time: {shares} of {found['total_ms']:.3f} ms", markup=False)
    rows = found["kernel_list"] or found["layer_list"]
    if not every:
        rows = sorted(rows, key=lambda row: -row.get("ms", 0.0))[:SLOWEST]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("layer", overflow="fold")
    table.add_column("kind", overflow="fold")
    for title in ("precision", "ms"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        ms = f"{row['ms']:.4f}" if "ms" in row else "-"
        table.add_row(row["name"][:100], row.get("kind", ""), row.get("precision", "?"), ms)
    console.print(table)

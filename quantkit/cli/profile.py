"""`quantkit profile`: where the time of an encoder layer goes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from quantkit.cli.options import JSON, QUIET
from quantkit.errors import InputError


def profile(
    model: Annotated[str, typer.Argument(help="Model folder; left out with --from.")] = "",
    precisions: Annotated[str, typer.Option("--precision", "-p", help="Engines, with commas.")] = "fp32,fp16",
    lengths: Annotated[str, typer.Option("--seq-len", help="Sequence lengths, with commas.")] = "256,1024",
    batch: Annotated[int, typer.Option("--batch", "-b", help="Sequences a batch.")] = 16,
    network: Annotated[str, typer.Option("--network", help="onnx, api or plugins.")] = "onnx",
    table: Annotated[Path | None, typer.Option("--table", help="Calibration table, for int8.")] = None,
    traced: Annotated[
        list[Path] | None, typer.Option("--from", help="Kernels traced before (JSON); needs no GPU.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for profile.json and profile.svg.")] = None,
    json: JSON = False,
    quiet: QUIET = False,
) -> None:
    """Share of products with weights, attention, and memory-bound operations in an encoder layer's time (TensorRT)."""
    from quantkit.cli.show import show_json
    from quantkit.pipeline.tensorrt.profile import profile_files, profile_model
    from quantkit.report.terminal import SilentWatcher, TerminalWatcher

    if bool(model) == bool(traced):
        raise InputError("Profiling needs a model folder, or kernels traced before (--from).", "Name one of the two.")
    if traced:
        found = profile_files(traced, out)
    else:
        try:
            wanted = [int(length) for length in lengths.split(",")]
        except ValueError:
            raise InputError(f"{lengths!r} are no sequence lengths.", "Write them as 256,1024.") from None
        found = profile_model(
            model,
            precisions=[p.strip() for p in precisions.split(",")],
            lengths=wanted,
            batch=batch,
            network=network,
            table=table,
            watcher=SilentWatcher() if json or quiet else TerminalWatcher(),
            out=out,
        )
    if json:
        show_json(found)
    elif not (quiet and out):
        show(found)


def show(found: dict[str, Any]) -> None:
    """Prints a row an engine, and the published shares."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("engine", "ms a layer", "GEMM", "attention", "memory-bound", "fused"):
        table.add_column(title, justify="left" if title == "engine" else "right", no_wrap=title != "engine")
    for row in found["rows"]:
        if "reason" in row:
            table.add_row(f"{row['name']}: {row['reason']}", *"-----")
            continue
        shares = [f"{100 * row['share'][part]:.0f} %" for part in ("gemm", "attention", "memory")]
        table.add_row(row["name"], f"{row['layer_ms']:.4f}", *shares, "yes" if row["fused_attention"] else "no")
    for length, shares in found["published"].items():
        told = [f"{100 * shares[part]:.0f} %" if part in shares else "-" for part in ("gemm", "attention", "memory")]
        table.add_row(f"published, {length} tokens", "-", *told, "-")
    Console(highlight=False).print(table)

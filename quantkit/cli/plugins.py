"""`quantkit plugins`: our own TensorRT plugins, built for the GPU at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quantkit.cli.options import JSON, QUIET

app = typer.Typer(help="Our own TensorRT plugins.", no_args_is_help=True)


@app.callback()
def root() -> None:
    """Our own TensorRT plugins: attention, linear layers, LayerNorm, in FP16 and INT8."""


@app.command("build")
def build(
    include: Annotated[
        Path | None, typer.Option("--include", help="Folder with TensorRT's headers (NvInfer.h).")
    ] = None,
    capability: Annotated[
        str, typer.Option("--capability", help="Compute capability to build for, such as 9.0; this GPU's if left out.")
    ] = "",
    force: Annotated[bool, typer.Option("--force", help="Build although it was built before.")] = False,
    json: JSON = False,
    quiet: QUIET = False,
) -> None:
    """Build the plugins with nvcc for this GPU and TensorRT; done once, kept in the cache folder."""
    from quantkit.pipeline.tensorrt.plugins import build_plugins

    built = build_plugins(include, capability, force=force)
    if json:
        from quantkit.cli.show import show_json

        show_json(built)
        return
    if quiet:
        return
    how = f"built in {built['seconds']:.0f} s" if built["fresh"] else "was built before"
    typer.echo(f"{built['path']} ({how}, compute capability {built['capability']}, TensorRT {built['tensorrt']})")

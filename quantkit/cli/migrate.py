"""`quantkit migrate`: an old calibration cache becomes a Q/DQ model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quantkit.cli.options import CHOICES, JSON, QUIET, completer

if TYPE_CHECKING:
    from quantkit.pipeline.migrate import Migration

MOST_SHOWN = 5


def migrate(
    cache: Annotated[Path, typer.Argument(help="Calibration cache of TensorRT, or a table of any format.")],
    model: Annotated[Path, typer.Argument(help="The float32 model it was made for: an .onnx file, or a folder.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The .onnx file to write.")],
    placement: Annotated[
        str,
        typer.Option(
            "--placement",
            help="gemm, ffn-only, gemm+residual, gemm+residual+mha, or general (every MatMul, Gemm and Conv).",
            show_default="gemm for a BERT, else general",
            autocompletion=completer(("general", *CHOICES["placement"])),
        ),
    ] = "",
    skip: Annotated[
        list[str] | None, typer.Option("--skip", help="Tensor, node or weight that stays FP32; shell patterns will do.")
    ] = None,
    float_weights: Annotated[
        bool,
        typer.Option(
            "--float-weights/--int8-weights",
            help="Weights as float constants behind QuantizeLinear, which TensorRT 8.6 needs, or as int8 constants.",
        ),
    ] = False,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Load the result in onnxruntime and OpenVINO.")
    ] = True,
    force: Annotated[bool, typer.Option("--force", help="Use a table whose provenance names another model.")] = False,
    json: JSON = False,
    quiet: QUIET = False,
) -> None:
    """Put the scales of a calibration cache into a model as Q/DQ nodes, the only INT8 that TensorRT 11 takes.

    Lists what could not be carried over. The scales in the result are those of the cache, bit for bit.
    Exit code 1 when onnxruntime or OpenVINO does not load it.
    """
    from quantkit.pipeline.migrate import migrate as run

    done = run(
        *(cache, model, out),
        placement=placement,
        skip=frozenset(skip or ()),
        float_weights=float_weights,
        check=check,
        force=force,
    )
    if json:
        from quantkit.cli.show import show_json

        show_json(done.as_json())
    elif not quiet:
        show(done)
    if any(done.checks.values()):
        raise typer.Exit(1)


def show(done: Migration) -> None:
    """Prints what was carried over and what was not."""
    typer.echo(
        f"{done.file}: {len(done.quantized)} products in INT8, {len(done.carried)} scales carried over "
        f"(placement {done.placement})"
    )
    for name, why in done.checks.items():
        typer.echo(f"{name}: " + (f"does not load: {why}" if why else "loads"))
    lists = {
        "entries that name no tensor of the model": dict.fromkeys(done.unknown, ""),
        "entries with TensorRT's own names for unnamed layers": dict.fromkeys(done.unnamed, ""),
        "entries of constants, or of what was folded into them": dict.fromkeys(done.constants, ""),
        "zero scales": dict.fromkeys(done.zero, ""),
        "infinite scales": dict.fromkeys(done.infinite, ""),
        "tensors without scale": dict.fromkeys(done.missing, ""),
        "products and tensors that stay FP32": done.left_float,
        "scales that no INT8 product reads": done.unused,
    }
    typer.echo("not carried over:" if any(lists.values()) else "everything was carried over")
    for title, rows in lists.items():
        if rows:
            typer.echo(f"  {len(rows)} {title}")
        for i, (name, why) in enumerate(rows.items()):
            if i == MOST_SHOWN:
                typer.echo(f"    and {len(rows) - i} more; --json lists them all")
                break
            typer.echo(f"    {name}" + (f": {why}" if why else ""))
    for note in done.notes:
        typer.echo(f"note: {note}", err=True)

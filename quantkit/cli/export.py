"""`quantkit export`: any sequence classifier of transformers as ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quantkit.cli.options import JSON, QUIET


def export(
    model: Annotated[str, typer.Argument(help="Folder in Hugging Face layout, or a hub id.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The .onnx file to write.")] = Path("model.onnx"),
    json: JSON = False,
    quiet: QUIET = False,
) -> None:
    """Write a model of another architecture as an .onnx file that the other commands take; needs torch."""
    from quantkit.pipeline.export import export_onnx

    summary = export_onnx(model, out)
    if json:
        from quantkit.cli.show import show_json

        show_json(summary)
    elif not quiet:
        typer.echo(f"{summary['file']}: inputs {', '.join(summary['inputs'])}; {summary['labels']} labels")
        typer.echo(f"next: quantkit run {summary['file']} --tokenizer {model} --task TASK")

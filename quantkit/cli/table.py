"""`quantkit table`: calibration tables looked at, compared, merged, checked, renamed and converted."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from quantkit.cli.options import JSON, QUIET, completer

app = typer.Typer(
    name="table",
    help="Look at, compare, merge, check, rename and convert calibration tables.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

NAMES = ("tensorrt", "json", "onnxruntime", "flatbuffers", "text", "ranges")
SORTS = ("file", "name", "amax", "method")
PREFERENCES = ("first", "last", "widest")
KINDS = ", ".join(NAMES)
TABLE = "Calibration table of any format, or an .onnx model with Q/DQ nodes."
Source = Annotated[Path, typer.Argument(help=TABLE, show_default=False)]
Out = Annotated[Path, typer.Option("--out", "-o", help="File to write; its suffix says the format.")]
From = Annotated[
    str | None,
    typer.Option(
        "--from",
        help=f"Format of the input, where looking is not enough: {KINDS}, onnx.",
        autocompletion=completer((*NAMES, "onnx")),
    ),
]
To = Annotated[
    str | None,
    typer.Option(
        "--to",
        help=f"Format to write: {KINDS}. Else the suffix of the file says it.",
        autocompletion=completer(NAMES),
    ),
]
Trt = Annotated[
    str | None, typer.Option("--tensorrt", help="TensorRT version in the cache's header, for example 8.6 or 10.3.")
]
Algorithm = Annotated[
    str | None, typer.Option("--algorithm", help="Calibrator in the cache's header, for example EntropyCalibration2.")
]


@app.command()
def show(
    table: Source,
    match: Annotated[str, typer.Option("--match", help="Only names that fit this shell pattern.")] = "*",
    sort: Annotated[
        str, typer.Option("--sort", help="file, name, amax or method.", autocompletion=completer(SORTS))
    ] = "file",
    reverse: Annotated[bool, typer.Option("--reverse", "-r", help="The other way round.")] = False,
    limit: Annotated[int, typer.Option("--limit", help="At most so many rows; 0 is all.", min=0)] = 0,
    weights: Annotated[
        bool, typer.Option("--weights", help="Of a Q/DQ model: the weights' scales per channel instead.")
    ] = False,
    source: From = None,
    json: JSON = False,
    quiet: QUIET = False,
) -> None:
    """List tensors with threshold (amax), scale, and the scale's bits as TensorRT's cache writes them."""
    from quantkit.cli import table_show

    if weights:
        table_show.show_weights(table, json)
    else:
        table_show.show_table(table, source, table_show.Selection(match, sort, reverse, limit), json, quiet)


@app.command()
def diff(
    first: Source,
    second: Source,
    tolerance: Annotated[
        float, typer.Option("--tolerance", help="Largest ratio of two scales, minus 1, that is no difference.", min=0)
    ] = 0.0,
    json: JSON = False,
    quiet: QUIET = False,
) -> None:
    """Compare two tables: tensors only one has, and ratios of scales. Exit code 1 when they differ."""
    from quantkit.cli import table_show
    from quantkit.pipeline.toolbox import load_any
    from quantkit.tables.compare import diff as compare

    loaded = [load_any(path) for path in (first, second)]
    found = compare(loaded[0].table, loaded[1].table, tolerance)
    notes = [f"{path.name}: {note}" for path, part in zip((first, second), loaded, strict=True) for note in part.notes]
    table_show.show_difference(found, (first.name, second.name), notes, json, quiet)
    if found:
        raise typer.Exit(1)


@app.command()
def merge(
    tables: Annotated[list[Path], typer.Argument(help="Tables of any format, two or more.", show_default=False)],
    out: Out,
    prefer: Annotated[
        str,
        typer.Option(
            "--prefer",
            help="Where scales of a tensor differ, take the first, last or widest.",
            autocompletion=completer(PREFERENCES),
        ),
    ] = "",
    to: To = None,
    json: JSON = False,
    quiet: QUIET = False,
) -> None:
    """Make one table of several; a tensor with different scales in two of them is refused without --prefer."""
    from quantkit.pipeline.toolbox import load_any
    from quantkit.tables.compare import merge as join

    loaded = [load_any(path) for path in tables]
    merged = join([part.table for part in loaded], [str(path) for path in tables], prefer)
    notes = [f"{path}: {note}" for path, part in zip(tables, loaded, strict=True) for note in part.notes]
    if merged.provenance is None and any(part.table.provenance for part in loaded):
        notes.append("The provenance is left out: the tables are of different runs.")
    _finish(write(merged, out, to), notes, json, quiet)


@app.command()
def validate(
    table: Source,
    model: Annotated[
        Path | None, typer.Option("--model", help="Model it should fit: an .onnx file, or a folder.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit code 1 for warnings too.")] = False,
    source: From = None,
    json: JSON = False,
    quiet: QUIET = False,
) -> None:
    """Look for zero, Inf, NaN and upside-down scales, names that the model lacks, stale provenance.

    Exit code 1 when there is an error.
    """
    from quantkit.cli import table_show
    from quantkit.pipeline.toolbox import validate_file
    from quantkit.tables.validate import worst

    count, findings = validate_file(table, model, source)
    table_show.show_findings(table, count, findings, json, quiet)
    if worst(findings) in ("error", "warning") if strict else worst(findings) == "error":
        raise typer.Exit(1)


@app.command()
def rename(
    table: Source,
    out: Out,
    rules: Annotated[Path | None, typer.Option("--rules", help="File of rules, a line each: OLD => NEW.")] = None,
    exact: Annotated[list[str] | None, typer.Option("--exact", help="'OLD => NEW': a whole name.")] = None,
    regex: Annotated[
        list[str] | None,
        typer.Option("--regex", help="'PATTERN => NEW': every match of a regular expression; \\1 is its first group."),
    ] = None,
    to: To = None,
    json: JSON = False,
    quiet: QUIET = False,
) -> None:
    """Give tensors other names, for a model that was exported elsewhere. Two tensors with one name are refused.

    Rules are applied in order: those of the file, then --exact, then --regex. In the file, a line that starts
    with "regex:" holds a regular expression, one that starts with "#" is a comment.
    """
    from quantkit.pipeline.toolbox import load_any
    from quantkit.tables.rename import gather_rules
    from quantkit.tables.rename import rename as apply

    loaded = load_any(table)
    done = apply(loaded.table, gather_rules(rules, exact or (), regex or ()))
    notes = [*loaded.notes, *(f"The rule {rule} changes nothing." for rule in done.unused)]
    result = write(done.table, out, to)
    _finish({**result, "renamed": len(done.changed)}, notes, json, quiet)


@app.command()
def convert(
    table: Source,
    out: Out,
    source: From = None,
    to: To = None,
    tensorrt: Trt = None,
    algorithm: Algorithm = None,
    json: JSON = False,
    quiet: QUIET = False,
) -> None:
    """Write a table in another format, and say what that format cannot hold. Scales come through bit for bit."""
    from quantkit.pipeline.toolbox import load_any

    loaded = load_any(table, source)
    _finish(write(loaded.table, out, to, tensorrt, algorithm), list(loaded.notes), json, quiet)


def write(
    table: Any, out: Path, kind: str | None, tensorrt: str | None = None, algorithm: str | None = None
) -> dict[str, Any]:
    """Writes a table; gives file, format, number of tensors, and what the format could not hold."""
    from quantkit.tables.formats import save_as

    return save_as(table, out, kind, algorithm=algorithm, tensorrt=tensorrt)


def _finish(result: dict[str, Any], notes: list[str], json: bool, quiet: bool) -> None:
    """Says what was written, and on standard error what was lost."""
    from quantkit.cli.show import show_json

    said = [*notes, *result["lost"]]
    if json:
        show_json({**result, "notes": notes})
    elif not quiet:
        renamed = f", {result['renamed']} renamed" if "renamed" in result else ""
        typer.echo(f"{result['file']}: {result['tensors']} tensors, {result['format']}{renamed}")
        for note in said:
            typer.echo(f"note: {note}", err=True)

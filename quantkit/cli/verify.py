"""`quantkit verify`: whether a cache is what the histograms give, or TensorRT's calibrator gives what ours does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from quantkit.cli.options import JSON, QUIET, Output, split_names
from quantkit.errors import InputError
from quantkit.pipeline.settings import Settings

MODEL = "With --backend tensorrt"
HALF_A_BIN = 0.5
VERDICTS = ("equal", "differs", "no histogram", "infinite")


def verify(
    cache: Annotated[
        str, typer.Argument(help="TensorRT calibration cache, or quantkit's own table; with --backend a model.")
    ],
    histograms: Annotated[
        Path | None,
        typer.Option("--histograms", "-H", help="File of TensorRT's write_histogram_cache, or of quantkit."),
    ] = None,
    method: Annotated[str, typer.Option("--method", "-m", help="Method, where the cache does not name it.")] = "",
    quantile: Annotated[float | None, typer.Option("--quantile", help="Legacy method: quantile.")] = None,
    regression_cutoff: Annotated[
        float | None, typer.Option("--regression-cutoff", help="Legacy method: regression cutoff.")
    ] = None,
    json: JSON = False,
    quiet: QUIET = False,
    differing: Annotated[bool, typer.Option("--differing", help="Show only the tensors that differ.")] = False,
    backend: Annotated[
        str, typer.Option("--backend", help="tensorrt: run its calibrators on CACHE, a model.", rich_help_panel=MODEL)
    ] = "",
    calibrators: Annotated[
        str, typer.Option("--calibrators", help="entropy2, entropy, minmax, legacy.", rich_help_panel=MODEL)
    ] = "entropy2,minmax",
    collector: Annotated[
        str, typer.Option("--collector", help="Backend that runs the model for us.", rich_help_panel=MODEL)
    ] = "",
    task: Annotated[str, typer.Option("--task", "-t", help="Task of the model.", rich_help_panel=MODEL)] = "",
    data: Annotated[str, typer.Option("--data", "-d", help="Folder or file of its rows.", rich_help_panel=MODEL)] = "",
    adapter: Annotated[str, typer.Option("--adapter", "-a", help="LoRA folder.", rich_help_panel=MODEL)] = "",
    samples: Annotated[int, typer.Option("--calib-samples", "-n", help="Sentences.", rich_help_panel=MODEL)] = 512,
    batch: Annotated[int, typer.Option("--batch", "-b", help="Sequences a batch.", rich_help_panel=MODEL)] = 16,
    seq_len: Annotated[int, typer.Option("--seq-len", help="Tokens a sequence.", rich_help_panel=MODEL)] = 64,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File for the JSON.", rich_help_panel=MODEL)] = None,
) -> None:
    """Compute every threshold of CACHE again and compare: equal bit for bit, or how many bins apart.

    With --backend tensorrt, run TensorRT's calibrators and ours over the same batches of a model and compare.
    Exit code 1 when a tensor differs (by half a bin or more, where TensorRT itself ran).
    """
    if backend:
        settings = Settings(
            *(cache, task, data),
            adapter=adapter,
            calib_samples=samples,
            batch=batch,
            seq_len=seq_len,
        )
        given_legacy = {"quantile": quantile, "cutoff": regression_cutoff}
        with_tensorrt(backend, settings, calibrators, collector, given_legacy, out, Output(json, quiet, {}))
        return
    if histograms is None:
        raise InputError("There are no histograms to compare with.", "Name them with --histograms, or use --backend.")
    from quantkit.pipeline.verify import verify as verify_cache

    given = {"quantile": quantile, "regression_cutoff": regression_cutoff}
    rows = verify_cache(Path(cache), histograms, method, {k: v for k, v in given.items() if v is not None})
    counts = {word: sum(row.verdict == word for row in rows) for word in VERDICTS}
    if json:
        from quantkit.cli.show import show_json

        show_json({"counts": counts, "tensors": [row.as_json() for row in rows]})
    elif not quiet:
        show([row for row in rows if row.verdict == "differs" or not differing], counts)
    if counts["differs"]:
        raise typer.Exit(1)


def with_tensorrt(
    backend: str,
    settings: Settings,
    names: str,
    collector: str,
    legacy: dict[str, float | None],
    out: Path | None,
    output: Output,
) -> None:
    """Runs TensorRT's calibrators and ours, and shows how far they are apart."""
    from quantkit.backends.trt.options import CalibratorOptions
    from quantkit.cli.show import show_json, watcher
    from quantkit.files import write_json
    from quantkit.pipeline.tensorrt.verify import compare_calibrators

    if backend != "tensorrt":
        raise InputError(f"The {backend} backend has no calibrators of its own.", "Use --backend tensorrt.")
    given = {name: value for name, value in legacy.items() if value is not None}
    chosen = tuple(CalibratorOptions(name, **given) for name in split_names(names, "calibrators"))
    found = compare_calibrators(settings, chosen, watcher(output), collector)
    if out is not None:
        write_json(out, found)
    if output.json:
        show_json(found)
    for row in found["calibrators"]:
        if not (output.json or output.quiet):
            typer.echo(
                f"{row['calibrator']}: {row['same_bin']} of {row['compared']} tensors in the same bin, {row['equal']} "
                f"bit for bit; TensorRT {row['tensorrt_s']:.1f} s, quantkit {row['quantkit_s']:.2f} s"
            )
            apart = [t for t in row["tensors"] if t["bins"] is None or abs(t["bins"]) >= HALF_A_BIN]
            for tensor in apart:
                typer.echo(f"  {tensor['tensor']}: TensorRT {tensor['theirs']:.7g}, quantkit {tensor['ours']:.7g}")
    if any(row["same_bin"] < row["compared"] for row in found["calibrators"]):
        raise typer.Exit(1)


def show(rows: list[Any], counts: dict[str, int]) -> None:
    """Prints a row a tensor and the counts."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("tensor", overflow="fold")
    for title in ("cache", "quantkit", ""):
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        ours = "-" if row.ours is None else f"{float(row.ours):.7g}"
        apart = f"{row.bins:+.2f} bins" if row.verdict == "differs" else row.verdict
        table.add_row(row.name, f"{float(row.theirs):.7g}", ours, apart)
    console = Console(highlight=False, markup=False)
    console.print(table)
    console.print(", ".join(f"{count} {word}" for word, count in counts.items() if count))

"""`quantkit verify`: whether a cache is what the histograms give."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def verify(
    cache: Annotated[Path, typer.Argument(help="TensorRT calibration cache, or quantkit's own table.")],
    histograms: Annotated[
        Path, typer.Option("--histograms", "-H", help="File of TensorRT's write_histogram_cache, or of quantkit.")
    ],
    method: Annotated[str, typer.Option("--method", "-m", help="Method, where the cache does not name it.")] = "",
    quantile: Annotated[float | None, typer.Option("--quantile", help="Legacy method: quantile.")] = None,
    regression_cutoff: Annotated[
        float | None, typer.Option("--regression-cutoff", help="Legacy method: regression cutoff.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
    differing: Annotated[bool, typer.Option("--differing", help="Show only the tensors that differ.")] = False,
) -> None:
    """Compute every threshold of CACHE again and compare: equal bit for bit, or how many bins apart.

    Exit code 1 when a tensor differs.
    """
    from quantkit.pipeline.verify import verify as verify_cache

    given = {"quantile": quantile, "regression_cutoff": regression_cutoff}
    rows = verify_cache(cache, histograms, method, {k: v for k, v in given.items() if v is not None})
    counts = {word: sum(row.verdict == word for row in rows) for word in ("equal", "differs", "no histogram")}
    if json:
        from quantkit.cli.show import show_json

        show_json({"counts": counts, "tensors": [row.as_json() for row in rows]})
    else:
        show([row for row in rows if row.verdict == "differs" or not differing], counts)
    if counts["differs"]:
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

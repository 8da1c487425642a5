"""`quantkit bench`: how fast each precision is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from quantkit.cli.options import ENGINE, MODEL_AND_DATA, PLAN, RANGES, TENSORRT, Output, takes
from quantkit.errors import InputError
from quantkit.pipeline.settings import Settings


def _option(kind: Any, flag: str, text: str) -> tuple[Any, None]:
    """An option of TensorRT's timing; None when it is not given."""
    return Annotated[kind | None, typer.Option(flag, help=text, rich_help_panel=TENSORRT)], None


TIMING = {
    "warmup_ms": _option(float, "--warmup", "Milliseconds that each engine runs before anything counts (200)."),
    "iterations": _option(int, "--iterations", "Least number of timed inferences (10)."),
    "duration_s": _option(float, "--duration", "Least time of measuring, in seconds (3)."),
}
PLANS = {
    "engine": (
        Annotated[
            list[Path] | None,
            typer.Option(
                "--engine",
                help="Time this plan file instead of a model; once more for each further one, all in turn.",
                rich_help_panel=TENSORRT,
            ),
        ],
        None,
    ),
    "trust": (
        Annotated[
            bool,
            typer.Option(
                "--trust", help="Load plans that were not built here; they can run code.", rich_help_panel=TENSORRT
            ),
        ],
        False,
    ),
}


@takes(
    *(*MODEL_AND_DATA, "method", *RANGES, "table", "force", "backend", "precisions", *PLAN, *ENGINE, "threads", "out"),
    **TIMING,
    **PLANS,
)
def bench(settings: Settings, output: Output) -> None:
    """Time each precision on the task's own sentences, engines in turn, without evaluating it.

    TensorRT engines are timed by phases: host, copies to and from the device, GPU compute, enqueue. With --engine
    they are read from plan files, and run on tokens of one kind.
    """
    from quantkit.cli.show import answers, finish, watcher

    given = {name: value for name in TIMING if (value := output.extra[name]) is not None}
    if output.extra["engine"]:
        from quantkit.backends.trt.timing import TimingOptions
        from quantkit.cli.show import show_json
        from quantkit.pipeline.tensorrt.bench import bench_plans

        record = bench_plans(
            output.extra["engine"],
            TimingOptions(**given),
            watcher(output),
            shape=str(settings.engine.get("shapes", "")),
            graphs=bool(settings.engine.get("cuda_graphs", False)),
            trust=output.extra["trust"],
            out=settings.out,
        )
        if output.json:
            show_json(record)
        elif answers(output, settings.out):
            show_phases(record)
        return
    if settings.backend == "tensorrt":
        from quantkit.backends.trt.timing import TimingOptions
        from quantkit.pipeline.tensorrt.bench import bench_phases

        record = bench_phases(settings, TimingOptions(**given), watcher(output))
        finish(record, output, settings.out)
        if answers(output, settings.out):
            show_phases(record)
        return
    if given:
        raise InputError("Warm-up, iterations and duration are options of --backend tensorrt.", "Leave them out.")
    from quantkit.pipeline.run import run_settings

    finish(run_settings(settings, watcher(output), metrics=False).data, output, settings.out)


def show_phases(record: dict[str, Any]) -> None:
    """Prints the phases of every engine: median milliseconds, and the ratio to the first."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    names = ("host", "h2d", "compute", "d2h", "enqueue")
    for title in ("engine", *names, "qps", "ratio"):
        table.add_column(title, justify="left" if title == "engine" else "right", no_wrap=True)
    names_of = [Path(row["engine"]).name if "engine" in row else row["precision"] for row in record["engines"]]
    for i, row in enumerate(record["engines"]):
        if phases := row.get("phases"):
            medians = [f"{phases[f'{name}_ms']['median']:.3f}" for name in names]
            ratio = f"{row['ratio']['compute']:.2f}x"
            table.add_row(names_of[i], *medians, f"{phases['throughput_qps']:.0f}", ratio)
    Console(highlight=False).print(table)

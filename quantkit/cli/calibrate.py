"""`quantkit calibrate`: one pass over the data, tables by any method; or no pass at all, or a study of several."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from quantkit.cli.options import CALIBRATION, MODEL_AND_DATA, RANGES, SHARED, Output, takes
from quantkit.errors import InputError
from quantkit.pipeline.settings import Settings

FROM = Annotated[
    list[Path] | None,
    typer.Option(
        "--from",
        help="Start from a histogram file, of quantkit or of TensorRT, without model and data; twice to merge.",
        rich_help_panel=CALIBRATION,
    ),
]
STUDY = Annotated[
    bool,
    typer.Option(
        "--study",
        help="Find out how many sentences are enough, and what their order does.",
        rich_help_panel=CALIBRATION,
    ),
]
ORDERS = Annotated[
    int | None,
    typer.Option("--orders", help="With --study: other orders to try (2).", rich_help_panel=CALIBRATION),
]


@takes(
    *(*MODEL_AND_DATA, "methods", *RANGES, "backend", "threads", "memory", *SHARED, "out"),
    histograms=(FROM, None),
    study=(STUDY, False),
    orders=(ORDERS, None),
)
def calibrate(settings: Settings, output: Output) -> None:
    """Collect histograms once and write a table and a TensorRT cache for each method."""
    from quantkit.cli.show import answers, show_json
    from quantkit.report.terminal import show_calibration, show_study

    result = job(settings, output)
    if output.json:
        show_json(result)
    elif output.extra["study"]:
        if answers(output, settings.out):
            show_study(result)
    elif not output.quiet:  # tables always go to a folder
        show_calibration(result)


def job(settings: Settings, output: Output) -> dict[str, Any]:
    """What the options ask for: tables from data, tables from histograms, or a study."""
    from quantkit.cli.show import watcher

    histograms, orders = output.extra["histograms"], output.extra["orders"]
    if orders is not None and not output.extra["study"]:
        raise InputError("--orders belongs to --study.", "Add --study, or leave it out.")
    if histograms and output.extra["study"]:
        raise InputError(
            "--study compares passes over the data, and --from brings none.", "Name model and data, or drop --study."
        )
    if histograms:
        from quantkit.pipeline.from_histograms import calibrate_from

        return calibrate_from(histograms, settings)
    if output.extra["study"]:
        from quantkit.pipeline.study import ORDERS as DEFAULT_ORDERS
        from quantkit.pipeline.study import study

        return study(settings, watcher(output), DEFAULT_ORDERS if orders is None else orders)
    from quantkit.pipeline.calibration import write_tables

    return write_tables(settings, watcher(output))

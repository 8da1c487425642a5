"""`quantkit tune`: the plan that meets a goal."""

from __future__ import annotations

from typing import Annotated

import typer

from quantkit.cli.options import Output, takes, with_folder
from quantkit.cli.sensitivity import SEARCH
from quantkit.pipeline.settings import Settings

PANEL = "Goal"
MAX_DROP = "Points of the task's metric that INT8 may cost (0.5 unless --min-speedup is given)."
GOALS = {
    "max_drop": (Annotated[float | None, typer.Option("--max-drop", help=MAX_DROP, rich_help_panel=PANEL)], None),
    "min_speedup": (
        Annotated[
            float | None,
            typer.Option("--min-speedup", help="Times FP32's speed that INT8 must reach.", rich_help_panel=PANEL),
        ],
        None,
    ),
}
DEFAULT_DROP = 0.5


@takes(*SEARCH, "limit", "precisions", "symmetric", "tensorrt_model", **GOALS)
def tune(settings: Settings, output: Output) -> None:
    """Find the fastest plan that keeps the accuracy, or the most accurate that is fast enough; then evaluate it once.

    Train rows decide, never evaluation rows. An interrupted search goes on where it stopped.
    """
    from quantkit.cli.show import answers, finish, watcher
    from quantkit.pipeline.tune import Goal
    from quantkit.pipeline.tune import tune as search

    given = dict(output.extra)
    if given["max_drop"] is None and given["min_speedup"] is None:
        given["max_drop"] = DEFAULT_DROP
    settings = with_folder(settings)
    record = search(settings, Goal(**given), watcher(output))
    if answers(output, settings.out):
        from quantkit.report.search import show_search

        show_search(record.data)
    if record.engines or output.json:
        finish(record.data, output, settings.out)
    if not record.engines:
        raise typer.Exit(1)

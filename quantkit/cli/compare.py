"""`quantkit compare`: methods x tasks x backends."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from quantkit.cli.options import ENGINE, MODEL_AND_DATA, PLAN, RANGES, SHARED, Output, takes
from quantkit.pipeline.settings import Settings


@takes(
    "tasks",
    *(name for name in MODEL_AND_DATA if name != "task"),
    "limit",
    "methods",
    *RANGES,
    "backends",
    *PLAN,
    *ENGINE,
    "threads",
    "memory",
    *SHARED,
    "out",
)
def compare(settings: Settings, output: Output) -> None:
    """Compare methods on tasks and backends: a matrix of what INT8 costs and wins, with record and report.

    "{task}" in MODEL, --adapter, --data and --calib-data becomes the task's name. Finished cells are kept in --out: the
    same command goes on where it was interrupted. Ranges are the methods' own: nothing is refined, unless --refine is
    given.
    """
    from quantkit.cli.show import end_if_all_failed, show_json, tell_report, watcher
    from quantkit.pipeline.compare import compare_all
    from quantkit.report.matrix import show_comparison

    settings = replace(settings, out=settings.out or Path("quantkit-compare"))
    record = compare_all(settings, output.extra["tasks"], output.extra["backends"], watcher(output))
    tell_report(settings.out, output)
    if output.json:
        show_json(record.data)
    elif not output.quiet:
        show_comparison(record.data)
    end_if_all_failed(record.data["cells"], output)

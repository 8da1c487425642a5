"""`quantkit sensitivity`: what INT8 costs and wins, part by part."""

from __future__ import annotations

from quantkit.cli.options import ENGINE, MODEL_AND_DATA, PLAN, RANGES, SHARED, Output, takes, with_folder
from quantkit.pipeline.settings import Settings

SEARCH = (
    *MODEL_AND_DATA,
    "method",
    *RANGES,
    "tune_rows",
    "table",
    "force",
    "backend",
    *ENGINE,
    "threads",
    "memory",
    *SHARED,
    "out",
)


@takes(*SEARCH, *PLAN)
def sensitivity(settings: Settings, output: Output) -> None:
    """Measure each tensor group of each layer: what it costs in INT8, on held-out train rows, and what it saves."""
    from quantkit.cli.show import show_json, watcher
    from quantkit.pipeline.search import run_sensitivity

    record = run_sensitivity(with_folder(settings), watcher(output))
    if output.json:
        show_json(record)
    elif not output.quiet:
        from quantkit.report.search import show_sensitivity

        show_sensitivity(record)

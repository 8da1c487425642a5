"""`quantkit bench`: how fast each precision is."""

from __future__ import annotations

from quantkit.cli.options import ENGINE, MODEL_AND_DATA, PLAN, RANGES, Output, takes
from quantkit.pipeline.settings import Settings


@takes(*MODEL_AND_DATA, "method", *RANGES, "table", "force", "backend", "precisions", *PLAN, *ENGINE, "threads", "out")
def bench(settings: Settings, output: Output) -> None:
    """Time each precision on the task's own sentences, engines in turn, without evaluating it."""
    from quantkit.cli.show import finish, watcher
    from quantkit.pipeline.run import run_settings

    record = run_settings(settings, watcher(output), metrics=False)
    finish(record.data, output)

"""`quantkit eval`: what each precision is worth on a task."""

from __future__ import annotations

from quantkit.cli.options import MODEL_AND_DATA, PLAN, RANGES, SHARED, Output, takes
from quantkit.pipeline.settings import Settings


@takes(
    *(*MODEL_AND_DATA, "limit", "method", *RANGES, "table", "force", "backend", "precisions", *PLAN, "threads"),
    *("memory", *SHARED, "out"),
)
def evaluate(settings: Settings, output: Output) -> None:
    """Evaluate each precision on the task, without timing it."""
    from quantkit.cli.show import finish, watcher
    from quantkit.pipeline.run import run_settings

    record = run_settings(settings, watcher(output), latency=False)
    finish(record.data, output, settings.out)

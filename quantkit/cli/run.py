"""`quantkit run`: the main job."""

from __future__ import annotations

from quantkit.cli.options import ENGINE, MODEL_AND_DATA, PLAN, RANGES, Output, takes, with_folder
from quantkit.pipeline.settings import Settings


@takes(
    *MODEL_AND_DATA,
    "limit",
    "method",
    *RANGES,
    "table",
    "force",
    "backend",
    "precisions",
    *PLAN,
    *ENGINE,
    "threads",
    "out",
)
def run(settings: Settings, output: Output) -> None:
    """Calibrate, build FP32, half and INT8 engines, evaluate and time them, write record and report."""
    from quantkit.cli.show import finish, tell_report, watcher
    from quantkit.pipeline.run import run_settings

    settings = with_folder(settings)
    record = run_settings(settings, watcher(output))
    tell_report(settings.out, output)
    finish(record.data, output)

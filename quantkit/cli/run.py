"""`quantkit run`: the main job."""

from __future__ import annotations

from quantkit.cli.options import MAKING, Output, takes, with_folder
from quantkit.pipeline.settings import Settings


@takes(*MAKING, "limit")
def run(settings: Settings, output: Output) -> None:
    """Calibrate, build FP32, half and INT8 engines, evaluate and time them, write record and report."""
    from quantkit.cli.show import finish, tell_report, watcher
    from quantkit.pipeline.run import run_settings

    settings = with_folder(settings)
    record = run_settings(settings, watcher(output))
    tell_report(settings.out, output)
    finish(record.data, output, settings.out)

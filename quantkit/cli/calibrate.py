"""`quantkit calibrate`: one pass over the data, tables by any method."""

from __future__ import annotations

from quantkit.cli.options import MODEL_AND_DATA, RANGES, Output, takes
from quantkit.pipeline.settings import Settings


@takes(*MODEL_AND_DATA, "methods", *RANGES, "backend", "threads", "out")
def calibrate(settings: Settings, output: Output) -> None:
    """Collect histograms once and write a table and a TensorRT cache for each method."""
    from quantkit.cli.show import show_json, watcher
    from quantkit.pipeline.calibration import write_tables

    summary = write_tables(settings, watcher(output))
    if output.json:
        show_json(summary)
    else:
        from quantkit.report.terminal import show_calibration

        show_calibration(summary)

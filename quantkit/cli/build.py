"""`quantkit build`: the engines' model files, checked by compiling them."""

from __future__ import annotations

from quantkit.cli.options import MAKING, Output, takes, with_folder
from quantkit.pipeline.settings import Settings


@takes(*MAKING)
def build(settings: Settings, output: Output) -> None:
    """Write the ONNX file of each precision and compile it; INT8 takes --table, or calibrates first."""
    from quantkit.cli.show import finish, watcher
    from quantkit.pipeline.run import build_only

    settings = with_folder(settings)
    record = build_only(settings, watcher(output))
    finish(record.data, output, settings.out)

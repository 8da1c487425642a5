"""quantkit: INT8 calibration and quantization of BERT-class models.

    import quantkit
    record = quantkit.run(task="rotten_tomatoes")                    # the demo: calibrate, build, evaluate, time
    table = quantkit.calibrate_arrays(batches, method="entropy")     # your own activations, TensorRT's arithmetic
    table.dumps("tensorrt", algorithm="EntropyCalibration2")         # a calibration cache
    table = quantkit.load_table("entropy.cache")

Names are imported when first used: `import quantkit` alone loads no heavy package.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quantkit.calibrate import curves
    from quantkit.collect.histogram import Histogram, HistogramAccumulator
    from quantkit.collect.store import load_histograms, save_histograms
    from quantkit.errors import QuantkitError
    from quantkit.library import calibrate_arrays, run
    from quantkit.report.record import Record, load_record
    from quantkit.tables.table import CalibrationTable, Entry, load_table

__version__ = "0.1.0"

_HOMES = {
    "CalibrationTable": "quantkit.tables.table",
    "Entry": "quantkit.tables.table",
    "Histogram": "quantkit.collect.histogram",
    "HistogramAccumulator": "quantkit.collect.histogram",
    "QuantkitError": "quantkit.errors",
    "Record": "quantkit.report.record",
    "calibrate_arrays": "quantkit.library",
    "curves": "quantkit.calibrate",
    "load_histograms": "quantkit.collect.store",
    "load_record": "quantkit.report.record",
    "load_table": "quantkit.tables.table",
    "run": "quantkit.library",
    "save_histograms": "quantkit.collect.store",
}

__all__ = [
    "CalibrationTable",
    "Entry",
    "Histogram",
    "HistogramAccumulator",
    "QuantkitError",
    "Record",
    "__version__",
    "calibrate_arrays",
    "curves",
    "load_histograms",
    "load_record",
    "load_table",
    "run",
    "save_histograms",
]


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'quantkit' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)

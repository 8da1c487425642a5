"""The two functions a program calls: the main job, and calibration of arrays it already has."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.calibrate import calibrate_histograms, make_calibrator
from quantkit.collect.histogram import HistogramAccumulator
from quantkit.errors import CalibrationError, InputError
from quantkit.pipeline.settings import Settings
from quantkit.pipeline.tables import table_from
from quantkit.report.record import Record
from quantkit.tables.table import CalibrationTable
from quantkit.types import FeedDict, Watcher


def run(model: str | Path = "demo", *, watcher: Watcher | None = None, **settings: Any) -> Record:
    """Calibrates, builds FP32, half and INT8 engines, evaluates and times them: `quantkit run` as a function.

    Args:
        model: "demo", a folder in Hugging Face layout, a hub id, or an .onnx file.
        watcher: who is told how it goes; nobody by default.
        settings: fields of `quantkit.pipeline.settings.Settings` by name, for example task="sst2",
            data="glue", method="entropy", out=Path("results").

    Returns:
        The record; `record.engine("int8")["metrics"]` and so on. It is written to `out` when that is given.

    Raises:
        QuantkitError: bad input, with the next step in `hint`.
    """
    from quantkit.pipeline.run import run_settings
    from quantkit.report.terminal import SilentWatcher

    fields = Settings.__dataclass_fields__
    if unknown := [name for name in settings if name not in fields]:
        raise InputError(f"run() has no setting {unknown[0]!r}; known: {', '.join(fields)}.")
    for name in ("out", "table", "plan"):
        if settings.get(name) is not None:
            settings[name] = Path(settings[name])
    for name in ("data", "calib_data", "adapter", "tokenizer"):
        settings[name] = str(settings.get(name) or "")
    for name in ("precisions", "text_columns"):
        if isinstance(settings.get(name), str):
            settings[name] = tuple(part.strip() for part in settings[name].split(",") if part.strip())
        elif name in settings:
            settings[name] = tuple(settings[name])
    return run_settings(Settings(model=str(model), **settings), watcher or SilentWatcher())


def calibrate_arrays(
    batches: Iterable[FeedDict], method: str = "entropy", *, order_free: bool = False, **parameters: Any
) -> CalibrationTable:
    """The calibration table of activations that are at hand as arrays.

    Args:
        batches: mappings tensor name -> float array of any shape, one a batch, every batch with the same names. They
            are read once, one at a time; the order matters as it does to TensorRT, unless `order_free`.
        method: "minmax", "entropy" (TensorRT's Entropy and Entropy2), "legacy", "percentile" or "mse".
        order_free: power-of-two histogram ranges, so that order and batching do not matter, instead of TensorRT's.
        parameters: the calibrator's, by TensorRT's names: `quantile` and `regression_cutoff` for "legacy",
            `percentile` for "percentile".

    Returns:
        Table whose `scales` map name -> float32; a tensor that is zero throughout has scale 0.

    Raises:
        UnknownNameError: there is no such method.
        InputError: a parameter is unknown or out of its range.
        CalibrationError: no batches, a tensor missing in one of them, NaN or Inf, or an array that is not numeric.
    """
    calibrator = make_calibrator(method, **parameters)
    accumulators: dict[str, HistogramAccumulator] = {}
    for number, batch in enumerate(batches):
        if number == 0:
            accumulators = {name: HistogramAccumulator("pow2" if order_free else "tensorrt") for name in batch}
        if batch.keys() != accumulators.keys():
            odd = sorted(batch.keys() ^ accumulators.keys())[0]
            where = "is missing in" if odd in accumulators else "is new in"
            raise CalibrationError(f"The tensor {odd!r} {where} batch {number}; every batch needs the same names.")
        for name, array in batch.items():
            accumulators[name].update(as_float32(name, array))
    if not accumulators:
        raise CalibrationError("There are no batches to calibrate with.", "Give at least one mapping name -> array.")
    histograms = {name: accumulator.snapshot() for name, accumulator in accumulators.items()}
    return table_from(histograms, calibrator, calibrate_histograms(histograms, calibrator))


def as_float32(name: str, array: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The array as float32; CalibrationError when it is not real numbers."""
    values = np.asarray(array)
    if values.dtype.kind not in "fiub":
        raise CalibrationError(f"The tensor {name!r} has the dtype {values.dtype}; expected real numbers.")
    return values.astype(np.float32, copy=False)

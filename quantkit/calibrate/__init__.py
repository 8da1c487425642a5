"""Histograms become ranges: one calibrator a module.

Nothing here reads a model, a data set or a file; a method added to `CALIBRATORS` is available everywhere.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

from quantkit.calibrate.base import Calibrator, Curve, Threshold, check_histogram
from quantkit.collect.histogram import Histogram
from quantkit.errors import InputError
from quantkit.registry import Registry

__all__ = ["CALIBRATORS", "Calibrator", "Curve", "Threshold", "calibrate_histograms", "make_calibrator"]

CALIBRATORS: Registry[Any] = Registry(
    "calibration method",
    {
        "entropy": "quantkit.calibrate.entropy:EntropyCalibrator",
        "legacy": "quantkit.calibrate.legacy:LegacyCalibrator",
        "minmax": "quantkit.calibrate.minmax:MinMaxCalibrator",
        "mse": "quantkit.calibrate.mse:MSECalibrator",
        "percentile": "quantkit.calibrate.percentile:PercentileCalibrator",
    },
)
"""Name -> class of the calibrator."""


def make_calibrator(method: str, **parameters: Any) -> Calibrator:
    """The calibrator `method` with the given parameters, defaults for the rest.

    Raises:
        UnknownNameError: there is no such method.
        InputError: the method has no such parameter, or the value is out of range.
    """
    cls = CALIBRATORS[method]
    known = [field.name for field in dataclasses.fields(cls)]
    for name in parameters:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            takes = f"it takes {', '.join(known)}" if known else "it takes none"
            hint = f"Did you mean {close[0]}?" if close else ""
            raise InputError(f"Calibration method {method!r} has no parameter {name!r}; {takes}.", hint)
    calibrator: Calibrator = cls(**parameters)
    return calibrator


def calibrate_histograms(
    histograms: Mapping[str, Histogram], calibrator: Calibrator, *, curve: bool = False
) -> dict[str, Threshold]:
    """Tensor name -> threshold, in the order of `histograms`.

    Raises:
        CalibrationError: a histogram holds NaN, Inf or nothing at all; the sentence names the tensor and the counts.
    """
    thresholds = {}
    for name, histogram in histograms.items():
        check_histogram(histogram, name)
        thresholds[name] = calibrator.compute(histogram, curve=curve)
    return thresholds

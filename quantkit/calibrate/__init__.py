"""Histograms become ranges: one calibrator a module.

Nothing here reads a model, a data set or a file; a method added to `CALIBRATORS` is available everywhere.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from quantkit.calibrate.base import Calibrator, Curve, Threshold, check_histogram
from quantkit.collect.histogram import Histogram
from quantkit.errors import InputError
from quantkit.registry import Registry

__all__ = ["CALIBRATORS", "Calibrator", "Curve", "Threshold", "calibrate_histograms", "curves", "make_calibrator"]

CALIBRATORS: Registry[Any] = Registry(
    "calibration method",
    {
        "auto": "quantkit.calibrate.auto:AutoCalibrator",
        "entropy": "quantkit.calibrate.entropy:EntropyCalibrator",
        "legacy": "quantkit.calibrate.legacy:LegacyCalibrator",
        "minmax": "quantkit.calibrate.minmax:MinMaxCalibrator",
        "mse": "quantkit.calibrate.mse:MSECalibrator",
        "percentile": "quantkit.calibrate.percentile:PercentileCalibrator",
    },
)
"""Name -> class of the calibrator."""


@runtime_checkable
class KnowsKinds(Protocol):
    """A calibrator that does better when it is told what a tensor is."""

    def compute_kind(self, h: Histogram, kind: str, unmasked: Histogram | None, source: str) -> Threshold:
        """The threshold of a tensor of this kind; `unmasked` is the histogram of `source`, the scores before a mask."""
        ...


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
    histograms: Mapping[str, Histogram],
    calibrator: Calibrator,
    *,
    kinds: Mapping[str, str] | None = None,
    unmasked: Mapping[str, str] | None = None,
    curve: bool = False,
) -> dict[str, Threshold]:
    """Tensor name -> threshold, in the order of `histograms`.

    Args:
        histograms: tensor name -> histogram.
        calibrator: the method.
        kinds: tensor name -> what it is ("softmax", "masked logits", ...), for a method that asks (auto); names that
            are missing are of no kind.
        unmasked: masked logits -> the scores before the mask; used where `histograms` holds those.
        curve: give the losses of all candidates too, where the method has any.

    Raises:
        CalibrationError: a histogram holds NaN, Inf or nothing at all; the sentence names the tensor and the counts.
    """
    thresholds = {}
    for name, histogram in histograms.items():
        if not isinstance(calibrator, KnowsKinds):
            check_histogram(histogram, name)
            thresholds[name] = calibrator.compute(histogram, curve=curve)
            continue
        source = (unmasked or {}).get(name, "")
        scores = histograms.get(source)
        # Scores before the mask stand in for the masked ones, whose infinities are then no matter.
        check_histogram(histogram if scores is None else scores, name if scores is None else source)
        thresholds[name] = calibrator.compute_kind(histogram, (kinds or {}).get(name, ""), scores, source)
    return thresholds


def curves(h: Histogram) -> dict[str, Curve]:
    """The whole loss curves of the two searches, for plots: "kl" (entropy) and "mse".

    Each has `candidates` (thresholds, increasing) and `losses` (float64, inf where a candidate is ruled out). Empty
    for a histogram of zeros, which leaves nothing to search.

    Raises:
        CalibrationError: the histogram holds NaN, Inf or nothing at all.
    """
    found = (make_calibrator(method).compute(h, curve=True).curve for method in ("entropy", "mse"))
    return {curve.kind: curve for curve in found if curve is not None}

"""What every calibrator takes and gives: a histogram in, a clipping threshold out.

A calibrator is a frozen dataclass of parameters; `compute` is a pure function of one histogram. It draws on nothing
else, changes nothing, and gives the same answer twice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import numpy.typing as npt

from quantkit.collect.histogram import Histogram
from quantkit.errors import CalibrationError, InputError
from quantkit.qparams import scale_from_amax

ALL_ZERO = "every value was zero"
"""The reason that goes with a threshold of 0."""


@dataclass(frozen=True, eq=False)
class Curve:
    """The loss of every candidate that a search looked at.

    Attributes:
        candidates: float64 (n,), thresholds in the tensor's own unit, increasing.
        losses: float64 (n,), what the search minimises; inf marks a candidate that is ruled out.
        kind: "kl" (nats) or "mse" (mean squared error of the INT8 round trip, in the tensor's unit squared).
    """

    candidates: npt.NDArray[np.float64]
    losses: npt.NDArray[np.float64]
    kind: Literal["kl", "mse"]


@dataclass(frozen=True)
class Threshold:
    """The range that a calibrator chose for one tensor.

    Attributes:
        amax: clipping threshold, a float32 value held as a Python float; 0 for a tensor that is all zero.
        scale: amax / 127 in float32, bit for bit what a TensorRT cache holds.
        method: name of the calibrator.
        reason: how the threshold came about where a method knows several ways, else empty.
        curve: the search's losses where asked for, else None.
    """

    amax: float
    scale: np.float32
    method: str
    reason: str = ""
    curve: Curve | None = None


class Calibrator(Protocol):
    """A method that finds a threshold; implementations are frozen dataclasses whose fields are its parameters."""

    name: ClassVar[str]
    """What users call the method."""
    trt_algorithm: ClassVar[str | None]
    """Name in the header of a TensorRT cache; None where TensorRT has no such calibrator."""

    def compute(self, h: Histogram, *, curve: bool = False) -> Threshold:
        """The threshold for one histogram; the losses of all candidates too, if `curve` and the method has any.

        Raises:
            CalibrationError: the histogram holds NaN, Inf or nothing at all.
        """
        ...


def threshold(amax: float, method: str, reason: str = "", curve: Curve | None = None) -> Threshold:
    """Rounds `amax` to float32, as TensorRT does before it divides by 127 in float32.

    Raises:
        CalibrationError: the threshold exceeds float32's largest number.
    """
    rounded = float(np.float32(amax)) if abs(amax) <= float(np.finfo(np.float32).max) else math.inf
    if not math.isfinite(rounded):
        raise CalibrationError(
            f"The {method} threshold {amax:.6g} exceeds float32's range.",
            "Leave the tensor in floating point, or calibrate it with another method.",
        )
    return Threshold(rounded, scale_from_amax(rounded), method, reason, curve)


def check_histogram(h: Histogram, name: str = "") -> None:
    """Refuses what no method can calibrate; `name` is the tensor's, for the sentence.

    Raises:
        CalibrationError: the histogram holds NaN, Inf or nothing at all.
    """
    subject = f"Tensor {name!r}" if name else "The tensor"
    if h.nan_count or h.inf_count:
        seen = h.total + h.nan_count + h.inf_count
        raise CalibrationError(
            f"{subject} cannot be calibrated: {h.nan_count} NaN and {h.inf_count} Inf among {seen} values.",
            "Look for an overflow upstream of it, or set attention-mask values apart while collecting.",
        )
    if h.total == 0:
        raise CalibrationError(f"{subject} cannot be calibrated: no value of it was seen.", "Feed at least one batch.")


def check_fraction(owner: str, parameter: str, value: Any, low: float, high: float) -> None:
    """Refuses a parameter that is not a number in [low, high].

    Raises:
        InputError: it is not.
    """
    number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not number or not low <= float(value) <= high:
        raise InputError(f"{owner}: {parameter} must be a number from {low:g} to {high:g}; {value!r} came.")

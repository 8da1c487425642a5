"""Where a magnitude is counted: ranges, slots and the order of float32 numbers; see histogram.py for the rules.

A histogram in the making has 2049 slots: the 2048 bins, and one more for a product of exactly 2048. TensorRT's rule
puts that last slot into bin 2047 when a batch ends; over a power of two it holds the values equal to the range.

The key of a float32 with the bits w is `w ^ ((w >> 31) & 0x7fffffff)`: its order as a signed integer is the order of
the numbers, with -NaN < -Inf < ... < -0.0 < +0.0 < ... < Inf < NaN. The key of -x is -1 - key(x).
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import numpy.typing as npt

from quantkit.errors import CalibrationError, InputError

NUM_BINS = 2048
MODES = ("tensorrt", "pow2")
MASK_LOGITS = -5000.0
"""A threshold that sets additive masks (-10000 plus a score, and anything below) apart from activations."""

TINY_RANGE = 2.0**-100
"""Below this range 2048 / R nears float32's largest number; values and range are then multiplied by `LIFT` first."""
LIFT = 2.0**64

MAX_FLOAT = float(np.finfo(np.float32).max)
MAX_KEY = 0x7F7FFFFF
"""Key of float32's largest number; -1 - MAX_KEY is that of the least."""

Mode = Literal["tensorrt", "pow2"]
Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


def key_of(value: float) -> int:
    """The key of a float32 value; the range of a histogram may exceed float32 and then has the largest number's key."""
    word = int(np.float32(min(value, MAX_FLOAT)).view(np.int32))
    return word if word >= 0 else word ^ 0x7FFFFFFF


def limit_of(upper: float) -> int:
    """The key of the largest float32 value within a range, which need not be a float32 value itself."""
    nearest = np.float32(min(upper, MAX_FLOAT))
    return key_of(float(nearest if float(nearest) <= upper else np.nextafter(nearest, np.float32(0))))


def value_of(key: int) -> float:
    """The finite float32 value that has this key; 0.0 for -0.0."""
    return float(np.int32(key if key >= 0 else key ^ 0x7FFFFFFF).view(np.float32)) + 0.0


def check_mode(mode: str) -> None:
    """Refuses a mode that does not exist with InputError."""
    if mode not in MODES:
        raise InputError(f"There is no histogram mode {mode!r}; known: {', '.join(MODES)}.")


def check_mask_logits(threshold: float | None) -> None:
    """Refuses a threshold that is not a finite negative number with InputError."""
    if threshold is not None and not -MAX_FLOAT <= threshold < 0:
        raise InputError(
            f"A threshold for mask logits is a float32 number below 0, not {threshold}.",
            f"Give for example {MASK_LOGITS}, or None to treat mask logits like any other value.",
        )


def as_float32(array: npt.ArrayLike) -> Floats:
    """The array as float32; float16 is widened, everything else is refused with CalibrationError."""
    values = np.asarray(array)
    if values.dtype == np.float32:
        return values
    if values.dtype == np.float16:
        return values.astype(np.float32)
    raise CalibrationError(f"A histogram takes float32 values; {values.dtype} came.", "Convert the tensor first.")


def smallest_power_of_two(amax: float) -> float:
    """The smallest power of two >= `amax` (a finite float32 value, subnormal ones included); 0 for 0."""
    fraction, exponent = math.frexp(amax)
    return math.ldexp(fraction and 1.0, exponent - (fraction == 0.5))


def fitting_range(mode: Mode, upper: float, amax: float) -> float:
    """The range that holds `amax`, for a histogram whose range is `upper` (0: nothing but zeros so far).

    TensorRT grows the range by the whole factor ceil(amax / upper), rounded up to a power of two while that is below
    the number of bins; beyond it, where everything counted so far shares bin 0 anyway, by the factor itself (float64).
    From 2^63 on TensorRT's own factor overflows and its range stays; here it grows all the same.
    """
    if mode == "pow2":
        return max(upper, smallest_power_of_two(amax))
    if upper == 0 or upper >= amax:
        return max(upper, amax)
    factor = math.ceil(amax / upper)
    return max(upper * (1 << (factor - 1).bit_length() if factor < NUM_BINS else factor), amax)


def widened(slots: Counts, upper: float, wider: float) -> Counts:
    """2049 slots over [0, upper] as slots over [0, wider]: pairs added, once for every doubling.

    Raises:
        CalibrationError: `wider` is neither `upper` times a power of two nor more than 2048 times `upper`.
    """
    if upper in (0, wider):
        return slots
    if wider / upper > NUM_BINS:
        together = np.zeros_like(slots)
        together[0] = slots.sum()
        return together
    fraction, doublings = math.frexp(wider / upper)
    if fraction != 0.5:
        raise CalibrationError(
            f"Histograms over the ranges {upper} and {wider} cannot be merged: the ratio is no power of two.",
            "Collect all batches with one collector, or in mode pow2.",
        )
    for _ in range(doublings - 1):
        halves = np.zeros_like(slots)
        halves[: NUM_BINS // 2] = slots[0:NUM_BINS:2] + slots[1:NUM_BINS:2]
        halves[NUM_BINS // 2] = slots[NUM_BINS]
        slots = halves
    return slots


def bin_scale(upper: float) -> np.float32:
    """2048 / R in float32, with R itself rounded to float32 first (where it is no float32 value that matters)."""
    rounded = float(np.float32(upper)) if upper <= MAX_FLOAT else upper
    scale: np.float32 = np.float32(NUM_BINS / rounded if rounded else 0)
    return scale


def slot_indices(magnitudes: Floats, upper: float) -> npt.NDArray[np.int64]:
    """Slot 0..2048 of finite magnitudes <= upper; slot 2048 is what TensorRT's rule clamps into bin 2047."""
    if upper == 0:
        return np.zeros(magnitudes.shape, np.int64)
    if upper < TINY_RANGE:
        magnitudes, upper = magnitudes * np.float32(LIFT), upper * LIFT
    products: Floats = magnitudes * bin_scale(upper)
    return products.astype(np.int64)

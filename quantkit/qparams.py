"""INT8 arithmetic, once: scale from threshold, quantize, dequantize, and what the round trip costs.

`amax` is the clipping threshold (largest magnitude that still has a code of its own), `scale` is amax / 127.
Everything that rounds does so half to even, as ONNX's QuantizeLinear and TensorRT do.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

INT8_MAX = 127


def scale_from_amax(amax: float) -> np.float32:
    """float32 scale of the symmetric range [-amax, amax]; the division is done in float32, as TensorRT does it."""
    scale: np.float32 = np.float32(np.float32(amax) / np.float32(INT8_MAX))
    return scale


def amax_from_scale(scale: float) -> np.float32:
    """float32 threshold that a symmetric scale stands for."""
    amax: np.float32 = np.float32(np.float32(scale) * np.float32(INT8_MAX))
    return amax


def quantize(x: npt.ArrayLike, scale: npt.ArrayLike) -> npt.NDArray[np.int8]:
    """INT8 codes of `x` (any shape) in [-127, 127]; `scale` is a scalar or broadcasts against `x`. Scale 0 gives 0."""
    values, scales = np.asarray(x, np.float32), np.asarray(scale, np.float32)
    quotient = np.divide(values, scales, out=np.zeros(np.broadcast(values, scales).shape, np.float32), where=scales > 0)
    return np.clip(np.rint(quotient), -INT8_MAX, INT8_MAX).astype(np.int8)


def dequantize(codes: npt.NDArray[np.int8], scale: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """float32 values that the codes stand for."""
    return codes.astype(np.float32) * np.asarray(scale, np.float32)


def fake_quantize(x: npt.ArrayLike, scale: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """The INT8 round trip of `x`: quantize, then dequantize."""
    return dequantize(quantize(x, scale), scale)


def sqnr_db(signal: npt.ArrayLike, noisy: npt.ArrayLike) -> float:
    """Signal to quantization noise in dB: 10 log10(sum x^2 / sum (x - y)^2); inf without noise, -inf without signal."""
    clean = np.asarray(signal, np.float64)
    return sqnr_from_power(float(np.sum(clean**2)), float(np.sum((clean - np.asarray(noisy, np.float64)) ** 2)))


def sqnr_from_power(signal: float, noise: float) -> float:
    """SQNR in dB from the two powers (sums of squares over the same elements)."""
    if noise <= 0:
        return float("inf")
    return 10.0 * float(np.log10(signal / noise)) if signal > 0 else float("-inf")


def weight_scales(weight: npt.NDArray[Any], axis: int) -> npt.NDArray[np.float32]:
    """Per-channel scales of a weight: max|w| / 127 along every dimension but `axis`; an all-zero channel gets 1."""
    rest = tuple(d for d in range(weight.ndim) if d != axis % weight.ndim)
    amax = np.max(np.abs(weight), axis=rest).astype(np.float32)
    scales: npt.NDArray[np.float32] = np.where(amax > 0, amax / np.float32(INT8_MAX), np.float32(1)).astype(np.float32)
    return scales

"""Weights on the int8 grid: rounded one by one, or so that their errors cancel at the output.

Second-order rounding follows optimal brain quantization (Frantar and Alistarh 2022, arXiv:2208.11580) in the form of
GPTQ (Frantar et al. 2022, arXiv:2210.17323): input channels are rounded one after the other, and each one's error is
made up for in those still to come, by the inverse of the input's second moments. Deviations: channels always go in the
order of falling second moments; the moments are taken around the point whose error the bias takes; scales stay those
of the largest weight of each output channel.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from quantkit.network.precision import QuantizedWeight
from quantkit.qparams import INT8_MAX, weight_scales

BLOCK = 32
"""Channels whose corrections to the rest are applied together, as one matrix product."""
DAMPING = 0.03
"""Added to the diagonal of the second moments, as a share of its mean: what was not seen is not certain."""

Floats = npt.NDArray[np.float64]


def round_nearest(weight: npt.NDArray[np.float32]) -> QuantizedWeight:
    """Each weight to the nearest step of its output channel.

    Args:
        weight: (inputs, outputs).
    """
    scales = weight_scales(weight, 1)
    codes = np.clip(np.rint(weight / scales), -INT8_MAX, INT8_MAX).astype(np.int8)
    return QuantizedWeight(codes, scales)


def round_second_order(weight: npt.NDArray[np.float32], moments: Floats, damping: float = DAMPING) -> QuantizedWeight:
    """Weights rounded so that the mean squared error of the product's result is small.

    Args:
        weight: (inputs, outputs).
        moments: float64 (inputs, inputs), second moments of the input around the point where the bias corrects.
        damping: share of the mean diagonal that is added to it.
    """
    scales = weight_scales(weight, 1)
    order = np.argsort(-np.diag(moments), kind="stable")
    factor = _inverse_factor(moments[np.ix_(order, order)], damping)
    remaining = weight[order].astype(np.float64)
    codes = np.empty(weight.shape, np.int8)
    for start in range(0, len(order), BLOCK):
        stop = min(start + BLOCK, len(order))
        errors = np.empty((stop - start, weight.shape[1]))
        block = remaining[start:stop]
        for i in range(stop - start):
            row = factor[start + i, start + i : stop]
            rounded = np.clip(np.rint(block[i] / scales), -INT8_MAX, INT8_MAX)
            errors[i] = (block[i] - rounded * scales) / row[0]
            block[i + 1 :] -= np.outer(row[1:], errors[i])
            codes[order[start + i]] = rounded
        remaining[stop:] -= factor[start:stop, stop:].T @ errors
    return QuantizedWeight(codes, scales)


def _inverse_factor(moments: Floats, damping: float) -> Floats:
    """Upper triangular U with U^T U = inverse of the damped moments."""
    from scipy.linalg import cholesky, lapack

    damped = moments + damping * max(float(np.mean(np.diag(moments))), np.finfo(np.float32).tiny) * np.eye(len(moments))
    lower = cholesky(damped, lower=True, check_finite=False)
    inverse, _ = lapack.dpotri(lower, lower=1)
    inverse = np.tril(inverse) + np.tril(inverse, -1).T
    upper: Floats = cholesky(inverse, lower=False, check_finite=False)
    return upper

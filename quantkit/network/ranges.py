"""The range of an activation by what it costs behind the products that read it.

A histogram knows no channels: a channel that is clipped, or rounded away, may be one that the next weights ignore, or
the one they rest on. Here the error of the round trip is measured where it matters, at the products' results, on rows
that were kept while collecting.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from quantkit.collect.moments import Moments
from quantkit.network.edges import Vector
from quantkit.network.precision import Grid
from quantkit.qparams import INT8_MAX

SHRINKAGES = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6, 0.5)
"""Shares of the full range that are tried for each end."""

Range = tuple[float, float]


def full_range(moments: Moments) -> Range:
    """Lowest and highest value of all channels, zero included."""
    return min(0.0, float(moments.low.min())), max(0.0, float(moments.high.max()))


class OutputError:
    """Squared error at the results of some products when their common input is quantized.

    Args:
        rows: float32 (n, C), rows of the input.
        weights: matrices (C, outputs) that read it.
        symmetric: the grid is int8 around zero, else uint8 with a zero point.
        offsets: float32 (C,), by how many steps each channel is moved before it is rounded; what that adds, the
            products' biases give back. None: by none.
    """

    def __init__(self, rows: Vector, weights: Sequence[Vector], symmetric: bool, offsets: Vector | None = None) -> None:
        self._rows, self._symmetric = rows, symmetric
        self._offsets = np.float32(0) if offsets is None else offsets
        joined = np.concatenate(weights, axis=1)
        # |d W|^2 is d (W W^T) d^T; whichever product is smaller.
        self._squared = joined.shape[1] > joined.shape[0]
        self._matrix = joined @ joined.T if self._squared else joined

    def of(self, errors: Vector) -> float:
        """What errors of the input, (n, C), cost: sum of squares over rows and outputs."""
        product = errors @ self._matrix
        return float(np.vdot(product, errors if self._squared else product))

    def of_range(self, low: float, high: float) -> float:
        """What quantizing the input with a range costs."""
        return self.of(self.of_rows(low, high))

    def of_rows(self, low: float, high: float) -> Vector:
        """What quantizing the input with a range changes in its rows, (n, C)."""
        if max(-low, high) <= 0:  # the input was zero throughout: no code but that of zero
            return -self._rows
        if self._symmetric:
            scale = np.float32(max(-low, high) / INT8_MAX)
            codes, zero_point = np.clip(np.rint(self._rows / scale + self._offsets), -INT8_MAX, INT8_MAX), 0
        else:
            grid = Grid.between(low, high)
            scale, zero_point = grid.scale, grid.zero_point
            moved = np.rint(self._rows / scale + self._offsets)
            codes = np.clip(moved + np.float32(zero_point), 0, 2 * INT8_MAX + 1)
        errors: Vector = (codes - np.float32(zero_point) - self._offsets) * scale - self._rows
        return errors

    def best_range(self, low: float, high: float) -> Range:
        """The range within [low, high] that costs least; ends are tried one after the other, the upper one first."""
        best, cost = (low, high), self.of_range(low, high)
        if self._symmetric:
            amax = max(-low, high)
            candidates = [(max(low, -amax * share), min(high, amax * share)) for share in SHRINKAGES]
        else:
            candidates = [(low, high * share) for share in SHRINKAGES]
        for candidate in candidates:
            if (found := self.of_range(*candidate)) < cost:
                best, cost = candidate, found
        for share in () if self._symmetric else SHRINKAGES:
            candidate = (low * share, best[1])
            if (found := self.of_range(*candidate)) < cost:
                best, cost = candidate, found
        return best

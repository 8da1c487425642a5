"""Moves the channels of activations so that one range serves them all; the network computes the same.

Two things waste a range that all channels of an activation share:

- Channels whose values lie off zero, each by its own amount. A shift subtracts the middle of each channel's range and
  gives it back in the biases behind (Outlier Suppression+, Wei et al. 2023, arXiv:2304.09145; here folded entirely
  into constants where the tensor is a LayerNorm's result, residual connections included).
- Channels of different widths. Smoothing divides wide channels by a factor in front of the quantizer and multiplies the
  weights that read them (SmoothQuant, Xiao et al. 2022, arXiv:2211.10438; here the factor is not folded into the norm,
  because the residual connection reads the norm's result too, but into the quantizer: runtimes fuse the Mul).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from quantkit.collect.moments import Moments
from quantkit.network.edges import Dense, Edge, Vector, constant
from quantkit.network.index import GraphIndex

Floats = npt.NDArray[np.float64]
WIDEST = 12.0
"""Limit of the logarithm of a smoothing factor, against factors beyond float32's precision."""


class Folder:
    """The constants of a network, changed step by step; after each step the network computes what it did before.

    Attributes:
        constants: initializers that were changed so far -> float32 values.
    """

    def __init__(self, index: GraphIndex) -> None:
        self._index = index
        self.constants: dict[str, Vector] = {}

    def value(self, name: str) -> Vector:
        """An initializer as it stands now, float32."""
        return self.constants[name] if name in self.constants else constant(self._index, name)

    def put(self, name: str, value: Vector) -> None:
        """Replaces an initializer."""
        self.constants[name] = value.astype(np.float32)

    def shift(self, edge: Edge, centre: Floats) -> None:
        """Makes the activation smaller by `centre`, float64 (C,); the edge has an offset."""
        self.add(edge.offset, -centre)
        for reader in edge.readers:
            self.add(reader.bias, centre @ self.value(reader.product.weight).astype(np.float64))
        for dense in edge.residuals:
            self.add(dense.bias, centre)

    def scale(self, dense: Dense, factors: Vector) -> None:
        """Multiplies the channels of a projection's result by `factors`, float32 (outputs,)."""
        self.constants[dense.product.weight] = self.value(dense.product.weight) * factors
        self.constants[dense.bias] = self.value(dense.bias) * factors

    def add(self, name: str, summand: Floats) -> None:
        """Adds to an initializer, in float64."""
        self.constants[name] = (self.value(name).astype(np.float64) + summand).astype(np.float32)


def smoothing_factors(reach: Floats, weight_reach: Floats, strength: float) -> Vector:
    """Factors a channel: reach ** strength / weight_reach ** (1 - strength), their geometric mean 1.

    Args:
        reach: (C,), largest magnitude of each channel of the activation.
        weight_reach: (C,), largest magnitude among the weights that read the channel.
        strength: 0 evens out the weights only, 1 the activation only.
    """
    tiny = float(np.finfo(np.float32).tiny)
    silent = (reach <= tiny) | (weight_reach <= tiny)
    if silent.all():
        return np.ones(len(reach), np.float32)
    logs = strength * np.log(np.maximum(reach, tiny)) - (1 - strength) * np.log(np.maximum(weight_reach, tiny))
    logs -= logs[~silent].mean()
    logs[silent] = 0.0
    return np.exp(np.clip(logs, -WIDEST, WIDEST)).astype(np.float32)


def middle(moments: Moments) -> Floats:
    """The middle of each channel's range, float64 (C,)."""
    return (moments.low.astype(np.float64) + moments.high) / 2


def reach(moments: Moments) -> Floats:
    """Largest magnitude of each channel, float64 (C,)."""
    return np.maximum(np.abs(moments.low), np.abs(moments.high)).astype(np.float64)


def shifted(moments: Moments, centre: Floats) -> Moments:
    """The moments of x - centre, from those of x."""
    return replace(
        moments,
        low=(moments.low - centre).astype(np.float32),
        high=(moments.high - centre).astype(np.float32),
        mean=moments.mean - centre,
        gram=moments.second_moments(centre).astype(np.float32),
        sample=(moments.sample - centre).astype(np.float32),
    )


def scaled(moments: Moments, factors: Vector) -> Moments:
    """The moments of x / factors, from those of x."""
    return replace(
        moments,
        low=moments.low / factors,
        high=moments.high / factors,
        mean=moments.mean / factors,
        gram=moments.gram / np.outer(factors, factors),
        sample=moments.sample / factors,
    )

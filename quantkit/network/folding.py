"""Moves channels across edges so that the network computes the same and its activations fit INT8 better.

One range serves all channels of an activation. Two things waste it, and both can be folded into constants:

- Channels whose values lie off zero, each by its own amount. `shift` subtracts the middle of each channel and gives it
  back in the biases behind (as in Outlier Suppression+, Wei et al. 2023, arXiv:2304.09145; here also over residual
  connections, and on the attention's context).
- Channels of different widths. `smooth` divides wide channels and multiplies the weights that read them (SmoothQuant,
  Xiao et al. 2022, arXiv:2211.10438), where the factor can be folded into a product in front.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from quantkit.collect.moments import Moments
from quantkit.network.edges import Edge, Vector, constant
from quantkit.network.index import GraphIndex

Floats = npt.NDArray[np.float64]


class Folder:
    """The constants of a network, changed step by step; after each step the network computes what it did before.

    Attributes:
        constants: initializers that were changed so far -> float32 values.
    """

    def __init__(self, index: GraphIndex) -> None:
        self._index = index
        self.constants: dict[str, Vector] = {}

    def value(self, name: str) -> Floats:
        """An initializer as it stands now, float64."""
        return (self.constants[name] if name in self.constants else constant(self._index, name)).astype(np.float64)

    def shift(self, edge: Edge, centre: Floats) -> None:
        """Makes the activation smaller by `centre` (C,); the edge has an offset."""
        self._set(edge.offset, self.value(edge.offset) - centre)
        for reader in edge.readers:
            self._set(reader.bias, self.value(reader.bias) + centre @ self.value(reader.product.weight))
        for dense in edge.residuals:
            self._set(dense.bias, self.value(dense.bias) + centre)

    def smooth(self, edge: Edge, factors: Floats) -> None:
        """Divides the activation's channels by `factors` (C,), all positive; the edge has a source."""
        if edge.source is None:
            raise ValueError(f"{edge.tensor} has no product in front of it that could take a factor")
        self._set(edge.source.product.weight, self.value(edge.source.product.weight) / factors)
        self._set(edge.source.bias, self.value(edge.source.bias) / factors)
        for reader in edge.readers:
            self._set(reader.product.weight, self.value(reader.product.weight) * factors[:, None])

    def _set(self, name: str, value: Floats) -> None:
        self.constants[name] = np.ascontiguousarray(value, np.float32)


def smoothing_factors(reach: Floats, weight_reach: Floats, strength: float) -> Floats:
    """Factors a channel: reach ** strength / weight_reach ** (1 - strength), their geometric mean 1.

    Args:
        reach: (C,), largest magnitude of each channel of the activation.
        weight_reach: (C,), largest magnitude among the weights that read the channel.
        strength: 0 evens out the weights only, 1 the activation only.
    """
    tiny = float(np.finfo(np.float32).tiny)
    logs = strength * np.log(np.maximum(reach, tiny)) - (1 - strength) * np.log(np.maximum(weight_reach, tiny))
    silent = (reach <= tiny) | (weight_reach <= tiny)
    logs[silent] = logs[~silent].mean() if not silent.all() else 0.0
    factors: Floats = np.exp(np.clip(logs - logs.mean(), -12, 12))
    return factors


def moved(moments: Moments, centre: Floats, factors: Floats) -> Moments:
    """The moments of (x - centre) / factors, from those of x."""
    gram = moments.second_moments(centre) / np.outer(factors, factors)
    sample = (moments.sample - centre) / factors
    low, high = ((bound - centre) / factors for bound in (moments.low, moments.high))
    return Moments(
        moments.rows,
        low.astype(np.float32),
        high.astype(np.float32),
        (moments.mean - centre) / factors,
        gram.astype(np.float32),
        sample.astype(np.float32),
    )

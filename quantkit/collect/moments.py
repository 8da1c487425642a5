"""What a matrix product sees of its input, channel by channel: extremes, mean, second moments, some rows.

Histograms forget which channel a value belongs to. Equalization, rounding and bias correction need just that, and the
second moments X^T X decide what an error in a weight costs at the output. Padded positions are left out: their results
are thrown away.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quantkit.errors import CalibrationError

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Moments:
    """Statistics of the rows of a tensor of C channels.

    Attributes:
        rows: number of rows seen.
        low, high: float32 (C,), extremes.
        mean: float64 (C,).
        gram: float32 (C, C), the mean of x^T x over the rows.
        sample: float32 (n, C), some of the rows, spread over the data.
    """

    rows: int
    low: npt.NDArray[np.float32]
    high: npt.NDArray[np.float32]
    mean: Floats
    gram: npt.NDArray[np.float32]
    sample: npt.NDArray[np.float32]

    def second_moments(self, centre: Floats) -> Floats:
        """Second moments around a point, float64 (C, C): E[(x - centre)^T (x - centre)]."""
        cross = np.outer(self.mean, centre)
        return self.gram.astype(np.float64) - cross - cross.T + np.outer(centre, centre)


class MomentsAccumulator:
    """Adds up the statistics of a tensor batch by batch.

    Args:
        sample_rows: rows of each batch to keep, evenly spaced among those that count.
    """

    def __init__(self, sample_rows: int) -> None:
        self._sample_rows = sample_rows
        self._rows = 0
        self._low = self._high = np.zeros(0, np.float32)
        self._sum = self._gram = np.zeros(0)
        self._kept: list[npt.NDArray[np.float32]] = []

    def update(self, values: npt.NDArray[np.float32], keep: npt.NDArray[np.bool_] | None = None) -> None:
        """Adds a batch.

        Args:
            values: float32 (..., C); it may be overwritten afterwards.
            keep: which rows count, of the shape of `values` without its last dimension; None counts all.

        Raises:
            CalibrationError: NaN or Inf among the values.
        """
        x = values.reshape(-1, values.shape[-1])
        if keep is not None:
            x = x[keep.ravel()]
        if not len(x):
            return
        gram = x.T @ x
        if not np.isfinite(gram).all():
            raise CalibrationError("An activation holds NaN or Inf, or values whose squares exceed float32's range.")
        first = not self._rows
        self._rows += len(x)
        low, high = x.min(axis=0), x.max(axis=0)
        self._low = low if first else np.minimum(self._low, low)
        self._high = high if first else np.maximum(self._high, high)
        self._sum = x.sum(axis=0, dtype=np.float64) + (0 if first else self._sum)
        self._gram = gram.astype(np.float64) + (0 if first else self._gram)
        self._kept.append(np.array(x[:: max(1, len(x) // max(1, self._sample_rows))][: self._sample_rows], np.float32))

    def moments(self) -> Moments:
        """What was seen so far.

        Raises:
            CalibrationError: nothing was seen.
        """
        if not self._rows:
            raise CalibrationError("No token was seen, so there are no moments.", "Feed at least one sentence.")
        gram = (self._gram / self._rows).astype(np.float32)
        return Moments(self._rows, self._low, self._high, self._sum / self._rows, gram, np.concatenate(self._kept))

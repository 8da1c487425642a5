"""What a matrix product sees of its input, channel by channel: extremes, mean, second moments, some rows.

Histograms forget which channel a value belongs to. Shifts, smoothing, rounding and bias correction need just that, and
the second moments X^T X decide what an error in a weight costs at the output. Padded positions are left out: their
results are thrown away.
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
        rows: number of rows that mean and gram rest on.
        low, high: float32 (C,), extremes of all rows.
        mean: float64 (C,).
        gram: float32 (C, C), the mean of x^T x over the rows.
        sample: float32 (n, C), rows to try things on; held out of mean and gram where there were enough batches.
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
        moments: Floats = self.gram.astype(np.float64) - cross - cross.T + np.outer(centre, centre)
        return moments


class MomentsAccumulator:
    """Adds up the statistics of a tensor batch by batch.

    Every fourth batch is held out: some of its rows are kept, and of the rest of it only the extremes count.

    Args:
        kept_rows: how many rows of a batch that is held out to keep, evenly spaced among those that count.
    """

    HELD_OUT = 4

    def __init__(self, kept_rows: int = 64) -> None:
        self._kept_rows = kept_rows
        self._batches = self._rows = 0
        self._low = self._high = np.zeros(0, np.float32)
        self._sum: Floats = np.zeros(0)
        self._gram: Floats = np.zeros((0, 0))
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
        low, high = x.min(axis=0), x.max(axis=0)
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise CalibrationError("An activation holds NaN or Inf, which have no range.", "Look for an overflow.")
        first = not self._batches
        self._low = low if first else np.minimum(self._low, low)
        self._high = high if first else np.maximum(self._high, high)
        held_out = self._batches % self.HELD_OUT == self.HELD_OUT - 1
        if first or held_out:
            # The first batch stands in until there is one to hold out.
            rows = np.unique(np.linspace(0, len(x) - 1, self._kept_rows).astype(np.int64))
            kept = [] if self._batches == self.HELD_OUT - 1 else self._kept
            self._kept = [*kept, np.array(x[rows], np.float32)]
        if not held_out:
            self._sum = x.sum(axis=0, dtype=np.float64) + (0.0 if first else self._sum)
            self._gram = (x.T @ x).astype(np.float64) + (0.0 if first else self._gram)
            self._rows += len(x)
        self._batches += 1

    def moments(self) -> Moments:
        """What was seen so far.

        Raises:
            CalibrationError: nothing was seen.
        """
        if not self._rows:
            raise CalibrationError("No token was seen, so there are no moments.", "Feed at least one sentence.")
        gram = (self._gram / self._rows).astype(np.float32)
        return Moments(self._rows, self._low, self._high, self._sum / self._rows, gram, np.concatenate(self._kept))

"""Labelled texts as they come out of any source: one immutable value for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from quantkit.errors import DataError, InputError
from quantkit.types import Array


@dataclass(frozen=True, eq=False)
class Examples:
    """Texts and, where the source has them, their labels.

    Attributes:
        texts: one tuple a row, of one sentence or of a pair.
        labels: int64 class numbers or float32 scores, shape (rows,), read-only; None for texts without labels.
        source: where the rows come from, for messages and reports (a file, or a name on the hub).
        split: "train", "eval" or "eval_mismatched".
        skipped: rows of the source that were left out because they are known to be broken there (QQP).

    Raises:
        DataError: there is no row at all.
        InputError: there are not as many labels as rows.
    """

    texts: tuple[tuple[str, ...], ...]
    labels: Array | None
    source: str
    split: str
    skipped: int = 0

    def __post_init__(self) -> None:
        if not self.texts:
            raise DataError(f"{self.source} holds no rows.", "Give a file with at least one sentence.")
        if self.labels is not None:
            if self.labels.shape != (len(self.texts),):
                raise InputError(
                    f"{self.source}: {len(self.texts)} rows came with labels of shape {self.labels.shape}."
                )
            self.labels.setflags(write=False)

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: Sequence[int] | Array) -> Examples:
        """The rows with these numbers, in this order.

        Raises:
            DataError: `rows` is empty.
        """
        numbers = np.asarray(rows, dtype=np.int64)
        return replace(
            self,
            texts=tuple(self.texts[i] for i in numbers),
            labels=None if self.labels is None else self.labels[numbers],
        )

    def head(self, count: int) -> Examples:
        """The first `count` rows, or all of them where there are fewer."""
        return self.take(range(min(count, len(self))))

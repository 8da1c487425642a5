"""Token batches: fixed or ragged shapes, padded, with the last batch handled the way the caller says."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Literal, get_args

import numpy as np

from quantkit.data.tokenize import Encoded
from quantkit.errors import DataError, InputError
from quantkit.files import sha256_array
from quantkit.types import Array

Fill = Literal["short", "drop", "pad"]

INPUTS = ("input_ids", "attention_mask", "token_type_ids")

RAGGED_MULTIPLE = 8
"""Ragged batches are rounded up to a multiple of this: few shapes to compile, and whole vectors for the kernels."""


class TokenBatches:
    """Encoded texts cut into batches, in their order; a `BatchSource`.

    Each batch is a fresh dict input name -> int64 array of shape (batch, sequence): `input_ids` padded with the
    tokenizer's padding id, `attention_mask` with 1 on tokens and 0 on padding, `token_type_ids` padded with 0.

    Args:
        encoded: the texts as token ids.
        batch: rows a batch.
        seq_len: tokens a row, padding included; None makes ragged batches, each as long as its longest row rounded up
            to a multiple of 8 (and never over the length the texts were encoded for).
        fill: what becomes of an incomplete last batch. "short" gives it as it is (shapes differ: for engines with a
            free batch dimension). "drop" leaves its rows out (for calibration with a fixed shape: TensorRT refuses an
            incomplete batch, and repeated rows would be counted twice). "pad" repeats its rows until it is full; of
            the outputs only the first `valid[i]` rows count (for evaluation with a fixed shape).
        inputs: which of the three arrays to give, for models without token types.

    Raises:
        InputError: `batch` or `seq_len` is not positive, a row is longer than `seq_len`, an unknown `fill` or input.
        DataError: nothing is left, because "drop" was asked for and there are fewer rows than a batch.
    """

    def __init__(
        self,
        encoded: Encoded,
        batch: int,
        seq_len: int | None = None,
        *,
        fill: Fill = "short",
        inputs: Sequence[str] = INPUTS,
    ) -> None:
        if batch < 1:
            raise InputError(f"A batch of {batch} rows was asked for; at least 1 is needed.")
        if fill not in get_args(Fill):
            raise InputError(f"fill is {fill!r}; expected one of {', '.join(get_args(Fill))}.")
        if unknown := set(inputs) - set(INPUTS):
            raise InputError(f"No array is called {sorted(unknown)[0]!r}; there are {', '.join(INPUTS)}.")
        longest = int(encoded.lengths.max())
        if seq_len is not None and seq_len < longest:
            raise InputError(
                f"A text has {longest} tokens, and batches of {seq_len} were asked for.",
                f"Encode with max_length={seq_len}, which truncates and counts.",
            )
        self.encoded = encoded
        self.batch = batch
        self.seq_len = seq_len
        self.fill = fill
        self.inputs = tuple(inputs)
        rows = len(encoded)
        starts = range(0, rows - rows % batch if fill == "drop" else rows, batch)
        self._spans = [(start, min(start + batch, rows)) for start in starts]
        if not self._spans:
            raise DataError(
                f"{rows} rows do not make one batch of {batch}, and incomplete batches are dropped.",
                f"Use --batch {rows} or less, or give more rows.",
            )

    def __len__(self) -> int:
        return len(self._spans)

    def __iter__(self) -> Iterator[dict[str, Array]]:
        for start, stop in self._spans:
            rows = [start + i % (stop - start) for i in range(self.batch)] if self.fill == "pad" else range(start, stop)
            yield self._arrays(rows)

    @property
    def valid(self) -> tuple[int, ...]:
        """Rows of each batch that are real; the rest of a "pad"ded batch repeats them."""
        return tuple(stop - start for start, stop in self._spans)

    @property
    def examples(self) -> int:
        """Real rows in all batches together."""
        return sum(self.valid)

    @property
    def dropped(self) -> int:
        """Rows left out because they do not fill a batch."""
        return len(self.encoded) - self.examples

    @property
    def truncated(self) -> int:
        """Texts that were cut to the length they were encoded for (rows left out by "drop" are counted too)."""
        return self.encoded.truncated

    @cached_property
    def sha256(self) -> str:
        """Hexadecimal SHA-256 over the names, types, shapes and contents of all arrays, batch by batch."""
        digest = hashlib.sha256()
        for arrays in self:
            for name, array in arrays.items():
                digest.update(name.encode())
                sha256_array(digest, array)
        return digest.hexdigest()

    def _arrays(self, rows: Sequence[int]) -> dict[str, Array]:
        """The arrays of one batch."""
        encoded = self.encoded
        width = self.seq_len or self._width(max(len(encoded.input_ids[row]) for row in rows))
        ids = np.full((len(rows), width), encoded.pad_id, dtype=np.int64)
        mask, types = np.zeros_like(ids), np.zeros_like(ids)
        for i, row in enumerate(rows):
            length = len(encoded.input_ids[row])
            ids[i, :length] = encoded.input_ids[row]
            types[i, :length] = encoded.type_ids[row]
            mask[i, :length] = 1
        arrays = dict(zip(INPUTS, (ids, mask, types), strict=True))
        return {name: arrays[name] for name in self.inputs}

    def _width(self, longest: int) -> int:
        """Width of a ragged batch: rounded up, but never past what the texts were encoded for."""
        rounded = -(-longest // RAGGED_MULTIPLE) * RAGGED_MULTIPLE
        return max(longest, min(rounded, self.encoded.max_length))

"""Calibration samples: drawn from the train split, spread over all lengths, never from what is evaluated.

A calibrator sees only what it is given. A plain random draw of a few hundred sentences holds few of the long ones, and
the long ones drive the ranges of the attention; so the pool is sorted by length, cut into as many strata as samples
are wanted, and one row is drawn from each (stratified sampling with one unit a stratum; W. G. Cochran, "Sampling
Techniques", 3rd edition, chapters 5 and 5A).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from quantkit.data.examples import Examples
from quantkit.errors import DataError, InputError
from quantkit.types import Array


@dataclass(frozen=True, eq=False)
class CalibrationSample:
    """Rows to calibrate with, and how they were found.

    Attributes:
        examples: the rows, in a seeded random order, so that no batch holds the short ones only.
        indices: their numbers in the source, int64, shape (rows,).
        requested: how many were asked for.
        refused: rows of the source that also stand in the evaluation split; none of them is ever drawn.
        seed: what the draw was seeded with.
    """

    examples: Examples
    indices: Array
    requested: int
    refused: int
    seed: int

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def short(self) -> bool:
        """Whether the source had fewer rows than were asked for, so that all of them are used."""
        return len(self) < self.requested


def calibration_sample(
    examples: Examples,
    n: int,
    seed: int = 0,
    lengths: Sequence[int] | Array | None = None,
    exclude: Examples | Sequence[Examples] | None = None,
) -> CalibrationSample:
    """Draws `n` rows, stratified by length.

    The draw uses `random.Random.random`, whose sequence Python keeps the same in all versions, so a seed means the
    same rows everywhere.

    Args:
        examples: the pool, normally the train split.
        n: how many rows; where the pool has fewer, all of them are used and the result is `short`.
        seed: of the draw and of the order.
        lengths: one length a row, in any unit (tokens are best); None counts words, which costs no tokenizing.
        exclude: the evaluation split, or several. Rows of the pool that stand there are refused and counted.

    Raises:
        InputError: `n` is not positive, or there is not one length a row.
        DataError: every row of the pool stands in the evaluation split.
    """
    if n <= 0:
        raise InputError(f"{n} calibration samples were asked for; at least 1 is needed.", "Use --calib-samples 512.")
    if lengths is None:
        lengths = [sum(len(text.split()) for text in row) for row in examples.texts]
    if len(lengths) != len(examples):
        raise InputError(f"{len(lengths)} lengths came for {len(examples)} rows.")
    refused = leaked_rows(examples, exclude)
    pool = sorted(set(range(len(examples))) - set(refused.tolist()))
    if not pool:
        raise DataError(
            f"All {len(examples)} rows of {examples.source} also stand in the evaluation data.",
            "Calibrate with other rows: name them with --calib-data.",
        )
    drawn = _draw(pool, lengths, min(n, len(pool)), random.Random(seed))
    indices = np.array(drawn, dtype=np.int64)
    indices.setflags(write=False)
    return CalibrationSample(examples.take(indices), indices, n, len(refused), seed)


def _draw(pool: list[int], lengths: Sequence[int] | Array, n: int, draw: random.Random) -> list[int]:
    """One row from each of `n` strata of the pool sorted by length, in random order; ties in length are shuffled."""
    ranked = sorted(pool, key=lambda row: (int(lengths[row]), draw.random()))
    edges = [len(ranked) * i // n for i in range(n + 1)]
    rows = [ranked[low + int(draw.random() * (high - low))] for low, high in pairwise(edges)]
    return sorted(rows, key=lambda _: draw.random())


def leaked_rows(examples: Examples, evaluation: Examples | Sequence[Examples] | None) -> Array:
    """Numbers of the rows that also stand in the evaluation data, int64, ascending.

    Rows are compared as texts: case and the kind and amount of white space do not matter, labels neither. A single
    sentence also counts as standing there when it is either half of an evaluated pair (plain text files calibrate
    tasks of pairs too).
    """
    splits: Iterable[Examples] = (evaluation,) if isinstance(evaluation, Examples) else evaluation or ()
    seen: set[tuple[str, ...]] = set()
    for split in splits:
        keys = [tuple(map(_plain, row)) for row in split.texts]
        seen.update(keys)
        seen.update((half,) for key in keys for half in key)
    return np.array([i for i, row in enumerate(examples.texts) if tuple(map(_plain, row)) in seen], dtype=np.int64)


def check_leak(examples: Examples, evaluation: Examples | Sequence[Examples]) -> None:
    """Refuses calibration rows that also stand in the evaluation data.

    Raises:
        DataError: there are such rows; the message gives their number and the first of them.
    """
    leaked = leaked_rows(examples, evaluation)
    if len(leaked):
        first = " | ".join(examples.texts[leaked[0]])
        raise DataError(
            f"{len(leaked)} of {len(examples)} calibration rows of {examples.source} also stand in the evaluation "
            f"data; the first is {first[:80]!r}.",
            "Calibrate with rows of the train split; calibration_sample leaves such rows out.",
        )


def _plain(text: str) -> str:
    """A text without differences in case and white space."""
    return " ".join(text.casefold().split())

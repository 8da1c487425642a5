"""Moments: equal to NumPy's over the rows that count; what is held out; what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from quantkit.collect.moments import MomentsAccumulator
from quantkit.errors import CalibrationError


def test_moments_are_those_of_the_rows_that_count() -> None:
    draw = np.random.default_rng(0)
    batches = [draw.normal(2, 3, (4, 5, 6)).astype(np.float32) for _ in range(9)]
    keeps = [draw.random((4, 5)) < 0.7 for _ in range(9)]
    accumulator = MomentsAccumulator(kept_rows=3)
    for batch, keep in zip(batches, keeps, strict=True):
        accumulator.update(batch, keep)
    found = accumulator.moments()
    rows = [batch[keep] for batch, keep in zip(batches, keeps, strict=True)]
    seen = np.concatenate([r for i, r in enumerate(rows) if i % 4 != 3]).astype(np.float64)
    everything = np.concatenate(rows)
    assert found.rows == len(seen)
    assert np.array_equal(found.low, everything.min(0))
    assert np.array_equal(found.high, everything.max(0))
    assert np.allclose(found.mean, seen.mean(0))
    assert np.allclose(found.gram, seen.T @ seen / len(seen), rtol=1e-5)
    centred = seen - seen.mean(0)
    assert np.allclose(found.second_moments(seen.mean(0)), centred.T @ centred / len(seen), atol=1e-4)
    held_out = {tuple(row) for i in (3, 7) for row in rows[i]}
    assert len(found.sample) == 6
    assert {tuple(row) for row in found.sample} <= held_out


def test_one_batch_stands_in_for_what_would_be_held_out() -> None:
    accumulator = MomentsAccumulator(kept_rows=2)
    batch = np.arange(12, dtype=np.float32).reshape(3, 4)
    accumulator.update(batch)
    batch[:] = 0  # the runner's memory is used again
    assert np.array_equal(accumulator.moments().sample, [[0, 1, 2, 3], [8, 9, 10, 11]])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_has_no_moments_is_refused(bad: float) -> None:
    accumulator = MomentsAccumulator()
    with pytest.raises(CalibrationError, match="No token"):
        accumulator.moments()
    with pytest.raises(CalibrationError, match="NaN or Inf"):
        accumulator.update(np.array([[1, bad]], np.float32))
    accumulator.update(np.ones((2, 2), np.float32), np.zeros(2, np.bool_))
    with pytest.raises(CalibrationError, match="No token"):
        accumulator.moments()

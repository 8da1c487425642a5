"""Which elements a mask keeps, for every layout of a tensor."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from quantkit.collect.runs import TokenMask, all_runs, in_memory_order
from quantkit.errors import CalibrationError

BATCH, SEQUENCE = 3, 5
LAYOUTS = [
    ("batch", "sequence", None),
    ("batch", "sequence"),
    ("batch", None, "sequence", "sequence"),
    ("batch", None, "sequence", None),
    ("batch", "sequence", None, None),
    ("sequence", "batch", None),
    (None, "sequence"),
    (None, "batch", "sequence"),
    ("sequence", None),
    (None, "sequence", None),
    ("batch", None, None, "sequence"),
]
MASKS = hnp.arrays(np.int64, (BATCH, SEQUENCE), elements=st.integers(0, 1))


def numbered(axes: tuple[str | None, ...], free: int) -> np.ndarray:
    """An array of that layout in which every element is its own number."""
    shape = [{"batch": BATCH, "sequence": SEQUENCE}.get(role or "", free) for role in axes]
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def kept_by_hand(array: np.ndarray, axes: tuple[str | None, ...], mask: np.ndarray) -> list[float]:
    """The kept elements, position by position."""
    found = []
    for place in np.ndindex(array.shape):
        at = {role: [p for p, r in zip(place, axes, strict=True) if r == role] for role in ("batch", "sequence")}
        rows = mask[at["batch"][0]][None] if at["batch"] else mask
        if all(rows[:, s].any() for s in at["sequence"]):
            found.append(float(array[place]))
    return sorted(found)


@given(MASKS, st.sampled_from(LAYOUTS), st.integers(1, 3), st.integers(0, 3))
@settings(max_examples=300, deadline=None)
def test_masked_runs_hold_exactly_the_tokens(mask: np.ndarray, axes: tuple[str | None, ...], free: int, layout: int):
    array = numbered(axes, free)
    if layout == 1:  # another order in memory
        array = array.transpose().copy().transpose()
    elif layout == 2:  # gaps
        array = np.repeat(array, 2, axis=0)[::2]
    elif layout == 3:  # no dimension without gaps
        array = np.repeat(array, 2, axis=-1)[..., ::2]
    runs = TokenMask(mask).runs(array, axes)
    assert sorted(runs.gather(in_memory_order(array)).tolist()) == kept_by_hand(array, axes, mask)
    assert runs.lengths.min(initial=1) >= 1


@given(hnp.arrays(np.float32, hnp.array_shapes(max_dims=4, max_side=4), elements=st.integers(0, 99)), st.data())
@settings(deadline=None)
def test_all_runs_hold_everything_once(array: np.ndarray, data: st.DataObject):
    view = array.transpose(data.draw(st.permutations(range(array.ndim))))
    view = view[data.draw(hnp.basic_indices(view.shape, allow_ellipsis=False, allow_newaxis=True))]
    view = np.asarray(view, np.float32)
    assert sorted(all_runs(view).gather(in_memory_order(view)).tolist()) == sorted(view.ravel().tolist())


def test_contiguous_and_transposed_tensors_are_one_run_without_a_copy():
    array = np.zeros((4, 3, 8), np.float32)
    for view in (array, array.transpose(2, 0, 1), array[:, None]):
        assert len(all_runs(view).starts) == 1 and np.shares_memory(in_memory_order(view), array)


def test_padding_at_the_end_is_one_run_a_sentence():
    mask = np.arange(SEQUENCE) < np.array([[2], [5], [0]])
    runs = TokenMask(mask).runs(np.zeros((BATCH, SEQUENCE, 7), np.float32), ("batch", "sequence", None))
    assert runs.starts.tolist() == [0, 35] and runs.lengths.tolist() == [14, 35]


def test_tensors_of_one_layout_share_the_answer():
    mask = TokenMask(np.eye(BATCH, SEQUENCE))
    a, b = (np.zeros((BATCH, SEQUENCE, 7), np.float32) for _ in range(2))
    axes = ("batch", "sequence", None)
    assert mask.runs(a, axes) is mask.runs(b, axes)
    assert mask.applies_to(axes) and not mask.applies_to(("batch", None))
    assert not TokenMask(np.ones((2, 2))).applies_to(axes)


def test_axes_that_do_not_fit_are_refused():
    mask = TokenMask(np.ones((BATCH, SEQUENCE)))
    for axes in (("batch", "sequence"), ("sequence", "batch", None)):
        with pytest.raises(CalibrationError, match="do not fit a mask"):
            mask.runs(np.zeros((BATCH, SEQUENCE, 7), np.float32), axes)
    with pytest.raises(CalibrationError, match="has the shape"):
        TokenMask(np.ones(4))


def test_empty_tensors_have_no_runs():
    assert all_runs(np.zeros((0, 3), np.float32)).total == 0
    assert len(TokenMask(np.zeros((0, 4))).runs(np.zeros((0, 4), np.float32), ("batch", "sequence")).starts) == 0

"""Which parts of a tensor's memory are looked at: runs of neighbouring float32 elements.

A contiguous tensor is one run; so is a transposed one, since a histogram does not care about order. A slice is one run
a row. With an attention mask, only the positions that hold tokens are left: a tensor (batch, sequence, hidden) padded
at the end becomes one run a sentence, attention scores (batch, heads, sequence, sequence) one run a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from quantkit.errors import CalibrationError

Offsets = npt.NDArray[np.int64]
Axes = tuple[str | None, ...]
AXIS_ROLES = ("batch", "sequence", None)


@dataclass(frozen=True)
class Runs:
    """Runs of elements in a flat array: run i is flat[starts[i] : starts[i] + lengths[i]].

    Attributes:
        starts: int64 (n,), offsets in elements.
        lengths: int64 (n,), all >= 1.
    """

    starts: Offsets
    lengths: Offsets

    @property
    def total(self) -> int:
        """How many elements the runs hold."""
        return int(self.lengths.sum())

    def gather(self, flat: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The elements of `flat` that the runs hold, one after the other; a view if it is one run."""
        if len(self.starts) == 1:
            return flat[self.starts[0] : self.starts[0] + self.lengths[0]]
        parts: list[npt.NDArray[Any]] = [flat[a : a + n] for a, n in zip(self.starts, self.lengths, strict=True)]
        gathered: npt.NDArray[Any] = np.concatenate([flat[:0], *parts])
        return gathered


class TokenMask:
    """An attention mask, ready to be applied to the tensors of one batch.

    Args:
        mask: (batch, sequence), any integer or boolean type; 0 marks padding.

    Raises:
        CalibrationError: the mask is not two-dimensional.
    """

    def __init__(self, mask: npt.ArrayLike) -> None:
        keep = np.asarray(mask)
        if keep.ndim != 2:
            raise CalibrationError(f"An attention mask has the shape (batch, sequence); {keep.shape} came.")
        self.keep: npt.NDArray[np.bool_] = keep != 0
        self._known: dict[tuple[Any, ...], Runs] = {}

    @property
    def all_kept(self) -> bool:
        """Whether there is no padding at all."""
        return bool(self.keep.all())

    def applies_to(self, axes: Axes) -> bool:
        """Whether a tensor with such axes has positions that may be padding."""
        return "sequence" in axes and not self.all_kept

    def runs(self, array: npt.NDArray[Any], axes: Axes) -> Runs:
        """The runs of `array` (any strides >= 0) that lie at tokens; tensors of the same layout share the answer.

        Along "sequence" axes a position is kept where its sentence has a token; a tensor without a "batch" axis keeps a
        position that any sentence uses.

        Raises:
            CalibrationError: the axes do not fit the array or the mask.
        """
        key = (array.shape, array.strides, axes)
        if key not in self._known:
            self._check(array, axes)
            self._known[key] = _masked_runs(array, axes, self.keep)
        return self._known[key]

    def _check(self, array: npt.NDArray[Any], axes: Axes) -> None:
        expected = dict(zip(("batch", "sequence"), self.keep.shape, strict=True))
        fits = len(axes) == array.ndim and all(
            expected.get(role or "", size) == size for role, size in zip(axes, array.shape, strict=True)
        )
        if not fits:
            raise CalibrationError(
                f"Axes {axes} of a tensor of shape {array.shape} do not fit a mask of shape {self.keep.shape}.",
                "Correct the tensor's axes, or collect without ignore_padding.",
            )


def all_runs(array: npt.NDArray[Any]) -> Runs:
    """The runs that hold all of `array` (any strides >= 0)."""
    if array.flags.c_contiguous and array.size:
        return Runs(np.zeros(1, np.int64), np.array([array.size], np.int64))
    return _masked_runs(array, (None,) * array.ndim, np.ones((1, 1), np.bool_))


def in_memory_order(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A one-dimensional view of the memory that `array` spans; a copy where there is none.

    Negative, zero and odd strides, and arrays without a dimension free of gaps, are copied.
    """
    if array.flags.c_contiguous and array.flags.aligned:
        return array.reshape(-1)
    if not has_runs(array):
        return array.flatten()
    return np.lib.stride_tricks.as_strided(array, (span(array),), (array.itemsize,), writeable=False)


def has_runs(array: npt.NDArray[Any]) -> bool:
    """Whether runs of the array's own memory describe it: strides > 0 of whole elements, one without gaps."""
    sizes = [(s, n) for s, n in zip(array.strides, array.shape, strict=True) if n > 1]
    whole = all(s > 0 and s % array.itemsize == 0 for s, _ in sizes)
    return whole and array.flags.aligned and min((s for s, _ in sizes), default=array.itemsize) == array.itemsize


def span(array: npt.NDArray[Any]) -> int:
    """Elements of memory from the first to the last of `array`, both included; 0 for an empty one."""
    if array.size == 0:
        return 0
    gaps = (np.array(array.shape) - 1) * np.array(array.strides) // array.itemsize
    return 1 + int(gaps.sum())


def _masked_runs(array: npt.NDArray[Any], axes: Axes, keep: npt.NDArray[np.bool_]) -> Runs:
    """The runs of `array` at kept positions; see TokenMask.runs."""
    if array.size == 0:
        return Runs(np.zeros(0, np.int64), np.zeros(0, np.int64))
    if not has_runs(array):
        array = np.empty(array.shape, np.uint8)  # stands for the contiguous copy; only its layout matters
    steps = [s // array.itemsize for s in array.strides]
    # Outermost first. A dimension of size 1 has no step worth looking at.
    outer = sorted(range(array.ndim), key=lambda d: -steps[d] if array.shape[d] > 1 else -array.nbytes - 1)
    free = ("batch", None) if "sequence" not in axes else (None,)
    inner = 1
    while outer and axes[outer[-1]] in free and steps[outer[-1]] == inner:
        inner *= array.shape[outer.pop()]
    if "batch" not in axes:
        keep = np.logical_or.reduce(keep, axis=0, keepdims=True)
    first, length = np.zeros((len(keep), 1), np.int64), np.ones((len(keep), 1), np.int64)
    if outer and axes[outer[-1]] == "sequence" and steps[outer[-1]] == inner:
        outer.pop()
        first, length = _runs_of_ones(keep)
    batch = next((i for i, d in enumerate(outer) if axes[d] == "batch"), None)
    grid = np.ones([*(array.shape[d] for d in outer), first.shape[1]], np.bool_)
    for i, d in enumerate(outer):
        if axes[d] == "sequence":
            grid &= _spread(keep, batch, i, grid.ndim)
    grid &= _spread(length > 0, batch, grid.ndim - 1, grid.ndim)
    index = np.nonzero(grid)
    sentence = index[batch] if batch is not None else np.zeros(len(index[-1]), np.int64)
    starts = first[sentence, index[-1]] * inner
    for i, d in enumerate(outer):
        starts += index[i] * steps[d]
    return Runs(starts, length[sentence, index[-1]] * inner)


def _runs_of_ones(keep: npt.NDArray[np.bool_]) -> tuple[Offsets, Offsets]:
    """Starts and lengths, int64 (rows, most runs in a row), of the runs of True in each row; length 0 fills up."""
    edges = np.diff(np.pad(keep, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    row, begin = np.nonzero(edges == 1)
    end = np.nonzero(edges == -1)[1]
    rank = np.arange(len(row)) - np.searchsorted(row, row)
    first = np.zeros((len(keep), int(rank.max(initial=0)) + 1), np.int64)
    length = np.zeros_like(first)
    first[row, rank], length[row, rank] = begin, end - begin
    return first, length


def _spread(table: npt.NDArray[np.bool_], batch: int | None, axis: int, ndim: int) -> npt.NDArray[np.bool_]:
    """A (sentence, n) table with its columns along `axis` and its rows along `batch` of `ndim` dimensions."""
    shape = [1] * ndim
    shape[axis] = table.shape[1]
    if batch is None:
        return table.reshape(shape)
    shape[batch] = table.shape[0]
    return (table if batch < axis else table.T).reshape(shape)

"""Protocols and aliases where the stages meet.

They are protocols, not base classes, so that a user's own loader or engine needs no import from here. Pause before
changing one: every stage is written against these few lines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
FeedDict = Mapping[str, Array]
"""Name of an input or tensor -> array. Arrays that a runner returns may be overwritten by its next call."""

Progress = Callable[[int, int], None]
"""Called as progress(done, total) after each unit of work."""


@dataclass(frozen=True)
class TensorSpec:
    """Name, element type and shape of an engine's input or output; a dimension that may change is -1."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


@runtime_checkable
class BatchSource(Protocol):
    """A data set cut into batches; it can be walked through any number of times, each time in the same order."""

    def __iter__(self) -> Iterator[FeedDict]:
        """Fresh mappings input name -> array, batch by batch."""
        ...

    def __len__(self) -> int:
        """Number of batches."""
        ...


class Runner(Protocol):
    """Something that turns named inputs into named outputs, and holds memory until it is closed."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What `infer` wants."""
        ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What `infer` gives."""
        ...

    def infer(self, feed: FeedDict) -> dict[str, Array]:
        """Output name -> array for one batch."""
        ...

    def close(self) -> None:
        """Frees what the runner holds; a second call does nothing."""
        ...


class Watcher(Protocol):
    """Who is told how a long job goes; the library's own says nothing, the command line draws bars."""

    def stage(self, title: str) -> AbstractContextManager[Progress]:
        """A context for one stage of the job, whose value is called as progress(done, total)."""
        ...

    def say(self, message: str) -> None:
        """One sentence the user should see now."""
        ...

"""A pass over the data in a network that is run stretch by stretch, because not all of its tensors fit into memory.

Some batches go through the first stretch, then through the second, and so on; of each batch only the one tensor that
the next stretch starts from is kept. Every tensor is seen once for every batch, in the order of the batches, with the
bits that it has when the whole network shows all tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby, islice
from math import prod

import numpy as np

from quantkit.evaluate.accuracy import inputs_for
from quantkit.network.segments import Segment, Segments
from quantkit.pipeline.memory import fitting_segments, trim
from quantkit.pipeline.settings import threads_of
from quantkit.pipeline.sizes import shown
from quantkit.pipeline.workspace import Workspace
from quantkit.types import Array, BatchSource, FeedDict

Update = Callable[[int, FeedDict, FeedDict], None]
"""Called as update(number of the stretch, its tensors, the batch)."""


@dataclass(frozen=True)
class Pass:
    """How a pass is made.

    Attributes:
        segments: the stretches, one where everything fits.
        rows: batches that go through a stretch before the next one is compiled.
    """

    segments: tuple[Segment, ...]
    rows: int


def plan_pass(workspace: Workspace, batches: BatchSource, names: Collection[str], kept: float) -> Pass:
    """Cuts the network so that a pass stays within the limit of the settings; says how.

    Args:
        workspace: model, backend and settings.
        batches: what will be seen.
        names: tensors that are wanted.
        kept: bytes of what is gathered meanwhile.

    Raises:
        InputError: the limit is too small.
    """
    shape = max((feed["input_ids"].shape for feed in batches), key=prod)
    workspace.backend.describe()  # loads the library before memory is measured: it counts
    segments = Segments(workspace.network, (int(shape[0]), int(shape[1])), names)
    limit = workspace.settings.memory
    found, rows = fitting_segments(segments, limit, len(batches), kept)
    count, size = len(found), max(segment.tensor_bytes for segment in found)
    if count > 1:
        workspace.watcher.say(
            f"--memory {shown(limit)}: {len(names)} tensors in {count} stretches of at most {shown(size)}, "
            f"{rows} batches at a time."
        )
    else:
        workspace.watcher.say(f"--memory {shown(limit)}: all {len(names)} tensors at once, {shown(size)}.")
    return Pass(tuple(found), rows)


def run_pass(
    workspace: Workspace,
    feeds: Iterable[FeedDict],
    names: Collection[str],
    plan: Pass,
    update: Update,
    seen: int = 0,
    stops: Collection[int] = (),
) -> Iterator[int]:
    """Runs the batches; gives the number of batches that every stretch has seen, each time all have seen the same.

    Args:
        workspace: model, backend and settings.
        feeds: batches, those that were seen before left out.
        names: tensors that are wanted; those of `plan_pass`.
        plan: how.
        update: is told the tensors of each stretch and batch.
        seen: batches that were seen before.
        stops: numbers of batches at which all stretches are to have seen the same.
    """
    threads = threads_of(workspace.settings)
    for shape, group in groupby(feeds, key=lambda feed: feed["input_ids"].shape):
        segments = Segments(workspace.network, (int(shape[0]), int(shape[1])), names)
        while chunk := list(islice(group, rows_until(seen, plan.rows, stops))):
            carried: list[dict[str, Array]] = [{} for _ in chunk]
            for number, segment in enumerate(plan.segments):
                with workspace.backend.tap(segments.proto(segment), segment.shown, threads=threads) as runner:
                    for feed, held in zip(chunk, carried, strict=True):
                        tensors = runner.infer(inputs_for(runner, {**feed, **held}))
                        update(number, tensors, feed)
                        held.clear()
                        if segment.end is not None:
                            held[segment.end] = np.array(tensors[segment.end])
                        del tensors
                del runner
                trim()
            seen += len(chunk)
            yield seen


def rows_until(seen: int, rows: int, stops: Collection[int]) -> int:
    """How many of the next `rows` batches come before the next stop."""
    return min([rows, *(stop - seen for stop in stops if stop > seen)])


def by_segment(names: Iterable[str], aliases: Mapping[str, str], plan: Pass) -> list[list[str]]:
    """Names by the stretch that shows them, or what they are aliases of."""
    place = {name: number for number, segment in enumerate(plan.segments) for name in segment.names}
    found: list[list[str]] = [[] for _ in plan.segments]
    for name in names:
        found[place[aliases.get(name, name)]].append(name)
    return found

"""Moments within a memory limit: some tensors a pass, the second moments of those that are done on disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from quantkit.collect.moments import Moments, MomentsAccumulator
from quantkit.data.batches import TokenBatches
from quantkit.errors import InputError
from quantkit.pipeline.stretches import Pass, Update, plan_pass, run_pass
from quantkit.pipeline.workspace import Workspace
from quantkit.types import FeedDict

ACCUMULATED = 8
"""Bytes that an accumulator keeps for a second moment: a float64."""
UPDATED = 20
"""Bytes for a second moment of the one tensor that is being added: a batch's in float32 and float64, and the sum."""
REFINED = 48
"""Bytes for a second moment of the one activation that is being refined: copies around a point, and their factors."""


class StoredMoments(Mapping[str, Moments]):
    """Moments whose second moments lie on disk until they are asked for.

    Args:
        folder: where they lie; it belongs to whoever made it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._light: dict[str, Moments] = {}
        self._files: dict[str, Path] = {}

    def put(self, name: str, moments: Moments) -> None:
        """Writes the second moments and keeps the rest."""
        self._files[name] = self._folder / f"{len(self._files)}.npy"
        np.save(self._files[name], moments.gram, allow_pickle=False)
        self._light[name] = replace(moments, gram=np.zeros((0, 0), np.float32))

    def __getitem__(self, name: str) -> Moments:
        return replace(self._light[name], gram=np.load(self._files[name], allow_pickle=False))

    def __iter__(self) -> Iterator[str]:
        return iter(self._light)

    def __len__(self) -> int:
        return len(self._light)


def collect_moments_within(
    workspace: Workspace, batches: TokenBatches, names: Sequence[str], folder: Path
) -> StoredMoments:
    """Moments of some activations, in as few passes as the limit of the settings allows; the bits are those of one.

    Raises:
        CalibrationError: NaN or Inf in an activation.
        InputError: the limit is too small.
    """
    plan, groups = plan_passes(workspace, batches, names)
    stored = StoredMoments(folder)
    for number, group in enumerate(groups, 1):
        accumulators = {name: MomentsAccumulator() for name in group}
        title = "collect moments" if len(groups) == 1 else f"collect moments, pass {number} of {len(groups)}"
        with workspace.watcher.stage(title) as progress:
            for seen in run_pass(workspace, batches, names, plan, adder(accumulators)):
                progress(seen, len(batches))
        for name in group:
            stored.put(name, accumulators.pop(name).moments())
    return stored


def adder(accumulators: Mapping[str, MomentsAccumulator]) -> Update:
    """Adds what a stretch shows to the accumulators that want it."""

    def update(_: int, tensors: FeedDict, feed: FeedDict) -> None:
        for name in accumulators.keys() & tensors.keys():
            accumulators[name].update(tensors[name], feed["attention_mask"] != 0)

    return update


def plan_passes(workspace: Workspace, batches: TokenBatches, names: Sequence[str]) -> tuple[Pass, list[list[str]]]:
    """How the network is run, and the tensors of each pass.

    Raises:
        InputError: the limit is too small even with one tensor a pass.
    """
    index = workspace.network.index
    squares = {name: int((index.shape(name) or (0,))[-1] or 0) ** 2 for name in names}
    once = max(squares.values()) * max(UPDATED, REFINED)
    for count in range(1, len(names) + 1):
        room = max(max(squares.values()), -(-sum(squares.values()) // count))
        groups = in_groups(names, squares, room)
        kept = ACCUMULATED * max(sum(squares[name] for name in group) for group in groups) + once
        try:
            return plan_pass(workspace, batches, names, kept), groups
        except InputError:
            if len(groups) == len(names) or room == max(squares.values()):
                raise
    raise AssertionError("the last of the groups holds one tensor each")


def in_groups(names: Sequence[str], sizes: Mapping[str, int], room: int) -> list[list[str]]:
    """The names in their order, in groups whose sizes add up to at most `room`; a larger one stands alone."""
    groups: list[list[str]] = [[]]
    for name in names:
        if groups[-1] and sum(sizes[other] for other in groups[-1]) + sizes[name] > room:
            groups.append([])
        groups[-1].append(name)
    return groups

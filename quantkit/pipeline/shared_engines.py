"""Engines whose answers workers compute: an evaluation cut into shards of rows, the candidates of a search.

Answers come back in the order of the batches, with the boundaries that the batches have, so that they are those of an
engine here with the same number of threads, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from quantkit.backends.base import Precision
from quantkit.backends.feeds import graph_inputs, specs_of
from quantkit.data.batches import TokenBatches
from quantkit.distributed.cluster import Cluster, in_order, value_of
from quantkit.network.plan_file import plan_to_json
from quantkit.network.precision import PrecisionPlan
from quantkit.pipeline.candidates import refined_for
from quantkit.pipeline.shards import REFINEMENT, TABLE, answer_shard, cut, shard_size
from quantkit.pipeline.sharing import network_keys
from quantkit.pipeline.workspace import Workspace
from quantkit.types import Array, FeedDict, TensorSpec

if TYPE_CHECKING:
    from quantkit.tables.table import CalibrationTable


class SharedEngines:
    """Engines that workers build and ask, for one calibration and one shape of graphs.

    Args:
        workspace: model, settings.
        cluster: the workers.
        table: ranges of the activations; None where there is no INT8.
        shape: fixed batch and length of the graphs; None for free ones.
    """

    def __init__(
        self, workspace: Workspace, cluster: Cluster, table: CalibrationTable | None, shape: tuple[int, int] | None
    ) -> None:
        self._workspace, self._cluster, self._table, self._shape = workspace, cluster, table, shape
        self._expected: Iterator[tuple[PrecisionPlan, Any]] = iter(())
        self._early: dict[PrecisionPlan, Any] = {}
        self._awaited: set[PrecisionPlan] = set()

    def answers(
        self, plan: PrecisionPlan | None, precision: Precision, batches: TokenBatches, first: int = 0
    ) -> Iterator[Array]:
        """Logits, float32 (rows, outputs), of every batch from number `first` on, in order; plan None is no INT8.

        Raises:
            BackendError: the engine cannot be built or run; the workers are gone.
        """
        if plan in self._awaited and precision == "int8" and not first:
            yield from self._awaited_answers(plan)
            return
        spec, keys = self._recipe(plan, precision)
        shards = ((spec, feeds) for feeds in cut(batches, shard_size(len(batches) - first), first))
        for part in in_order(self._cluster.map(answer_shard, shards, keys)):
            yield from part

    def expect(self, plans: Sequence[PrecisionPlan], batches: TokenBatches) -> None:
        """Says which INT8 plans will be asked for next, over the same batches: each becomes one worker's shard."""
        feeds = list(batches)
        groups: dict[tuple[tuple[str, str], ...], list[tuple[PrecisionPlan, dict[str, Any]]]] = {}
        for plan in plans:
            spec, keys = self._recipe(plan, "int8")
            groups.setdefault(tuple(keys.items()), []).append((plan, spec))
        self._awaited = set(plans)
        self._early.clear()

        def answered() -> Iterator[tuple[PrecisionPlan, Any]]:
            for keys, wanted in groups.items():
                shards = [(spec, feeds) for _, spec in wanted]
                for number, outcome in self._cluster.map(answer_shard, shards, dict(keys)):
                    yield wanted[number][0], outcome

        self._expected = answered()

    @contextmanager
    def open(self, plan: PrecisionPlan | None, precision: Precision, batches: TokenBatches) -> Iterator[SharedEngine]:
        """A runner that gives the answers to the batches, asked in their order."""
        answers = self.answers(plan, precision, batches)
        try:
            yield SharedEngine(self._workspace, precision, answers)
        finally:
            close(answers)

    def _awaited_answers(self, plan: PrecisionPlan | None) -> list[Array]:
        """The answers of a plan that was expected; others' that come first wait until they are asked for."""
        while plan not in self._early:
            found, outcome = next(self._expected)
            self._early[found] = outcome
        self._awaited.discard(plan)
        answers: list[Array] = value_of(self._early.pop(plan))
        return answers

    def _recipe(self, plan: PrecisionPlan | None, precision: Precision) -> tuple[dict[str, Any], dict[str, str]]:
        """What a worker needs to build an engine: the shard's first argument, and contents."""
        workspace, cluster = self._workspace, self._cluster
        spec = {
            "backend": workspace.backend.name,
            "threads": cluster.threads,
            "precision": precision,
            "shape": None if self._shape is None else list(self._shape),
            "plan": None if plan is None else plan_to_json(plan),
        }
        keys = network_keys(workspace, cluster)
        if plan is None or self._table is None:
            return spec, keys
        keys |= {TABLE: cluster.upload(self._table.dumps().encode())}
        refinement = refined_for(workspace, plan).refinement
        if refinement is not None:
            from quantkit.network.refinement_file import dump_refinement

            kept = ("refinement content", id(cluster), id(refinement))
            if kept not in workspace.kept:
                workspace.kept[kept] = cluster.upload(dump_refinement(refinement))
            keys |= {REFINEMENT: workspace.kept[kept]}
        return spec, keys


class SharedEngine:
    """A runner whose answers come from workers; it is asked the batches in their order."""

    def __init__(self, workspace: Workspace, precision: Precision, answers: Iterable[Array]) -> None:
        graph = workspace.network.proto.graph
        self.precision = precision
        self.inputs: tuple[TensorSpec, ...] = specs_of(graph_inputs(workspace.network.proto))
        self.outputs: tuple[TensorSpec, ...] = specs_of(graph.output)
        self._answers = iter(answers)

    def infer(self, feed: FeedDict) -> dict[str, Array]:
        """The logits of the next batch.

        Raises:
            BackendError: see `SharedEngines.answers`.
        """
        return {self.outputs[0].name: np.asarray(next(self._answers))}

    def close(self) -> None:
        """There is nothing to free here."""


def close(answers: Iterator[Array]) -> None:
    """Takes back what of the answers was not waited for."""
    if (end := getattr(answers, "close", None)) is not None:
        end()

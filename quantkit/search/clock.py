"""How fast plans are, beside each other: engines compiled together and timed in turn on the same batches."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

from quantkit.backends.base import Backend
from quantkit.evaluate.latency import time_engines
from quantkit.network.plan_file import plan_to_json
from quantkit.network.precision import PrecisionPlan
from quantkit.search.judge import Build
from quantkit.search.store import Store
from quantkit.types import FeedDict

TOGETHER = 7
"""Engines in memory at once; every one holds all weights."""
ROUNDS = 20
"""Samples an engine."""


@dataclass(frozen=True)
class Timed:
    """Speed of one plan.

    Attributes:
        ms: median time of a batch.
        ratio: how many times faster than the first plan that was timed with it, median over rounds.
    """

    ms: float
    ratio: float


@dataclass
class Clock:
    """Times plans, and keeps what it found.

    Args:
        build: plan -> graph; None -> the FP32 graph.
        backend: what runs them.
        feeds: full batches.
        store: where results are kept.
        threads: of the engines.
        warmup: untimed calls of each engine.
    """

    build: Build
    backend: Backend
    feeds: Sequence[FeedDict]
    store: Store
    threads: int
    warmup: int = 2

    def times(
        self, first: PrecisionPlan | None, others: Sequence[PrecisionPlan], rounds: int = ROUNDS
    ) -> tuple[Timed, list[Timed]]:
        """The first plan (None: FP32) and others, which are timed in groups together with it.

        Returns:
            The first one's time (median of its times in the groups), and the others with their ratio to it.
        """
        firsts: list[Timed] = []
        found: list[Timed] = []
        for start in range(0, max(1, len(others)), TOGETHER - 1):
            head, *rest = self._group([first, *others[start : start + TOGETHER - 1]], rounds)
            firsts.append(head)
            found.extend(rest)
        return sorted(firsts, key=lambda timed: timed.ms)[len(firsts) // 2], found

    def _group(self, plans: Sequence[PrecisionPlan | None], rounds: int) -> list[Timed]:
        """Plans timed in turn; one whose engine cannot be built raises BackendError."""
        question: dict[str, Any] = {
            "times": [None if plan is None else plan_to_json(plan) for plan in plans],
            "rounds": rounds,
        }
        if (kept := self.store.get(question)) is not None:
            return [Timed(**value) for value in kept["timed"]]
        with ExitStack() as stack:
            engines = [
                stack.enter_context(
                    self.backend.compile(self.build(plan), "fp32" if plan is None else "int8", threads=self.threads)
                )
                for plan in plans
            ]
            found = time_engines(engines, self.feeds, warmup=self.warmup, rounds=rounds)
        timed = [Timed(latency.median_ms, latency.ratio_to(found[0])) for latency in found]
        self.store.put(question, {"timed": [asdict(one) for one in timed]})
        return timed

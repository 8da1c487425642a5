"""How fast plans are, beside each other: engines compiled together and timed in turn on the same batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from quantkit.backends.base import Backend
from quantkit.evaluate.latency import Latency, time_engines
from quantkit.network.plan_file import plan_to_json
from quantkit.network.precision import PrecisionPlan
from quantkit.search.judge import Build
from quantkit.search.store import Store
from quantkit.types import FeedDict

TOGETHER = 7
"""Engines in memory at once; every one holds all weights."""
ROUNDS = 20
"""Samples an engine."""
TIE = 1.02
"""Two plans whose speeds differ by less than this factor are equally fast: as much changes with a core's clock."""


@dataclass(frozen=True)
class Timed:
    """Speed of one plan.

    Attributes:
        ms: median time of a batch.
        ratio: how many times faster than the first plan that was timed with it, median over rounds.
        ratio_stderr: standard error of `ratio`, from the middle half of the rounds, which disturbed ones leave alone.
    """

    ms: float
    ratio: float
    ratio_stderr: float = 0.0

    def as_fast_as(self, other: Timed) -> bool:
        """Whether no difference to a faster one can be told: less than `TIE`, or than two standard errors."""
        behind = other.ratio - self.ratio
        return self.ratio * TIE >= other.ratio or behind <= 2 * math.hypot(self.ratio_stderr, other.ratio_stderr)


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
        timed = [Timed(one.median_ms, one.ratio_to(found[0]), _ratio_stderr(one, found[0])) for one in found]
        self.store.put(question, {"timed": [asdict(one) for one in timed]})
        return timed


def _ratio_stderr(own: Latency, reference: Latency) -> float:
    """Standard error of the median of the rounds' ratios, of the quartiles as for a normal distribution."""
    ratios = np.asarray(reference.samples_ms) / np.asarray(own.samples_ms)
    low, high = np.percentile(ratios, (25, 75))
    return float(1.2533 * (high - low) / 1.349 / math.sqrt(len(ratios)))

"""What INT8 costs and wins, part by part: one tensor group of one layer at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from quantkit.network.precision import PrecisionPlan
from quantkit.search.clock import Clock
from quantkit.search.judge import Judge, Judged
from quantkit.search.units import Unit, only, without
from quantkit.types import Progress

ROUNDS = 12
"""Timed samples a unit; the layers of a group together have several times as many."""
LEAST_SHARE = 0.01
"""A part that wins less than this share of the plan's time counts as winning so much: smaller times are noise."""


@dataclass(frozen=True)
class UnitCost:
    """One unit.

    Attributes:
        unit: the part.
        alone: what the model is worth with this part in INT8 and all others in FP32.
        saved_ms: milliseconds a batch that the whole plan loses when this part goes back to FP32.
        group_ms: median of `saved_ms` over the layers; the parts of a group have the same shapes, so their times
            differ by noise alone.
        least_ms: what counts in the price where `group_ms` is less.
    """

    unit: Unit
    alone: Judged
    saved_ms: float
    group_ms: float
    least_ms: float

    @property
    def price(self) -> float:
        """Noise at the logits that is paid for a millisecond."""
        return self.alone.noise / max(self.group_ms, self.least_ms)


@dataclass(frozen=True)
class Sensitivity:
    """All units of a plan.

    Attributes:
        plan: the plan whose parts were looked at.
        whole: what the model is worth with the whole plan in INT8.
        whole_ms: milliseconds a batch of the whole plan.
        costs: the units, by layer and group.
    """

    plan: PrecisionPlan
    whole: Judged
    whole_ms: float
    costs: tuple[UnitCost, ...]

    @property
    def ranked(self) -> list[UnitCost]:
        """The units by price, the dearest first."""
        return sorted(self.costs, key=lambda cost: (-cost.price, cost.unit.name))

    def as_json(self) -> dict[str, Any]:
        """The units as JSON values; `rank` 1 is the dearest."""
        ranks = {cost.unit.name: rank for rank, cost in enumerate(self.ranked, 1)}
        return {
            "whole": asdict(self.whole),
            "whole_ms": self.whole_ms,
            "units": [
                {
                    "name": cost.unit.name,
                    "layer": cost.unit.layer,
                    "group": cost.unit.group,
                    "names": list(cost.unit.names),
                    "alone": asdict(cost.alone),
                    "saved_ms": cost.saved_ms,
                    "group_ms": cost.group_ms,
                    "rank": ranks[cost.unit.name],
                }
                for cost in self.costs
            ],
        }


def measure(
    judge: Judge, clock: Clock, plan: PrecisionPlan, units: Sequence[Unit], progress: Progress | None = None
) -> Sensitivity:
    """Judges every unit alone in INT8, and times the plan without each.

    Costs are measured one unit at a time in INT8: in the whole plan, errors of many parts hide each other. What INT8
    wins is measured the other way round, as what the whole plan loses without it, because a part in INT8 between
    float neighbours also pays for conversions that the whole plan does not have.

    Raises:
        BackendError: a plan cannot be compiled for timing.
    """
    trials = [only(plan, unit, units) for unit in units]
    judge.expect([plan, *trials])
    whole = judge.judge(plan)
    alone = []
    for done, trial in enumerate(trials):
        alone.append(judge.judge(trial))
        if progress is not None:
            progress(done + 1, 2 * len(units))
    first, timed = clock.times(plan, [without(plan, [unit]) for unit in units], ROUNDS)
    if progress is not None:
        progress(2 * len(units), 2 * len(units))
    saved = [first.ms * (1 / own.ratio - 1) for own in timed]
    groups: dict[str, list[float]] = {}
    for unit, ms in zip(units, saved, strict=True):
        groups.setdefault(unit.group, []).append(ms)
    costs = (
        UnitCost(unit, judged, ms, median(groups[unit.group]), LEAST_SHARE * first.ms)
        for unit, judged, ms in zip(units, alone, saved, strict=True)
    )
    return Sensitivity(plan, whole, first.ms, tuple(costs))

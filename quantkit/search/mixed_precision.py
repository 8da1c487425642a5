"""Which units to leave in float: the fastest plan that keeps the accuracy, or the most accurate that is fast enough.

Both walk along one order: units by the noise they bring into the logits for each millisecond they save, the dearest
first (a greedy fraction rule, as for a knapsack). Noise ranks the units, because it hardly depends on which rows were
drawn; the task's metric decides, because it is what the user asked about.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from quantkit.network.precision import PrecisionPlan
from quantkit.search.judge import Judged
from quantkit.search.sensitivity import Sensitivity, UnitCost
from quantkit.search.units import Unit, without

Judging = Callable[[PrecisionPlan], Judged]
Speed = Callable[[PrecisionPlan], float]
"""Plan -> how many times faster than FP32, measured."""


@dataclass(frozen=True)
class Mixed:
    """What a search ended with.

    Attributes:
        plan: the plan; None when no plan with INT8 in it does.
        judged: what it is worth; None without a plan.
        reasons: unit left in float -> why, in words.
    """

    plan: PrecisionPlan | None
    judged: Judged | None
    reasons: dict[str, str]


def keep_accuracy(sensitivity: Sensitivity, judge: Judging, max_drop: float) -> Mixed:
    """Leaves as little in float as keeps the drop within `max_drop` points.

    First the shortest beginning of the order that is enough, by bisection (every beginning that is accepted was
    measured; only those that are skipped rest on the order). Then each unit of it goes back to INT8, the one that saves
    most first, and stays there if the drop is still within the limit.
    """
    plan, order = sensitivity.plan, sensitivity.ranked
    if sensitivity.whole.keeps(max_drop):
        return Mixed(plan, sensitivity.whole, {})
    found: dict[int, Judged] = {}
    low, high = 0, len(order)
    while high - low > 1:
        middle = (low + high) // 2
        found[middle] = judge(without(plan, _units(order[:middle])))
        low, high = (low, middle) if found[middle].keeps(max_drop) else (middle, high)
    if high == len(order):
        return Mixed(None, None, {})
    kept = list(order[:high])
    judged = found[high]
    reasons: dict[str, str] = {}
    for cost in sorted(kept, key=lambda cost: (-cost.group_ms, cost.unit.name)):
        fewer = [other for other in kept if other is not cost]
        trial = judge(without(plan, _units(fewer))) if fewer else sensitivity.whole
        if trial.keeps(max_drop):
            kept, judged = fewer, trial
        else:
            reasons[cost.unit.name] = (
                f"with it in INT8 as well the drop is {_drop(trial)}, and {max_drop:g} is allowed; "
                f"alone in INT8 it leaves {cost.alone.sqnr_db:.1f} dB and saves {cost.group_ms:.2f} ms"
            )
    return Mixed(without(plan, _units(kept)), judged, reasons)


def keep_speed(
    sensitivity: Sensitivity, judge: Judging, speed: Speed, min_speedup: float, whole_speedup: float
) -> Mixed:
    """Leaves as much in float as a speed-up of `min_speedup` over FP32 allows, the dearest units first.

    How many is foretold from the milliseconds that each saves, then measured, and lowered until it holds.

    Args:
        sensitivity: of the fastest plan.
        judge: plan -> what it is worth.
        speed: plan -> measured speed-up over FP32.
        min_speedup: what must be reached.
        whole_speedup: measured speed-up of the fastest plan.
    """
    plan, order = sensitivity.plan, sensitivity.ranked
    if whole_speedup < min_speedup:
        return Mixed(None, None, {})
    budget_ms = sensitivity.whole_ms * (whole_speedup / min_speedup - 1)
    count, spent = 0, 0.0
    while count < len(order) - 1 and spent + max(order[count].group_ms, 0.0) <= budget_ms:
        spent += max(order[count].group_ms, 0.0)
        count += 1
    while count and speed(without(plan, _units(order[:count]))) < min_speedup:
        count -= 1
    kept = order[:count]
    if not kept:
        return Mixed(plan, sensitivity.whole, {})
    reasons = {
        cost.unit.name: f"number {rank} of {len(order)} in noise for a millisecond, with "
        f"{cost.alone.sqnr_db:.1f} dB alone in INT8 for {cost.group_ms:.2f} ms"
        for rank, cost in enumerate(kept, 1)
    }
    mixed = without(plan, _units(kept))
    return Mixed(mixed, judge(mixed), reasons)


def _units(costs: Sequence[UnitCost]) -> list[Unit]:
    return [cost.unit for cost in costs]


def _drop(judged: Judged) -> str:
    """A drop with its standard error, in words."""
    return judged.failed or f"{judged.drop:.2f} ± {judged.drop_stderr:.2f} points"

"""`quantkit tune`: the fastest plan that keeps the accuracy, or the most accurate that is fast enough.

Decided on train rows; then the plan is run as `quantkit run --plan` would run it, which evaluates it once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from quantkit.errors import InputError
from quantkit.network.plan_file import PlanFile, plan_to_json
from quantkit.network.precision import PrecisionPlan
from quantkit.pipeline.run import plan_of, report, run_settings
from quantkit.pipeline.search import Bench, head_of, out_folder, prepare
from quantkit.pipeline.settings import Settings
from quantkit.pipeline.sharing import cluster_for
from quantkit.report.readme import write_readme
from quantkit.report.record import Record
from quantkit.search.clock import Timed
from quantkit.search.judge import Judged
from quantkit.search.mixed_precision import keep_accuracy, keep_speed
from quantkit.search.sensitivity import Sensitivity
from quantkit.types import Watcher

PLACEMENTS = ("gemm+residual+mha", "gemm+mha", "gemm+residual", "gemm")
"""What a search starts from. Other placements are these with units left in float."""


@dataclass(frozen=True)
class Goal:
    """What is asked for: one of the two.

    Args:
        max_drop: points of the task's main metric that INT8 may cost.
        min_speedup: times FP32's speed that INT8 must reach.

    Raises:
        InputError: both, neither, or a number that cannot be met or says nothing.
    """

    max_drop: float | None = None
    min_speedup: float | None = None

    def __post_init__(self) -> None:
        if (self.max_drop is None) == (self.min_speedup is None):
            raise InputError("A search has one goal.", "Give --max-drop or --min-speedup, not both.")
        if self.max_drop is not None and not 0 <= self.max_drop <= 100:
            raise InputError(f"--max-drop is {self.max_drop:g}; expected points from 0 to 100, such as 0.5.")
        if self.min_speedup is not None and not 0 < self.min_speedup <= 1000:
            raise InputError(f"--min-speedup is {self.min_speedup:g}; expected a factor above 0, such as 2.")


@dataclass(frozen=True)
class Candidate:
    """A plan that was considered as a whole."""

    plan: PrecisionPlan
    timed: Timed
    judged: Judged | None = None
    kept: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """JSON values; `judged` is null where speed alone ruled the plan out."""
        return {
            "plan": plan_to_json(self.plan),
            "kept_in_float": list(self.kept),
            "ms": self.timed.ms,
            "speedup": self.timed.ratio,
            "speedup_stderr": self.timed.ratio_stderr,
            "judged": None if self.judged is None else asdict(self.judged),
        }


@dataclass
class Search:
    """What was found, and on the way."""

    fp32_ms: float
    candidates: list[Candidate] = field(default_factory=list)
    sensitivity: Sensitivity | None = None
    chosen: Candidate | None = None
    reasons: dict[str, str] = field(default_factory=dict)


def tune(settings: Settings, goal: Goal, watcher: Watcher) -> Record:
    """The whole job: search, plan file, then one run of the plan on the evaluation rows.

    With an interrupted search every finished candidate is in the cache, and the same command goes on from there.

    Returns:
        The record; it has no engines when no plan meets the goal.
    """
    if not settings.wants_int8:
        raise InputError("A search for an INT8 plan needs INT8 among its engines.", "Add int8 to --precision.")
    settings = replace(settings, out=out_folder(settings), plan=None)
    with cluster_for(settings) as workers:
        return search(prepare(settings, watcher, workers), goal)


def search(bench: Bench, goal: Goal) -> Record:
    """`tune`, with everything at hand."""
    settings, watcher = bench.workspace.settings, bench.workspace.watcher
    folder = out_folder(settings)
    found = by_accuracy(bench, goal.max_drop) if goal.max_drop is not None else by_speed(bench, goal)
    head = head_of(bench, "tune")
    told = search_record(found, goal, head["rows"])
    words = search_verdict(found, goal, head["rows"])
    if found.chosen is None:
        record = Record(head | {"engines": [], "search": told, "verdict": words})
        record.save(folder / "record.json")
        return record
    path = folder / "plan.json"
    summary = {"goal": told["goal"], "rows": told["rows"], "chosen": told["chosen"]}
    PlanFile(found.chosen.plan, bench.workspace.network.sha256, found.reasons, summary).save(path)
    run = run_settings(replace(settings, plan=path), watcher, cluster=bench.workspace.cluster)
    whole = run.data["manifest"] | {"job": "tune", "tuning": head["manifest"]["tuning"]}
    record = Record(run.data | {"search": told, "verdict": [*words, *run.data["verdict"]], "manifest": whole})
    record.save(folder / "record.json")
    write_readme(record.data, folder)
    report(folder, watcher)
    return record


def by_accuracy(bench: Bench, max_drop: float) -> Search:
    """The fastest plan whose drop, with one standard error, is at most `max_drop` points.

    Whole placements are tried from the fastest on until one keeps the accuracy. Where that is not the fastest, units of
    the fastest go back to float until it keeps the accuracy as well, and the faster of the two is taken.
    """
    search, ranked = timed_placements(bench)
    good: list[Candidate] = []
    with bench.workspace.watcher.stage("judge placements") as progress:
        for done, candidate in enumerate(ranked, 1):
            if good and not candidate.timed.as_fast_as(good[0].timed):
                search.candidates.append(candidate)
            else:
                judged = bench.judge.judge(candidate.plan)
                search.candidates.append(replace(candidate, judged=judged))
                if judged.keeps(max_drop):
                    good.append(search.candidates[-1])
            progress(done, len(ranked))
    fastest = search.candidates[0]
    best = max(good, key=lambda one: one.judged.sqnr_db if one.judged else 0.0) if good else None
    if best is not None and best.timed.as_fast_as(fastest.timed):
        search.chosen = best
        return search
    search.sensitivity = bench.sensitivity(fastest.plan)
    whole = fastest.judged or bench.judge.judge(fastest.plan)
    with bench.workspace.watcher.stage("parts back to float"):
        mixed = keep_accuracy(replace(search.sensitivity, whole=whole), bench.judge.judge, max_drop)
    if mixed.plan is None:
        search.chosen = best
        return search
    rivals = [mixed.plan] if best is None else [mixed.plan, best.plan]
    _, timed = bench.clock.times(None, rivals)
    candidate = Candidate(mixed.plan, timed[0], mixed.judged, tuple(mixed.reasons))
    search.candidates.append(candidate)
    if best is None or timed[0].ratio > timed[1].ratio:
        search.chosen, search.reasons = candidate, mixed.reasons
    else:
        search.chosen = best
    return search


def by_speed(bench: Bench, goal: Goal) -> Search:
    """The plan with the least noise in the logits among those that reach the speed-up."""
    wanted = goal.min_speedup or 1.0
    search, ranked = timed_placements(bench)
    with bench.workspace.watcher.stage("judge placements"):
        good = [replace(one, judged=bench.judge.judge(one.plan)) for one in ranked if one.timed.ratio >= wanted]
    search.candidates = [*good, *ranked[len(good) :]]
    if not good:
        return search
    fastest = good[0]
    search.sensitivity = bench.sensitivity(fastest.plan)

    def speed(plan: PrecisionPlan) -> float:
        return bench.clock.times(None, [plan])[1][0].ratio

    whole = replace(search.sensitivity, whole=fastest.judged or search.sensitivity.whole)
    with bench.workspace.watcher.stage("parts back to float"):
        mixed = keep_speed(whole, bench.judge.judge, speed, wanted, fastest.timed.ratio)
    if mixed.plan is not None and mixed.reasons:
        _, [timed] = bench.clock.times(None, [mixed.plan])
        good.append(Candidate(mixed.plan, timed, mixed.judged, tuple(mixed.reasons)))
        search.candidates.append(good[-1])
    search.chosen = max(good, key=lambda one: one.judged.sqnr_db if one.judged else 0.0)
    if search.chosen.kept:
        search.reasons = mixed.reasons
    return search


def timed_placements(bench: Bench) -> tuple[Search, list[Candidate]]:
    """Every placement timed beside FP32, the fastest first."""
    plan = plan_of(bench.workspace.settings, bench.workspace.backend)
    plans = [replace(plan, mode=mode) for mode in PLACEMENTS]
    with bench.workspace.watcher.stage("time placements"):
        fp32, timed = bench.clock.times(None, plans)
    candidates = [Candidate(*pair) for pair in zip(plans, timed, strict=True)]
    return Search(fp32.ms), sorted(candidates, key=lambda candidate: -candidate.timed.ratio)


def search_record(found: Search, goal: Goal, rows: dict[str, Any]) -> dict[str, Any]:
    """The record's part on the search."""
    return {
        "goal": {name: value for name, value in asdict(goal).items() if value is not None},
        "rows": rows,
        "fp32_ms": found.fp32_ms,
        "candidates": [candidate.as_json() for candidate in found.candidates],
        "sensitivity": None if found.sensitivity is None else found.sensitivity.as_json(),
        "chosen": None if found.chosen is None else found.chosen.as_json(),
        "reasons": found.reasons,
    }


def search_verdict(found: Search, goal: Goal, rows: dict[str, Any]) -> list[str]:
    """What was decided and why, in words."""
    where = f"{rows['rows']} train rows that neither calibrate nor are evaluated"
    best = found.chosen
    if best is None or best.judged is None:
        return [nothing_found(found.candidates, goal, where)]
    judged = best.judged
    drop = f"{judged.metric} {-judged.drop:+.2f} ± {judged.drop_stderr:.2f} points, {judged.sqnr_db:.1f} dB"
    lines = [f"Chosen on {where}: {best.plan.mode}, {drop}, {best.timed.ratio:.2f} times FP32's speed."]
    if goal.max_drop is not None and judged.rows and not judged.drop_stderr and judged.agreement < 1:
        lines.append("The rows cannot tell how sure this drop is.")
    lines += [
        f"{one.plan.mode} is faster ({one.timed.ratio:.2f}) and costs too much: {-one.judged.drop:+.2f} ± "
        f"{one.judged.drop_stderr:.2f} points, and {goal.max_drop:g} may be lost."
        for one in found.candidates
        if one.judged is not None
        and goal.max_drop is not None
        and one.timed.ratio > best.timed.ratio
        and not one.judged.keeps(goal.max_drop)
    ]
    if not best.kept:
        lines.append("Nothing that this placement covers had to stay in float.")
    lines += [f"{part} stays in float: {why}." for part, why in found.reasons.items()]
    if best.timed.ratio < 1:
        lines.append("No INT8 plan that meets the goal is faster than FP32 here.")
    return lines


def nothing_found(candidates: Sequence[Candidate], goal: Goal, where: str) -> str:
    """Why there is no plan, and what to do."""
    if goal.min_speedup is not None:
        fastest = max(candidates, key=lambda one: one.timed.ratio)
        return (
            f"No plan reaches {goal.min_speedup:g} times FP32's speed: the fastest, {fastest.plan.mode}, reaches "
            f"{fastest.timed.ratio:.2f}. Ask for less with --min-speedup."
        )
    judged = [one.judged for one in candidates if one.judged is not None and not one.judged.failed]
    least = min((one.drop for one in judged), default=100.0)
    return (
        f"No INT8 plan keeps the drop within {goal.max_drop:g} points on {where}; the least that was measured is "
        f"{least:.2f}. Allow more with --max-drop, give more rows with --tune-rows, or stay with FP32."
    )

"""What can be found out about an engine by loading and running it: layers, their times, the kernels that run.

It happens in the building process, or in a process of its own for plans from elsewhere; the result is JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from quantkit.backends.trt.audit import Audit, examine
from quantkit.backends.trt.cuda import Device
from quantkit.backends.trt.execution import Execution
from quantkit.backends.trt.options import BuildOptions, Outcome
from quantkit.backends.trt.plan import LoadedPlan, example_feed
from quantkit.backends.trt.tracing import trace
from quantkit.errors import BackendError

RUNS = 10


@dataclass(frozen=True)
class Inspection:
    """What was found out; JSON values.

    Attributes:
        information: the engine inspector's JSON.
        times: layer -> milliseconds, the mean of some inferences.
        kernels: name and milliseconds of every kernel of one inference, in order; empty when they cannot be seen.
        notes: what could not be found out, one sentence each.
    """

    information: dict[str, Any] = field(default_factory=dict)
    times: dict[str, float] = field(default_factory=dict)
    kernels: list[tuple[str, float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The inspection as JSON values."""
        return vars(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Inspection:
        """The inverse of `to_json`; what is missing or odd is left empty."""
        kernels = [(str(name), float(ms)) for name, ms in value.get("kernels", ())]
        return cls(
            dict(value.get("information", {})), dict(value.get("times", {})), kernels, list(value.get("notes", ()))
        )

    def audit(self, asked: BuildOptions | None, outcome: Outcome | None = None) -> Audit:
        """The audit that follows from it."""
        return examine(
            self.information,
            self.times,
            precision=asked.precision if asked else "",
            ranges=asked.ranges if asked else "",
            scales_used=outcome.used if outcome else (),
            scales_missing=outcome.missing if outcome else (),
            kernels=self.kernels,
        )


def inspect_plan(data: bytes, owner: Device) -> Inspection:
    """Loads an engine, runs it some times at the shapes that it was tuned for, and closes it.

    Raises:
        BackendError: it does not load or run.
    """
    plan = LoadedPlan(data, owner)
    try:
        information = plan.inspect()
        kernels, notes = kernels_of(plan, owner)
        return Inspection(information, layer_times(plan, owner), kernels, notes)
    finally:
        plan.close()


def kernels_of(plan: LoadedPlan, owner: Device) -> tuple[list[tuple[str, float]], list[str]]:
    """Every kernel of one inference, its time the mean over some; and why there is none, where there is none."""
    execution = Execution(plan, owner)
    try:
        feed = example_feed(plan)
        for _ in range(RUNS):
            execution.run(feed)

        def work() -> None:
            for _ in range(RUNS):
                execution.run(feed)

        found = trace(work)
    except BackendError as error:
        return [], [error.message]
    finally:
        execution.close()
    count, odd = divmod(len(found), RUNS)
    if odd or not count:
        return [], [f"{len(found)} kernels of {RUNS} inferences were recorded, which cannot be told apart."]
    return [
        (found[i].name, round(sum(found[run * count + i].ms for run in range(RUNS)) / RUNS, 6)) for i in range(count)
    ], []


def layer_times(plan: LoadedPlan, owner: Device) -> dict[str, float]:
    """Milliseconds of each layer, by TensorRT's profiler."""
    execution = Execution(plan, owner)
    try:
        feed = example_feed(plan)
        execution.run(feed)
        return execution.profile_layers(feed, RUNS)
    finally:
        execution.close()

"""From a loaded engine to its audit: the inspector's JSON and a profile of its layers."""

from __future__ import annotations

from quantkit.backends.trt.audit import Audit, examine
from quantkit.backends.trt.cuda import Device
from quantkit.backends.trt.execution import Execution
from quantkit.backends.trt.options import BuildOptions, Outcome
from quantkit.backends.trt.plan import LoadedPlan, example_feed

PROFILE_RUNS = 10


def audit_of(
    plan: LoadedPlan, owner: Device, asked: BuildOptions | None, outcome: Outcome, *, timed: bool = True
) -> Audit:
    """What the engine computes; with `timed`, also where its time goes (a context of its own runs it a few times).

    Raises:
        BackendError: the engine does not run.
    """
    times = layer_times(plan, owner) if timed else None
    return examine(
        plan.inspect(),
        times,
        precision=asked.precision if asked else "",
        ranges=asked.ranges if asked else "",
        scales_used=outcome.used,
        scales_missing=outcome.missing,
    )


def layer_times(plan: LoadedPlan, owner: Device, runs: int = PROFILE_RUNS) -> dict[str, float]:
    """Milliseconds of each layer at the shapes that the engine was tuned for."""
    execution = Execution(plan, owner)
    try:
        feed = example_feed(plan)
        execution.run(feed)
        return execution.profile_layers(feed, runs)
    finally:
        execution.close()

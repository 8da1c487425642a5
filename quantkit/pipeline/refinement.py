"""From the calibration sample to a refinement: one pass for the moments, then edge by edge; kept like histograms."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.calibrate import make_calibrator
from quantkit.collect.histogram import HistogramAccumulator
from quantkit.collect.moments import Moments, MomentsAccumulator
from quantkit.data.batches import TokenBatches
from quantkit.errors import QuantkitError
from quantkit.evaluate.accuracy import inputs_for
from quantkit.files import cache_dir, sha256_json, unfinished_name
from quantkit.network.precision import PrecisionPlan
from quantkit.pipeline.calibration import key_of, provenance_of
from quantkit.pipeline.collection import batches_of, kinds_of
from quantkit.pipeline.moments import collect_moments_within
from quantkit.pipeline.settings import threads_of
from quantkit.pipeline.workspace import Workspace
from quantkit.tables.table import Entry

if TYPE_CHECKING:
    from quantkit.network.refinement import Refinement

RULES = 8
"""Part of every key in the cache; raised when the same settings come to give another refinement."""


@dataclass(frozen=True)
class Refined:
    """A refinement and how it came about; `record` is its part of the run's record. None: nothing was refined."""

    refinement: Refinement | None
    record: dict[str, Any]


def refine(workspace: Workspace, plan: PrecisionPlan) -> Refined:
    """The refinement that the settings ask for, from the cache when it has it; its data is the calibration sample.

    Raises:
        CalibrationError: NaN or Inf in an activation.
    """
    from quantkit.network.refine import observed_tensors
    from quantkit.network.refinement_file import load_refinement, save_refinement

    steps, why = steps_of(workspace)
    if not steps:
        return Refined(None, {"steps": [], "reason": why})
    names = observed_tensors(workspace.network.index)
    if not names:
        return Refined(None, {"steps": [], "reason": "no weight product of the encoder has a bias of its own"})
    path = refinement_path(workspace, plan, steps)
    if path.is_file():
        try:
            refinement, seconds = load_refinement(path)
        except QuantkitError as error:
            workspace.watcher.say(f"The cached refinement is not used: {error.message}")
        else:
            return Refined(refinement, record_of(refinement, path, seconds, reused=True))
    started = time.perf_counter()
    if workspace.settings.memory:
        refinement = refine_within(workspace, plan, steps, names)
    else:
        moments = collect_moments(workspace, batches_of(workspace), names)
        refinement = refine_with(workspace, plan, steps, moments)
    seconds = round(time.perf_counter() - started, 3)
    save_refinement(path, refinement, seconds)
    return Refined(refinement, record_of(refinement, path, seconds, reused=False))


def refine_within(workspace: Workspace, plan: PrecisionPlan, steps: tuple[str, ...], names: list[str]) -> Refinement:
    """The refinement, within the limit of the settings: moments in several passes, kept on disk between."""
    folder = cache_dir() / "unfinished"
    folder.mkdir(parents=True, exist_ok=True)
    prefix, ending = unfinished_name("moments")
    with tempfile.TemporaryDirectory(prefix=prefix, suffix=ending, dir=folder) as place:
        moments = collect_moments_within(workspace, batches_of(workspace), names, Path(place))
        return refine_with(workspace, plan, steps, moments)


def refine_with(
    workspace: Workspace, plan: PrecisionPlan, steps: tuple[str, ...], moments: Mapping[str, Moments]
) -> Refinement:
    """The refinement by some steps from moments that were collected before."""
    from quantkit.network.refine import refine as refine_network

    with workspace.watcher.stage("refine ranges and weights") as progress:
        return refine_network(
            workspace.network.index, moments, plan, steps, _Ranges(workspace).range_of, progress=progress
        )


def steps_of(workspace: Workspace) -> tuple[tuple[str, ...], str]:
    """The steps to make; none, with the reason, where ranges are given or the backend places INT8 by itself."""
    from quantkit.network.refine import parse_steps

    settings = workspace.settings
    if settings.refine:
        steps = parse_steps(settings.refine)
    elif settings.table is not None:
        return (), "a table was given: its ranges are used as they are (--refine all overrides)"
    else:
        steps = parse_steps("all")
    if steps and workspace.backend.places_int8:
        return (), f"{workspace.backend.name} places and rounds INT8 itself with these options"
    return steps, "" if steps else "not asked for"


def refinement_path(workspace: Workspace, plan: PrecisionPlan, steps: tuple[str, ...]) -> Path:
    """Where the cache keeps a refinement."""
    settings = workspace.settings
    question = {
        "rules": RULES,
        "data": key_of(provenance_of(workspace, batches_of(workspace))),
        "steps": list(steps),
        "symmetric": plan.symmetric,
        "residual": plan.places.residual,
        # The method's ranges enter where the range step does not replace them.
        "method": None if "range" in steps else [settings.method, dict(settings.parameters)],
    }
    return cache_dir() / "refinements" / f"{sha256_json(question)[:24]}.npz"


def record_of(refinement: Refinement, path: Path, seconds: float, *, reused: bool) -> dict[str, Any]:
    """The record's part on the refinement."""
    return {
        "steps": list(refinement.steps),
        "seconds": seconds,
        "reused": reused,
        "file": str(path),
        "edges": [dict(edge) for edge in refinement.edges],
    }


def collect_moments(workspace: Workspace, batches: TokenBatches, names: list[str]) -> dict[str, Moments]:
    """Moments of some activations over the tokens of all batches; padding is left out.

    Raises:
        CalibrationError: NaN or Inf in an activation.
    """
    accumulators = {name: MomentsAccumulator() for name in names}
    done = 0
    with workspace.watcher.stage("collect moments") as progress:
        for shape, feeds in groupby(batches, key=lambda feed: feed["input_ids"].shape):
            fixed = workspace.network.fixed(*shape)
            with workspace.backend.tap(fixed, names, threads=threads_of(workspace.settings)) as runner:
                for feed in feeds:
                    tensors = runner.infer(inputs_for(runner, feed))
                    for name, accumulator in accumulators.items():
                        accumulator.update(tensors[name], feed["attention_mask"] != 0)
                    done += 1
                    progress(done, len(batches))
    return {name: accumulator.moments() for name, accumulator in accumulators.items()}


class _Ranges:
    """Ranges of changed activations by the run's calibration method, without the range step.

    The histogram is that of the rows that were kept, completed by the extremes of all rows.
    """

    def __init__(self, workspace: Workspace) -> None:
        settings = workspace.settings
        self._calibrator = make_calibrator(settings.method, **settings.parameters)
        self._kinds = kinds_of(workspace).kinds

    def range_of(self, name: str, moments: Moments) -> Entry:
        """The entry of one activation."""
        from quantkit.calibrate import calibrate_histograms

        accumulator = HistogramAccumulator("pow2")
        for values in (moments.sample, moments.low, moments.high):
            accumulator.update(values)
        histogram = accumulator.snapshot()
        found = calibrate_histograms({name: histogram}, self._calibrator, kinds={name: self._kinds.get(name, "")})[name]
        return Entry(found.scale, histogram.minimum, histogram.maximum, found.method, found.reason)

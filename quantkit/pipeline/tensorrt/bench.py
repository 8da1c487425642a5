"""`quantkit bench --backend tensorrt`: engines timed by phases, in turn; built for it, or read from plan files."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.backends.trt.engine import TrtEngine
from quantkit.backends.trt.options import ShapeRange
from quantkit.backends.trt.plan import example_feed
from quantkit.backends.trt.timing import Timing, TimingOptions, ratio, time_phases
from quantkit.errors import InputError
from quantkit.evaluate.accuracy import inputs_for
from quantkit.files import check_writable, write_json
from quantkit.pipeline.calibration import calibrate
from quantkit.pipeline.run import LATENCY_BATCHES, Trial, check_early, compile_all, evaluation_batches, save
from quantkit.pipeline.settings import Settings
from quantkit.pipeline.workspace import Workspace
from quantkit.report.record import SCHEMA, context
from quantkit.types import FeedDict, Watcher


def bench_phases(settings: Settings, options: TimingOptions, watcher: Watcher) -> dict[str, Any]:
    """A record whose engine rows carry "phases", and "ratio" against the first engine; JSON values.

    Raises:
        QuantkitError: something that concerns every engine; what concerns one is that engine's row.
    """
    workspace = Workspace(settings, watcher)
    check_early(workspace)
    evaluation = evaluation_batches(workspace)
    calibrated = calibrate(workspace) if settings.wants_int8 else None
    trials = [Trial(precision) for precision in settings.precisions]
    try:
        compile_all(workspace, trials, calibrated)
        record = save(workspace, trials, calibrated, evaluation)
        alive = [(i, trial.engine) for i, trial in enumerate(trials) if isinstance(trial.engine, TrtEngine)]
        if alive:
            feeds = [inputs_for(alive[0][1], feed) for feed in islice(evaluation, LATENCY_BATCHES)]
            with watcher.stage("time engines") as progress:
                timings = time_phases([engine for _, engine in alive], feeds, options, progress)
            for (i, engine), timing in zip(alive, timings, strict=True):
                record.data["engines"][i] |= measured(timing, timings[0])
                if engine.graph_refusal:
                    record.data["engines"][i]["notes"].append(engine.graph_refusal)
        if settings.out is not None:
            record.save(settings.out / "record.json")
        return record.data
    finally:
        for trial in trials:
            if trial.engine is not None:
                trial.engine.close()


def bench_plans(
    paths: Sequence[Path],
    options: TimingOptions,
    watcher: Watcher,
    *,
    shape: str = "",
    graphs: bool = False,
    trust: bool = False,
    out: Path | None = None,
) -> dict[str, Any]:
    """Times engines from plan files in turn, on tokens of one kind; JSON values like those of `bench_phases`.

    Args:
        paths: the plans; "ratio" is against the first.
        options: how long to measure.
        watcher: who is told how it goes.
        shape: "BATCHxSEQUENCE" for engines whose shapes may change; "" takes the shape each was tuned for.
        graphs: run engines through CUDA graphs.
        trust: load plans that were not built by this user on this machine.
        out: folder for record.json.

    Raises:
        InputError: `shape` is none, or the engines' rows would differ.
        StorageError, BackendError: a plan cannot be had (see `TensorRTBackend.load`), or takes no such shape.
    """
    from quantkit.backends.trt.backend import TensorRTBackend

    if out is not None:
        check_writable(out)
    wanted = ShapeRange.parse(shape).opt if shape else None
    backend = TensorRTBackend(graphs=graphs)
    with ExitStack() as stack:
        engines = [stack.enter_context(backend.load(path, trust=trust)) for path in paths]
        feed = common_feed(engines, wanted)
        with watcher.stage("time engines") as progress:
            timings = time_phases(engines, [feed], options, progress)
        rows = []
        for path, engine, timing in zip(paths, engines, timings, strict=True):
            row: dict[str, Any] = {
                "precision": engine.precision,
                "backend": backend.name,
                "status": "ok",
                "compute": engine.compute,
                "engine": str(path),
                "size_bytes": engine.size_bytes,
                "notes": [*engine.notes, *([engine.graph_refusal] if engine.graph_refusal else [])],
            }
            rows.append(row | measured(timing, timings[0]) | {"details": engine.details})
    batch = len(next(iter(feed.values())))
    shapes = {name: list(array.shape) for name, array in feed.items()}
    record = {"schema": SCHEMA, "context": context({"engines": [str(path) for path in paths]})}
    record |= {"batch": batch, "shapes": shapes, "engines": rows}
    if out is not None:
        write_json(out / "record.json", record)
    return record


def common_feed(engines: Sequence[TrtEngine], wanted: tuple[int, int] | None) -> FeedDict:
    """One feed that all the engines take: ones for tokens and masks, of the wanted shape or of the first's tuning.

    Raises:
        InputError: no engine, or they are tuned for different shapes and none was named.
        BackendError: an engine has no such input, or takes no such shape.
    """
    if not engines:
        raise InputError("There is no engine to time.", "Name plan files with --engine.")
    feeds = []
    for engine in engines:
        feed = example_feed(engine.plan)
        if wanted is not None:
            feed = {name: np.ones(wanted, array.dtype) if array.ndim == 2 else array for name, array in feed.items()}
            engine.plan.profile_for({name: array.shape for name, array in feed.items()})
        feeds.append(feed)
    shapes = [{name: array.shape for name, array in feed.items()} for feed in feeds]
    if any(own != shapes[0] for own in shapes):
        told = "; ".join(str(next(iter(own.values()))) for own in shapes)
        raise InputError(
            f"The engines take different inputs, or are tuned for different shapes: {told}.",
            "Name one shape that all of them take, for example --shapes 16x64.",
        )
    return feeds[0]


def measured(timing: Timing, first: Timing) -> dict[str, Any]:
    """The part of an engine's row that timing gives; ratios are against `first`."""
    phases = timing.as_json()
    return {
        "phases": phases,
        "ratio": {name: round(ratio(timing, first, name), 4) for name in ("compute", "host")},
        "latency_ms": {name: phases["host_ms"][name] for name in ("median", "p90", "p99")},
        "throughput_per_s": phases["throughput_per_s"],
        "speedup": round(ratio(timing, first, "host"), 4),
    }

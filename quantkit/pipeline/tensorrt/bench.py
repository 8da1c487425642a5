"""`quantkit bench --backend tensorrt`: engines timed by phases, in turn."""

from __future__ import annotations

from itertools import islice
from typing import Any

from quantkit.backends.trt.engine import TrtEngine
from quantkit.backends.trt.timing import TimingOptions, ratio, time_phases
from quantkit.evaluate.accuracy import inputs_for
from quantkit.pipeline.calibration import calibrate
from quantkit.pipeline.run import LATENCY_BATCHES, Trial, check_early, compile_all, evaluation_batches, save
from quantkit.pipeline.settings import Settings
from quantkit.pipeline.workspace import Workspace
from quantkit.types import Watcher


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
                phases = timing.as_json()
                record.data["engines"][i] |= {
                    "phases": phases,
                    "ratio": {name: round(ratio(timing, timings[0], name), 4) for name in ("compute", "host")},
                    "latency_ms": {name: phases["host_ms"][name] for name in ("median", "p90", "p99")},
                    "throughput_per_s": phases["throughput_per_s"],
                    "speedup": round(ratio(timing, timings[0], "host"), 4),
                }
                if engine.graph_refusal:
                    record.data["engines"][i]["notes"].append(engine.graph_refusal)
        if settings.out is not None:
            record.save(settings.out / "record.json")
        return record.data
    finally:
        for trial in trials:
            if trial.engine is not None:
                trial.engine.close()

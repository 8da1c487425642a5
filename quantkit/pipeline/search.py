"""Sensitivity and mixed precision: the rows that decide, the judge and the clock for them, and the records.

No evaluation row takes part in a decision: the rows are drawn from the train split, apart from the calibration sample,
and rows whose text also stands in the evaluation split are thrown out (which reads those texts, not their labels).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quantkit.data.batches import TokenBatches
from quantkit.data.examples import Examples
from quantkit.data.tokenize import encode
from quantkit.errors import InputError
from quantkit.files import cache_dir, sha256_json, write_json
from quantkit.network.plan_file import plan_to_json
from quantkit.network.precision import PrecisionPlan
from quantkit.pipeline.calibration import Calibrated
from quantkit.pipeline.candidates import build_candidate, candidate_identity
from quantkit.pipeline.manifest import labels_sha256, manifest
from quantkit.pipeline.memory import check_engines
from quantkit.pipeline.run import LATENCY_BATCHES, calibrate_and_refine, check_early, plan_of
from quantkit.pipeline.settings import Settings, answering_threads, threads_of
from quantkit.pipeline.shared_engines import SharedEngines
from quantkit.pipeline.sharing import cluster_for
from quantkit.pipeline.workspace import Workspace
from quantkit.report.record import SCHEMA, cpu_name, versions
from quantkit.search.clock import Clock
from quantkit.search.judge import Build, Judge
from quantkit.search.sensitivity import Sensitivity, measure
from quantkit.search.store import Store
from quantkit.search.units import Unit, units_of
from quantkit.types import Watcher

if TYPE_CHECKING:
    from onnx import ModelProto

    from quantkit.distributed.cluster import Cluster

SENSITIVITY_ROWS = 512
"""Rows that rank the units; noise needs fewer than the metric."""

TIMED = 5
"""Engines that a search times in turn: FP32 and four placements."""


@dataclass
class Bench:
    """What a search works with.

    Args:
        workspace: model, task, backend.
        calibrated: the table.
        rows: the rows that decide.
        judge: over all rows.
        ranker: over the first `SENSITIVITY_ROWS` of them.
        clock: over full batches of them.
    """

    workspace: Workspace
    calibrated: Calibrated
    rows: Examples
    judge: Judge
    ranker: Judge
    clock: Clock

    def units(self, plan: PrecisionPlan) -> list[Unit]:
        """The units of a plan.

        Raises:
            InputError: there are none.
        """
        found = units_of(self.workspace.network.proto, plan)
        if not found:
            raise InputError("The plan quantizes nothing, so there is nothing to measure.", "Shorten its skip list.")
        return found

    def sensitivity(self, plan: PrecisionPlan) -> Sensitivity:
        """What each unit of a plan costs and wins."""
        with self.workspace.watcher.stage("one part at a time") as progress:
            return measure(self.ranker, self.clock, plan, self.units(plan), progress)


def prepare(settings: Settings, watcher: Watcher, cluster: Cluster | None = None) -> Bench:
    """Calibrates, draws the rows that decide, and sets up judge and clock.

    Raises:
        InputError: the train rows have no labels, or the backend places INT8 itself.
    """
    workspace = Workspace(settings, watcher, cluster)
    check_early(workspace)
    if workspace.backend.places_int8:
        raise InputError(
            f"With these settings {settings.backend} places INT8 itself, so there is no plan to search.",
            "Use --backend openvino, or --ranges qdq.",
        )
    check_engines(workspace, TIMED)
    calibrated = calibrate_and_refine(workspace)
    rows = workspace.tuning
    if rows.labels is None:
        raise InputError(
            f"{rows.source} has no labels, and a search needs labelled rows that are not evaluated.",
            "Give a folder with a train split, or a labelled file with --calib-data.",
        )

    def builder(graph: ModelProto) -> Build:
        return lambda plan: graph if plan is None else build_candidate(workspace, graph, calibrated.table, plan).proto

    def store(own: int) -> Store:
        return Store(cache_dir() / "search", identity_of(workspace, calibrated, own))

    free = workspace.free_graph
    judged_build = builder(free or workspace.fixed_graph)
    shape = None if free is not None or workspace.backend.dynamic else (settings.batch, settings.seq_len)
    helpers = workspace.helpers
    engines = None if helpers is None else SharedEngines(workspace, helpers, calibrated.table, shape)
    own = answering_threads(settings)

    def judge(some: Examples) -> Judge:
        ordered, batches = batches_over(workspace, some)
        labels = np.asarray(ordered.labels)
        return Judge(judged_build, workspace.backend, batches, labels, workspace.task, store(own), own, engines)

    threads = threads_of(settings)
    encoded = encode(workspace.tokenizer, rows.head(LATENCY_BATCHES * settings.batch).texts, settings.seq_len)
    feeds = list(TokenBatches(encoded, settings.batch, settings.seq_len, fill="pad"))
    clock = Clock(builder(workspace.fixed_graph), workspace.backend, feeds, store(threads), threads)
    return Bench(workspace, calibrated, rows, judge(rows), judge(rows.head(SENSITIVITY_ROWS)), clock)


def batches_over(workspace: Workspace, rows: Examples) -> tuple[Examples, TokenBatches]:
    """Rows to be judged, and their batches.

    Where the graph has free shapes, rows are sorted by length and padded no further than their batch needs: padding
    changes no answer, and most sentences fill a small part of the run's length.
    """
    settings = workspace.settings
    encoded = encode(workspace.tokenizer, rows.texts, settings.seq_len)
    if workspace.free_graph is None:
        return rows, TokenBatches(encoded, settings.batch, settings.seq_len, fill="pad")
    ordered = rows.take(np.argsort(encoded.lengths, kind="stable"))
    return ordered, TokenBatches(encode(workspace.tokenizer, ordered.texts, settings.seq_len), settings.batch)


def identity_of(workspace: Workspace, calibrated: Calibrated, threads: int) -> dict[str, Any]:
    """Everything that decides a candidate's result, beside the plan and the rows; `threads` are its engine's."""
    settings = workspace.settings
    entries = {
        name: [float(entry.scale), entry.minimum, entry.maximum] for name, entry in calibrated.table.entries.items()
    }
    return {
        "model": workspace.network.sha256,
        "table": sha256_json(entries),
        "candidate": candidate_identity(workspace, plan_of(settings, workspace.backend)),
        "task": workspace.task.name,
        "backend": workspace.backend.name,
        "engine": dict(settings.engine),
        "threads": threads,
        "batch": settings.batch,
        "seq_len": settings.seq_len,
        "machine": cpu_name(),
        "versions": {
            name: number
            for name, number in versions().items()
            if name in ("quantkit", "numpy", "onnx", "openvino", "onnxruntime", "tensorrt")
        },
    }


def run_sensitivity(settings: Settings, watcher: Watcher) -> dict[str, Any]:
    """`quantkit sensitivity`: the record, written to --out as sensitivity.json when there is one."""
    with cluster_for(settings) as workers:
        return sensitivity_record(prepare(settings, watcher, workers))


def sensitivity_record(bench: Bench) -> dict[str, Any]:
    """`run_sensitivity`, with everything at hand."""
    settings = bench.workspace.settings
    plan = plan_of(settings, bench.workspace.backend)
    found = bench.sensitivity(plan)
    _, [whole] = bench.clock.times(None, [plan])
    record = head_of(bench, "sensitivity") | {
        "plan": plan_to_json(plan),
        "speedup": whole.ratio,
        "sensitivity": found.as_json(),
        "verdict": sensitivity_verdict(found),
    }
    if settings.out is not None:
        write_json(settings.out / "sensitivity.json", record)
    return record


def sensitivity_verdict(found: Sensitivity) -> list[str]:
    """What to read first."""
    dearest = found.ranked[0]
    words = f"{dearest.unit.name} is the dearest part: {dearest.alone.sqnr_db:.1f} dB for {dearest.group_ms:.2f} ms."
    errors = [cost.alone for cost in found.costs if abs(cost.alone.drop) > 2 * cost.alone.drop_stderr > 0]
    if not errors:
        words += " No part alone changes the metric by more than twice its standard error: rank them by dB."
    return [words]


def head_of(bench: Bench, job: str) -> dict[str, Any]:
    """What every record of a search says of model, task, rows and calibration; `job` is the command's name."""
    workspace, settings = bench.workspace, bench.workspace.settings
    reference = bench.judge.reference
    metric = workspace.task.metrics[0]
    return {
        "schema": SCHEMA,
        "context": workspace.context(),
        "model": {
            "name": settings.model,
            "adapter": str(workspace.adapter_path) if workspace.adapter_path else None,
            "sha256": workspace.network.sha256,
        },
        "task": {"name": workspace.task.name, "seq_len": settings.seq_len, "batch": settings.batch},
        "calibration": bench.calibrated.record,
        "rows": {
            "source": bench.rows.source,
            "split": bench.rows.split,
            "rows": len(bench.rows),
            "ranking_rows": min(len(bench.rows), SENSITIVITY_ROWS),
            "metric": metric,
            "fp32": reference.scores[metric].as_json(),
        },
        "manifest": manifest(workspace, job, bench.calibrated.table, tuning=tuning_hashes(bench)),
    }


def tuning_hashes(bench: Bench) -> dict[str, str | None]:
    """Of the rows that decide, as batches, and of their labels."""
    judge = bench.judge
    return {"rows_sha256": judge.batches.sha256, "labels_sha256": labels_sha256(judge.labels)}


def out_folder(settings: Settings) -> Path:
    """Where results go."""
    return settings.out or Path("quantkit-out")

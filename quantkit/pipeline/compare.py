"""`quantkit compare`: methods x tasks x backends in one go, each cell kept as soon as it is finished.

The activations of a task are collected once, by the first backend that can; every method's table follows from the
histograms, and every backend builds its engines from the same tables. A cell is one INT8 engine: evaluated, and timed
in turn with FP32's engine of the same backend. A cell that fails is a cell with its reason.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.backends import BACKENDS, get_backend
from quantkit.calibrate.base import Calibrator
from quantkit.data.batches import TokenBatches
from quantkit.data.glue import get_task
from quantkit.errors import QuantkitError
from quantkit.evaluate.accuracy import EvalResult
from quantkit.evaluate.metrics import Score
from quantkit.evaluate.significance import Comparison, mcnemar, paired_bootstrap
from quantkit.files import check_writable, read_bytes, sha256_json, write_json
from quantkit.pipeline import run as job
from quantkit.pipeline.calibration import (
    Calibrated,
    Collected,
    calibrated_table,
    calibrators_for,
    collect,
    key_of,
    provenance_of,
)
from quantkit.pipeline.collection import batches_of
from quantkit.pipeline.settings import Settings, threads_of
from quantkit.pipeline.tables import parameters_of
from quantkit.pipeline.workspace import Workspace
from quantkit.report.record import SCHEMA, Record, context, versions
from quantkit.tables.provenance import Provenance
from quantkit.tables.table import CalibrationTable
from quantkit.types import Watcher

RULES = 1
"""Part of every cell's key; raised when the same settings come to give other cells."""
PLACEHOLDER = "{task}"
"""What stands for the task's name in the paths of model, adapter and data."""
Z95 = 1.96


@dataclass
class Job:
    """One comparison on its way: what was asked for, and the cells so far.

    Args:
        settings: of the run; task and backend are filled in cell by cell.
        tasks, backends: in the order in which they are shown.
        calibrators: one a method.
        watcher: who is told how it goes.
    """

    settings: Settings
    tasks: tuple[str, ...]
    backends: tuple[str, ...]
    calibrators: Sequence[Calibrator]
    watcher: Watcher
    cells: list[dict[str, Any]] = field(default_factory=list)
    sources: dict[str, dict[str, Any]] = field(default_factory=dict)
    kept: int = 0
    errors: list[QuantkitError] = field(default_factory=list)

    @property
    def total(self) -> int:
        """Number of cells, the reference cells among them."""
        return len(self.tasks) * len(self.backends) * (1 + len(self.calibrators))

    @property
    def folder(self) -> Path:
        """Where record, report and finished cells lie."""
        return self.settings.out or Path("quantkit-compare")


def compare_all(settings: Settings, tasks: Sequence[str], backends: Sequence[str], watcher: Watcher) -> Record:
    """The whole comparison, with record.json and report.html in the folder of the results.

    Args:
        settings: of every cell; `methods` names the calibrators. "{task}" in model, adapter, data and calib_data
            becomes the task's name.
        tasks: names of tasks.
        backends: names of backends.
        watcher: who is told how it goes.

    Raises:
        UnknownNameError: no such task, backend or method.
        QuantkitError: no cell could be computed at all, for the reason that the first of them gives.
    """
    for task in tasks:
        get_task(task)
    for backend in backends:
        _ = BACKENDS[backend]
    made = Job(settings, tuple(tasks), tuple(backends), calibrators_for(settings), watcher)
    check_writable(made.folder)
    with watcher.stage("all cells") as progress:
        progress(0, made.total)
        for task in made.tasks:
            try:
                compare_task(made, task, lambda: progress(len(made.cells), made.total))
            except QuantkitError as error:
                made.errors.append(error)
                fail_rest(made, task, error)
            progress(len(made.cells), made.total)
    if made.errors and all(cell["status"] != "ok" for cell in made.cells):
        raise made.errors[0]
    record = save(made)
    job.report(made.folder, watcher)
    return record


def settings_for(settings: Settings, task: str, backend: str) -> Settings:
    """The settings of one task and backend; engines are not written, so there is no folder for results."""
    named = ("model", "adapter", "data", "calib_data")
    paths = {name: getattr(settings, name).replace(PLACEHOLDER, task) for name in named}
    return replace(settings, task=task, backend=backend, out=None, **paths)


def compare_task(made: Job, task: str, step: Callable[[], None]) -> None:
    """All cells of a task; `step` is called after each."""
    shared = TaskData.of(made, task)
    made.sources[task] = source_of(shared.workspace, shared.batches)
    for backend in made.backends:
        workspace = shared.workspace.on(settings_for(made.settings, task, backend))
        try:
            _ = workspace.backend
        except QuantkitError as error:
            fail_rest(made, task, error, backend)
            step()
            continue
        column = Column(made.folder, workspace, shared)
        try:
            for calibrator in (None, *made.calibrators):
                cell, kept = column.cell(calibrator)
                made.cells.append(cell)
                made.kept += kept
                save(made)
                step()
        finally:
            column.close()


class TaskData:
    """What the cells of one task share: its rows, and the histograms of its one pass.

    Args:
        workspace: with the backend that collects.
    """

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.batches = job.evaluation_batches(workspace)
        self._error: QuantkitError | None = None

    @classmethod
    def of(cls, made: Job, task: str) -> TaskData:
        """The data of a task; the first backend that is installed collects."""
        usable = [backend for backend in made.backends if get_backend(backend).available() is None]
        settings = settings_for(made.settings, task, usable[0] if usable else made.backends[0])
        workspace = Workspace(settings, made.watcher)
        job.check_early(workspace)
        return cls(workspace)

    @cached_property
    def provenance(self) -> Provenance:
        """Of the histograms, known before they are collected."""
        return provenance_of(self.workspace, batches_of(self.workspace))

    @cached_property
    def labels_sha256(self) -> str:
        """Hash of the labels of the evaluation rows."""
        return sha256_json(np.asarray(job.labels_of(self.workspace)).tolist())

    @cached_property
    def _collected(self) -> Collected:
        return collect(self.workspace)

    def table(self, calibrator: Calibrator) -> CalibrationTable:
        """A method's table; the first call collects, and when that fails every later one fails at once.

        Raises:
            QuantkitError: the activations could not be collected or calibrated.
        """
        if self._error is not None:
            raise self._error
        try:
            collected = self._collected
        except QuantkitError as error:
            self._error = error
            raise
        return calibrated_table(collected, calibrator)


def source_of(workspace: Workspace, batches: TokenBatches) -> dict[str, Any]:
    """The record's part on one task: model and data."""
    return {
        "model": {"name": workspace.settings.model, "sha256": workspace.network.sha256},
        "adapter": str(workspace.adapter_path) if workspace.adapter_path else None,
        "metric": workspace.task.metrics[0],
        "split": workspace.evaluation.split,
        "source": workspace.evaluation.source,
        "examples": batches.examples,
        "truncated": batches.truncated,
        "data_sha256": batches.sha256,
    }


def fail_rest(made: Job, task: str, error: QuantkitError, backend: str = "") -> None:
    """Cells with a reason, for what of a task (or of one of its backends) has none yet."""
    there = {(cell["task"], cell["backend"], cell["method"]) for cell in made.cells}
    for name in (backend,) if backend else made.backends:
        for method in ("", *(calibrator.name for calibrator in made.calibrators)):
            if (task, name, method) not in there:
                cell = {"task": task, "backend": name, "method": method, "precision": "int8" if method else "fp32"}
                made.cells.append({**cell, "status": "failed", "reason": str(error)})


class Column:
    """One task on one backend: the FP32 engine, and the INT8 engine of one method after another."""

    def __init__(self, folder: Path, workspace: Workspace, shared: TaskData) -> None:
        self.folder, self.workspace, self.shared = folder, workspace, shared
        self.batches = shared.batches
        self.reference = job.Trial("fp32")

    def cell(self, calibrator: Calibrator | None) -> tuple[dict[str, Any], bool]:
        """The cell of a method (None: of FP32), and whether it lay finished in the folder."""
        path = self.folder / "cells" / f"{self.key(calibrator)}.json"
        if (kept := finished(path)) is not None:
            if calibrator is None:
                self.reference.result = result_of(kept)
            return {name: value for name, value in kept.items() if name != "predictions"}, True
        trial = self.reference if calibrator is None else job.Trial("int8")
        method = calibrator.name if calibrator else ""
        where = {"task": self.workspace.task.name, "backend": self.workspace.settings.backend, "method": method}
        try:
            found = where | self.computed(trial, calibrator)
        except QuantkitError as error:
            return where | {"precision": trial.precision, "status": "failed", "reason": str(error)}, False
        if found["status"] == "ok" and trial.result is not None:
            write_json(path, {**found, "predictions": trial.result.predictions.tolist()})
        return found, False

    def key(self, calibrator: Calibrator | None) -> str:
        """Name under which a finished cell is kept: a hash of everything that decides it."""
        settings, packages, table = self.workspace.settings, versions(), None
        if calibrator is not None:
            parameters = parameters_of(calibrator)
            table = key_of(replace(self.shared.provenance, method=calibrator.name, parameters=parameters))
        return sha256_json(
            {
                "rules": RULES,
                "model": self.workspace.network.sha256,
                "task": self.workspace.task.name,
                "data": self.batches.sha256,
                "labels": self.shared.labels_sha256,
                "table": table,
                "backend": [settings.backend, threads_of(settings), settings.placement, settings.symmetric],
                "options": dict(settings.engine),
                "versions": [packages.get("quantkit"), packages.get(settings.backend)],
            }
        )[:24]

    def computed(self, trial: job.Trial, calibrator: Calibrator | None) -> dict[str, Any]:
        """One cell: built, evaluated, timed in turn with FP32, compared with it.

        Raises:
            QuantkitError: the engine could not be built or run.
        """
        calibrated = None
        if calibrator is not None:
            calibrated = Calibrated(self.shared.table(calibrator), {})
        try:
            job.compile_all(self.workspace, [trial], calibrated)
            job.evaluate_all(self.workspace, [trial], self.batches)
            if trial.error is None and calibrator is not None:
                self.time(trial)
        finally:
            if trial is not self.reference and trial.engine is not None:
                trial.engine.close()
        row = job.row_of(trial, self.reference, self.workspace).as_json()
        if trial.latency is not None and self.reference.latency is not None:
            row["fp32_ms"] = self.reference.latency.median_ms
        if trial is not self.reference and trial.result is not None and self.reference.result is not None:
            row["change"] = self.change(trial.result, self.reference.result)
        return row

    def time(self, trial: job.Trial) -> None:
        """Times the engine and FP32's in turn; without FP32's there is no speed to tell."""
        if self.reference.engine is None and self.reference.error is None:
            job.compile_all(self.workspace, [self.reference], None)
        if self.reference.engine is not None and self.reference.error is None:
            job.time_all(self.workspace, [self.reference, trial], self.batches)

    def change(self, result: EvalResult, reference: EvalResult) -> dict[str, Any]:
        """What INT8 does to the main metric, with the standard error of the paired difference.

        Accuracy: McNemar's test and Wald's standard error. Other metrics: a bootstrap of the rows, the standard error
        read from its 95 % interval.
        """
        metric, labels = self.workspace.task.metrics[0], job.labels_of(self.workspace)
        if metric == "accuracy":
            found: Comparison = mcnemar(reference.predictions, result.predictions, labels)
        else:
            found = paired_bootstrap(reference.predictions, result.predictions, labels, metric)
        stderr = (found.high - found.low) / (2 * Z95)
        value = {"metric": metric, "value": found.difference, "stderr": stderr if math.isfinite(stderr) else None}
        return {**value, "p_value": found.p_value, "test": found.test}

    def close(self) -> None:
        """Frees FP32's engine."""
        if self.reference.engine is not None:
            self.reference.engine.close()


def finished(path: Path) -> dict[str, Any] | None:
    """A cell that was kept; None when there is none, or none that can be read."""
    if not path.is_file():
        return None
    try:
        cell = read_bytes(path, json.loads)
    except (ValueError, QuantkitError):
        return None
    whole = isinstance(cell, dict) and cell.get("status") == "ok" and isinstance(cell.get("predictions"), list)
    return cell if whole else None


def result_of(cell: Mapping[str, Any]) -> EvalResult:
    """The predictions and scores of a kept cell; logits are not kept."""
    scores = {name: Score(**score) for name, score in cell["metrics"].items()}
    return EvalResult(scores, np.empty((0, 0), np.float32), np.asarray(cell["predictions"]))


def save(made: Job) -> Record:
    """The record of the cells so far, written to the folder."""
    data = {
        "schema": SCHEMA,
        "kind": "compare",
        "context": context(made.settings.as_json()),
        "tasks": list(made.tasks),
        "backends": list(made.backends),
        "methods": [calibrator.name for calibrator in made.calibrators],
        "sources": made.sources,
        "cells": made.cells,
        "kept": made.kept,
        "verdict": verdict(made.cells),
    }
    record = Record(data)
    record.save(made.folder / "record.json")
    return record


def verdict(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the reader should know first: each backend's cheapest method, and what failed."""
    lines = [line for backend in dict.fromkeys(cell["backend"] for cell in cells) if (line := cheapest(cells, backend))]
    if failed := [cell for cell in cells if cell["status"] != "ok"]:
        lines.append(f"{len(failed)} of {len(cells)} cells failed; each says why.")
    return lines


def cheapest(cells: Sequence[Mapping[str, Any]], backend: str) -> str:
    """The method of a backend that costs least on average over the tasks, and whether that is more than chance.

    Methods that lack a task are left out. The standard error of an average takes the tasks as independent. Two methods
    on the same rows differ less than that says, so "cannot be told" is the cautious answer.
    """
    changes: dict[str, list[Mapping[str, Any]]] = {}
    for cell in cells:
        if cell["backend"] == backend and cell.get("change"):
            changes.setdefault(cell["method"], []).append(cell["change"])
    tasks = max(map(len, changes.values()), default=0)
    means = {m: sum(c["value"] for c in own) / tasks for m, own in changes.items() if len(own) == tasks}
    errors = {m: math.sqrt(sum((c["stderr"] or 0.0) ** 2 for c in changes[m])) / tasks for m in means}
    if not means:
        return ""
    best, worst = max(means, key=means.__getitem__), min(means, key=means.__getitem__)
    over = f"on average over {tasks} tasks" if tasks > 1 else "on its one task"
    says = f"{backend}: {best} costs least, {100 * means[best]:+.2f} ±{100 * errors[best]:.2f} points {over}"
    alike = len(means) > 1 and means[best] - means[worst] < 2 * math.hypot(errors[best], errors[worst])
    return says + ("; these rows cannot tell one method from another." if alike else ".")

"""`quantkit compare`: methods x tasks x backends in one go, each cell kept as soon as it is finished.

The activations of a task are collected once, by the first backend that can; every method's table follows from the
histograms, and every backend builds its engines from the same tables. A cell is one INT8 engine: evaluated, and timed
in turn with FP32's engine of the same backend. A cell that fails is a cell with its reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.backends import BACKENDS, get_backend
from quantkit.calibrate.base import Calibrator
from quantkit.data.glue import get_task
from quantkit.errors import QuantkitError
from quantkit.files import check_writable
from quantkit.pipeline import run as job
from quantkit.pipeline.calibration import calibrators_for
from quantkit.pipeline.cells import Column, TaskData
from quantkit.pipeline.locks import alone_in
from quantkit.pipeline.manifest import adapter_sha256, dependencies, threads_json
from quantkit.pipeline.memory import check_engines
from quantkit.pipeline.settings import Settings
from quantkit.pipeline.sharing import cluster_for
from quantkit.pipeline.workspace import Workspace
from quantkit.report.record import SCHEMA, Record, context
from quantkit.types import Watcher

if TYPE_CHECKING:
    from quantkit.distributed.cluster import Cluster

PLACEHOLDER = "{task}"
"""What stands for the task's name in the paths of model, adapter and data."""


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
    cluster: Cluster | None = None
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
            becomes the task's name. `refine` is "none" where it is empty: the methods are compared, not what makes up
            for them.
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
    calibrators = calibrators_for(settings)
    if not settings.refine:
        # Refinement chooses ranges by itself, so every method would come out alike.
        settings = replace(settings, refine="none")
    elif len(calibrators) > 1 and settings.refine.strip() != "none":
        watcher.say(
            "With --refine ranges come from the refinement wherever it changes a tensor; methods differ elsewhere."
        )
    made = Job(settings, tuple(tasks), tuple(backends), calibrators, watcher)
    with alone_in(made.folder, watcher), cluster_for(settings, backends=backends) as made.cluster:
        return compare_here(made)


def compare_here(made: Job) -> Record:
    """`compare_all`, while no other process writes to the same folder."""
    watcher = made.watcher
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
    shared = task_data(made, task)
    check_engines(shared.workspace, 2)  # FP32's and a cell's, which are timed in turn
    made.sources[task] = source_of(shared)
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


def task_data(made: Job, task: str) -> TaskData:
    """What the cells of a task share; the first backend that is installed collects."""
    usable = [backend for backend in made.backends if get_backend(backend).available() is None]
    workspace = Workspace(
        settings_for(made.settings, task, usable[0] if usable else made.backends[0]), made.watcher, made.cluster
    )
    job.check_early(workspace)
    return TaskData(workspace)


def source_of(shared: TaskData) -> dict[str, Any]:
    """The record's part on one task: model and data."""
    workspace, batches = shared.workspace, shared.batches
    return {
        "model": {"name": workspace.settings.model, "sha256": workspace.network.sha256},
        "adapter": str(workspace.adapter_path) if workspace.adapter_path else None,
        "metric": workspace.task.metrics[0],
        "split": workspace.evaluation.split,
        "source": workspace.evaluation.source,
        "examples": batches.examples,
        "truncated": batches.truncated,
        "data_sha256": batches.sha256,
        "labels_sha256": shared.labels_sha256,
        "adapter_sha256": adapter_sha256(workspace.adapter_path),
    }


def fail_rest(made: Job, task: str, error: QuantkitError, backend: str = "") -> None:
    """Cells with a reason, for what of a task (or of one of its backends) has none yet."""
    there = {(cell["task"], cell["backend"], cell["method"]) for cell in made.cells}
    for name in (backend,) if backend else made.backends:
        for method in ("", *(calibrator.name for calibrator in made.calibrators)):
            if (task, name, method) not in there:
                cell = {"task": task, "backend": name, "method": method, "precision": "int8" if method else "fp32"}
                made.cells.append({**cell, "status": "failed", "reason": str(error)})


def save(made: Job) -> Record:
    """The record of the cells so far, written to the folder."""
    data = {
        "schema": SCHEMA,
        "kind": "compare",
        "context": context(settings_json(made), made.cluster.as_json() if made.cluster else None),
        "tasks": list(made.tasks),
        "backends": list(made.backends),
        "methods": [calibrator.name for calibrator in made.calibrators],
        "sources": made.sources,
        "cells": made.cells,
        "kept": made.kept,
        "manifest": {"job": "compare", "threads": threads_json(made.settings), "dependencies": dependencies()},
        "verdict": verdict(made.cells),
    }
    record = Record(data)
    record.save(made.folder / "record.json")
    return record


def settings_json(made: Job) -> dict[str, Any]:
    """The settings that a comparison has; those of one run alone are left out."""
    values = made.settings.as_json() | {"task": list(made.tasks), "backend": list(made.backends)}
    return {name: value for name, value in values.items() if name not in ("method", "precisions", "table", "force")}


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

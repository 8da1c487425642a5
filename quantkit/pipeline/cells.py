"""The cells of a comparison: what those of one task share, and those of one task on one backend.

A finished cell is a file under a hash of everything that decides it, with the engine's answers, so that a later call
with the same settings has it, and can compare other methods with its FP32 engine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.calibrate.base import Calibrator
from quantkit.errors import QuantkitError
from quantkit.evaluate.accuracy import EvalResult
from quantkit.evaluate.metrics import Score
from quantkit.evaluate.significance import Comparison, mcnemar, paired_bootstrap
from quantkit.files import read_sealed, sha256_json, write_sealed
from quantkit.network.plan_file import plan_to_json
from quantkit.pipeline import run as job
from quantkit.pipeline.calibration import Calibrated, Collected, calibrated_table, collect, key_of, provenance_of
from quantkit.pipeline.collection import batches_of
from quantkit.pipeline.manifest import table_sha256
from quantkit.pipeline.settings import answering_threads, threads_of
from quantkit.pipeline.tables import parameters_of
from quantkit.pipeline.workspace import Workspace
from quantkit.report.record import versions
from quantkit.tables.provenance import Provenance
from quantkit.tables.table import CalibrationTable

RULES = 2
"""Part of every cell's key; raised when the same settings come to give other cells."""
Z95 = 1.96


class TaskData:
    """What the cells of one task share: its rows, and the histograms of its one pass.

    Args:
        workspace: with the backend that collects.
    """

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.batches = job.evaluation_batches(workspace)
        self._error: QuantkitError | None = None

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
            write_sealed(path, {**found, "predictions": trial.result.predictions.tolist()})
            job.forget([trial, self.reference])
        return found, False

    def key(self, calibrator: Calibrator | None) -> str:
        """Name under which a finished cell is kept: a hash of everything that decides it."""
        settings, packages, table = self.workspace.settings, versions(), None
        threads = sorted({threads_of(settings), answering_threads(settings)})
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
                "backend": [settings.backend, *threads],
                "plan": plan_to_json(job.plan_of(settings, self.workspace.backend)),
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
        row["hashes"] = job.hashes_of(trial)
        if trial.table is not None:
            row["hashes"]["table_sha256"] = table_sha256(trial.table)
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
    cell = read_sealed(path)
    whole = cell is not None and cell.get("status") == "ok" and isinstance(cell.get("predictions"), list)
    return cell if whole else None


def result_of(cell: Mapping[str, Any]) -> EvalResult:
    """The predictions and scores of a kept cell; logits are not kept."""
    scores = {name: Score(**score) for name, score in cell["metrics"].items()}
    return EvalResult(scores, np.empty((0, 0), np.float32), np.asarray(cell["predictions"]))

"""What a plan is worth on the rows that decide: error of the logits, agreement with FP32, the task's metric."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from quantkit.backends.base import Backend, Precision
from quantkit.data.batches import TokenBatches
from quantkit.errors import BackendError
from quantkit.evaluate.accuracy import EvalResult, TaskLike, evaluate_engine
from quantkit.evaluate.metrics import compute
from quantkit.evaluate.significance import compare
from quantkit.files import sha256_array
from quantkit.network.plan_file import plan_to_json
from quantkit.network.precision import PrecisionPlan
from quantkit.qparams import sqnr_db
from quantkit.search.store import Store
from quantkit.types import Array, Runner

if TYPE_CHECKING:
    from onnx import ModelProto

Build = Callable[["PrecisionPlan | None"], "ModelProto"]
"""Makes the graph of a plan, with the shapes that engines are compiled for; None stands for FP32."""


class Engines(Protocol):
    """Engines that are built and run somewhere else."""

    def open(
        self, plan: PrecisionPlan | None, precision: Precision, batches: TokenBatches
    ) -> AbstractContextManager[Runner]:
        """An engine that is asked the batches in their order."""
        ...

    def expect(self, plans: Sequence[PrecisionPlan], batches: TokenBatches) -> None:
        """Says which INT8 plans will be asked for next, over the same batches."""
        ...


RESAMPLES = 500
"""Draws of the bootstrap in a search: its standard error, not its tails, is what a search needs."""
BEST_DB = 200.0
"""Where the logits are equal bit for bit the ratio is infinite, which JSON has no number for."""


@dataclass(frozen=True)
class Judged:
    """One plan on the tuning rows.

    Attributes:
        sqnr_db: FP32's logits against their difference from this plan's, in dB; at most `BEST_DB`.
        agreement: share of rows with FP32's answer.
        metric: the task's main metric.
        score, stderr: its value and standard error.
        drop, drop_stderr: 100 times FP32's value less this one's, and its paired standard error, in points.
        rows: number of rows.
        failed: why there is no engine; empty when there is one.
    """

    sqnr_db: float = -BEST_DB
    agreement: float = 0.0
    metric: str = ""
    score: float = 0.0
    stderr: float = 0.0
    drop: float = 100.0
    drop_stderr: float = 0.0
    rows: int = 0
    failed: str = ""

    def keeps(self, max_drop: float) -> bool:
        """Whether the drop, with one standard error on top, is at most `max_drop` points."""
        return not self.failed and self.drop + self.drop_stderr <= max_drop

    @property
    def noise(self) -> float:
        """Power of the error over that of FP32's logits."""
        return float(10 ** (-self.sqnr_db / 10))


@dataclass
class Judge:
    """Builds, runs and scores plans on the same rows, and keeps what it found.

    Args:
        build: plan -> graph; None -> the FP32 graph.
        backend: what runs them.
        batches: the rows that decide; none of them is an evaluation row.
        labels: their labels.
        task: classes and metrics.
        store: where results are kept.
        threads: of the engines.
        engines: who builds and runs the engines; None is `backend`, here.
    """

    build: Build
    backend: Backend
    batches: TokenBatches
    labels: Array
    task: TaskLike
    store: Store
    threads: int
    engines: Engines | None = None

    @cached_property
    def reference(self) -> EvalResult:
        """FP32 on the same rows."""
        question = self._question(None)
        kept = self.store.get(question)
        if kept is None:
            result = self._run(None, "fp32")
            kept = self.store.put(question, {"logits": result.logits.tolist()})
        return self._scored(np.array(kept["logits"], np.float32))

    def expect(self, plans: Sequence[PrecisionPlan]) -> None:
        """Says which plans will be judged next, in this order, so that several can be computed at once."""
        if self.engines is not None:
            _ = self.reference  # the first thing that judging needs
            self.engines.expect([plan for plan in plans if self.store.get(self._question(plan)) is None], self.batches)

    def judge(self, plan: PrecisionPlan) -> Judged:
        """What a plan is worth; one whose engine cannot be built or run is judged `failed`, with the reason."""
        question = self._question(plan)
        if (kept := self.store.get(question)) is not None:
            return Judged(**kept)
        reference = self.reference
        try:
            result = self._run(plan, "int8")
        except BackendError as error:
            return Judged(failed=str(error))
        metric = self.task.metrics[0]
        found = compare(reference, result, self.labels, self.task, resamples=RESAMPLES)
        judged = Judged(
            sqnr_db=float(np.clip(sqnr_db(reference.logits, result.logits), -BEST_DB, BEST_DB)),
            agreement=found.agreement,
            metric=metric,
            score=result.scores[metric].value,
            stderr=result.scores[metric].stderr,
            drop=-100 * found.difference + 0.0,  # no -0.0
            drop_stderr=100 * found.stderr,
            rows=found.rows,
        )
        self.store.put(question, asdict(judged))
        return judged

    def _question(self, plan: PrecisionPlan | None) -> dict[str, Any]:
        """What decides a result, beside the store's identity."""
        return {"judge": None if plan is None else plan_to_json(plan), "rows": self._rows_sha256}

    @cached_property
    def _rows_sha256(self) -> str:
        """Hash of the token arrays and the labels."""
        digest = hashlib.sha256(self.batches.sha256.encode())
        sha256_array(digest, self.labels)
        return digest.hexdigest()

    def _run(self, plan: PrecisionPlan | None, precision: Precision) -> EvalResult:
        if self.engines is not None:
            opened: AbstractContextManager[Runner] = self.engines.open(plan, precision, self.batches)
        else:
            opened = self.backend.compile(self.build(plan), precision, threads=self.threads)
        with opened as engine:
            return evaluate_engine(engine, self.batches, self.labels, self.task)

    def _scored(self, logits: Array) -> EvalResult:
        """The result that these logits of the real rows make."""
        if self.task.labels is None:
            predictions: Array = logits[:, 0].astype(np.float64)
        else:
            predictions = np.argmax(logits, axis=1).astype(np.int64)
        return EvalResult(compute(self.task.metrics, predictions, self.labels), logits, predictions)

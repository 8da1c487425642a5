"""What an engine gets right: its logits over an evaluation split, predictions and scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from quantkit.errors import BackendError, DataError, ModelError
from quantkit.evaluate.metrics import Score, compute
from quantkit.types import Array, BatchSource, FeedDict, Progress, Runner


class TaskLike(Protocol):
    """What of a task is needed to judge a model."""

    @property
    def labels(self) -> Sequence[str] | None:
        """Names of the classes; None for regression."""
        ...

    @property
    def metrics(self) -> Sequence[str]:
        """Names of the task's metrics, the main one first."""
        ...


@dataclass(frozen=True, eq=False)
class EvalResult:
    """What came out of an evaluation.

    Args:
        scores: metric name -> score, in the task's order.
        logits: float32 (n, outputs), rows in the order of the data.
        predictions: (n,) int64 class numbers (the first of equal logits), or the float64 score for regression.
    """

    scores: dict[str, Score]
    logits: npt.NDArray[np.float32]
    predictions: npt.NDArray[Any]


def evaluate_engine(
    engine: Runner, batches: BatchSource, labels: npt.ArrayLike, task: TaskLike, *, progress: Progress | None = None
) -> EvalResult:
    """Runs every batch and scores the answers.

    Args:
        engine: with one output of shape (rows, outputs), or several of which one is called "logits".
        batches: feeds; what the engine does not take is left out. An attribute `examples` says how many rows are
            real where the last batch is filled up; rows beyond it are dropped.
        labels: (n,) class numbers, or scores for regression.
        task: its classes and metrics.
        progress: told after each batch.

    Raises:
        DataError: labels that do not fit the batches or the model's outputs; none at all.
        ModelError: a regression with several outputs, or classes with one.
        BackendError: the engine failed, or gave NaN, Inf or a wrong shape.
    """
    references = np.asarray(labels)
    if references.ndim != 1 or not len(references):
        raise DataError(f"The labels have shape {references.shape}, expected one a row and at least one row.")
    logits = _collect(engine, batches, progress)
    examples = getattr(batches, "examples", len(logits))
    if not len(references) == examples <= len(logits):
        message = f"There are {len(references)} labels for {min(examples, len(logits))} evaluated rows."
        raise DataError(message, "Evaluate every labelled row: drop no last batch.")
    logits = logits[:examples]
    if task.labels is None:
        predictions = _regression(logits, references)
    else:
        _check_classes(logits.shape[1], references)
        predictions = np.argmax(logits, axis=1).astype(np.int64)
    return EvalResult(compute(task.metrics, predictions, references), logits, predictions)


def inputs_for(engine: Runner, feed: FeedDict) -> FeedDict:
    """Those arrays of `feed` that the engine takes."""
    return {spec.name: feed[spec.name] for spec in engine.inputs if spec.name in feed}


def _collect(engine: Runner, batches: BatchSource, progress: Progress | None) -> npt.NDArray[np.float32]:
    """Logits of all rows, padding rows at the end included."""
    name = logits_name(engine)
    rows: list[npt.NDArray[np.float32]] = []
    seen = 0
    real = getattr(batches, "examples", None)
    for index, feed in enumerate(batches):
        inputs = inputs_for(engine, feed)
        # The runner may reuse its output buffer: keep a copy.
        logits = np.array(engine.infer(inputs)[name], np.float32)
        size = len(next(iter(feed.values()), ()))
        if logits.ndim != 2 or len(logits) != size:
            raise BackendError(f"The output {name!r} has shape {logits.shape}, expected ({size}, outputs).")
        _check_finite(logits if real is None else logits[: max(0, real - seen)], seen, engine)
        rows.append(logits)
        seen += size
        if progress is not None:
            progress(index + 1, len(batches))
    if not rows:
        raise DataError("There is no batch to evaluate.", "Give at least one row.")
    return np.concatenate(rows)


def logits_name(engine: Runner) -> str:
    """The output that holds the logits; ModelError when none of several is called so."""
    names = [spec.name for spec in engine.outputs]
    if len(names) == 1:
        return names[0]
    if "logits" in names:
        return "logits"
    raise ModelError(f"The model has the outputs {', '.join(names)}, and none is called logits.", "Export one output.")


def _check_finite(logits: Array, offset: int, engine: Runner) -> None:
    """BackendError that names the first row with NaN or Inf."""
    bad = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if len(bad):
        what = getattr(engine, "precision", "")
        raise BackendError(
            f"The {what + ' ' if what else ''}engine gave {logits[bad[0]].tolist()} in row {offset + bad[0]}, "
            "expected finite logits.",
            "Overflow is the usual cause: try a wider precision, or leave the layer that overflows unquantized.",
        )


def _regression(logits: npt.NDArray[np.float32], references: Array) -> npt.NDArray[np.float64]:
    """The single output as float64."""
    if logits.shape[1] != 1:
        message = f"The task is a regression and the model has {logits.shape[1]} outputs, expected 1."
        raise ModelError(message, "Choose the task that the model was trained for.")
    if not np.isfinite(references).all():
        row = int(np.flatnonzero(~np.isfinite(references))[0])
        raise DataError(f"The label of row {row} is {references[row]}, expected a finite number.")
    return logits[:, 0].astype(np.float64)


def _check_classes(outputs: int, references: Array) -> None:
    """Refuses labels that the model has no output for."""
    if outputs < 2:
        message = "The task has classes and the model has 1 output, so it is a regression model."
        raise ModelError(message, "Choose the task that the model was trained for.")
    outside = ~np.isin(references, np.arange(outputs))
    if outside.any():
        row = int(np.flatnonzero(outside)[0])
        raise DataError(
            f"The label of row {row} is {references[row]}; the model has {outputs} outputs, so labels are "
            f"whole numbers from 0 to {outputs - 1}.",
            "Choose the task that the model was trained for; GLUE's test files have no labels (-1).",
        )

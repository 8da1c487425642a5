"""Metrics by name, computed through our own modules of the `evaluate` library."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from quantkit.errors import DataError
from quantkit.registry import Registry

METRICS: Registry[Any] = Registry(
    "metric",
    {
        "accuracy": "quantkit.evaluate.modules:Accuracy",
        "f1": "quantkit.evaluate.modules:F1",
        "matthews": "quantkit.evaluate.modules:Matthews",
        "pearson": "quantkit.evaluate.modules:Pearson",
        "spearman": "quantkit.evaluate.modules:Spearman",
    },
)


@dataclass(frozen=True)
class Score:
    """A metric's value on an evaluation split.

    Args:
        value: between -1 and 1.
        stderr: standard error of `value` over draws of as many rows (`quantkit.evaluate.formulas` tells how).
        higher_is_better: which way is better; true for all of GLUE's.
    """

    value: float
    stderr: float
    higher_is_better: bool = True

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


def compute(names: Iterable[str], predictions: npt.ArrayLike, references: npt.ArrayLike) -> dict[str, Score]:
    """Metric name -> score.

    Args:
        names: metrics, out of METRICS.
        predictions: (n,) class numbers, or scores for pearson and spearman.
        references: (n,) the true ones.

    Raises:
        UnknownNameError: no such metric.
        DataError: nothing to judge, different numbers of rows, or a value that is not finite.
    """
    predicted, true = np.asarray(predictions), np.asarray(references)
    if predicted.ndim != 1 or predicted.shape != true.shape or not len(predicted):
        message = f"The metrics need one prediction a reference, came shapes {predicted.shape} and {true.shape}."
        raise DataError(message, "Give two arrays of one dimension and equal length, with at least one row.")
    for what, values in (("prediction", predicted), ("reference", true)):
        if len(bad := np.flatnonzero(~np.isfinite(values))):
            raise DataError(f"The {what} of row {bad[0]} is {values[bad[0]]}, expected a finite number.")
    return {name: _score(name, predicted, true) for name in names}


def _score(name: str, predictions: npt.NDArray[Any], references: npt.NDArray[Any]) -> Score:
    """One metric of checked rows."""
    result = METRICS[name]().compute(predictions=predictions, references=references)
    return Score(float(result[name]), float(result[f"{name}_stderr"]))

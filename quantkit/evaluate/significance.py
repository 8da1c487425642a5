"""Whether two engines' answers on the same rows differ by more than chance."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from quantkit.errors import DataError
from quantkit.evaluate import formulas
from quantkit.evaluate.accuracy import EvalResult, TaskLike
from quantkit.registry import Registry

ALPHA = 0.05
"""A difference counts as shown when its p-value is below this."""
RESAMPLES = 2000
NEAR = 0.02
"""Two scores of a regression agree when they differ by no more than this share of the labels' range."""

_FORMULAS: Registry[Callable[..., formulas.Estimate]] = Registry(
    "metric", {name: getattr(formulas, name) for name in ("accuracy", "f1", "matthews", "pearson", "spearman")}
)


@dataclass(frozen=True)
class Comparison:
    """Two engines on the same rows.

    Args:
        metric: what `difference` is a difference of.
        difference: second minus first.
        low, high: 95 % interval of the difference.
        stderr: standard error of `difference`, paired: what both engines get right or wrong alike does not count.
        p_value: two-sided, of no difference at all.
        agreement: share of rows with equal answers (regression: scores within `NEAR` of the labels' range).
        identical: whether all answers are exactly equal.
        rows: number of rows.
        test: name of the test.
    """

    metric: str
    difference: float
    low: float
    high: float
    stderr: float
    p_value: float
    agreement: float
    identical: bool
    rows: int
    test: str

    @property
    def shown(self) -> bool:
        """Whether a difference can be shown at the 5 % level."""
        return self.p_value < ALPHA

    def in_words(self, first: str, second: str) -> str:
        """One sentence for a reader, with the names of the two engines."""
        if self.identical:
            return f"{second} and {first} give the same answer on all {self.rows} rows."
        evidence = f"{self.metric} {self.difference:+.4f}, 95 % interval {self.low:+.4f} to {self.high:+.4f}"
        tail = f"({evidence}; {self.test}, p = {self.p_value:.2g}, {self.rows} rows)"
        if not self.shown:
            return f"No difference between {second} and {first} can be shown {tail}."
        return f"{second} is {'better' if self.difference > 0 else 'worse'} than {first} {tail}."

    def as_json(self, first: str, second: str) -> dict[str, Any]:
        """The fields as JSON values, with the sentence under "words"."""
        return asdict(self) | {"words": self.in_words(first, second)}


def compare(
    first: EvalResult, second: EvalResult, labels: npt.ArrayLike, task: TaskLike, *, resamples: int = RESAMPLES
) -> Comparison:
    """The test that fits the task's main metric: `mcnemar` for accuracy, `paired_bootstrap` for all others.

    Raises:
        DataError: results or labels of different numbers of rows.
    """
    if task.labels is not None and task.metrics[0] == "accuracy":
        return mcnemar(first.predictions, second.predictions, labels)
    return paired_bootstrap(first.predictions, second.predictions, labels, task.metrics[0], resamples=resamples)


def mcnemar(first: npt.ArrayLike, second: npt.ArrayLike, labels: npt.ArrayLike) -> Comparison:
    """McNemar's exact test: of the rows that only one engine has right, does either have more than half.

    Args:
        first: (n,) class numbers that one engine gave.
        second: (n,) those of the other.
        labels: (n,) the true ones.

    The p-value is the two-sided binomial one, twice the smaller tail, at most 1. The interval of the accuracy
    difference is Wald's for paired shares, sqrt(b + c - (b - c)^2 / n) / n wide in standard errors.

    Raises:
        DataError: different numbers of rows, or none.
    """
    a, b, true = _rows(first, second, labels)
    n = len(true)
    only_first = int(np.sum((a == true) & (b != true)))
    only_second = int(np.sum((b == true) & (a != true)))
    difference = (only_second - only_first) / n
    stderr = math.sqrt(max(0.0, only_first + only_second - (only_second - only_first) ** 2 / n)) / n
    return Comparison(
        metric="accuracy",
        difference=difference,
        low=difference - 1.96 * stderr,
        high=difference + 1.96 * stderr,
        stderr=stderr,
        p_value=_binomial_p(min(only_first, only_second), only_first + only_second),
        agreement=float(np.mean(a == b)),
        identical=bool(np.all(a == b)),
        rows=n,
        test="McNemar exact",
    )


def paired_bootstrap(
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    labels: npt.ArrayLike,
    metric: str,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Comparison:
    """Percentile bootstrap of the metric's difference; both engines are judged on the same drawn rows.

    Args:
        first: (n,) class numbers or scores that one engine gave.
        second: (n,) those of the other.
        labels: (n,) the true ones.
        metric: name of a metric.
        seed: of the draws; the same seed gives the same result.
        resamples: number of draws.

    The p-value is twice the smaller of the shares of draws with a difference <= 0 and >= 0, each counted with one
    more draw, so that it is never 0; the standard error is the draws' standard deviation (B. Efron and R. Tibshirani,
    "An Introduction to the Bootstrap", 1993).

    Raises:
        UnknownNameError: no such metric.
        DataError: different numbers of rows, or none.
    """
    a, b, true = _rows(first, second, labels)
    formula = _FORMULAS[metric]
    draw = np.random.default_rng(seed)
    differences = np.empty(resamples)
    for index in range(resamples):
        rows = draw.integers(0, len(true), len(true))
        differences[index] = formula(b[rows], true[rows]).value - formula(a[rows], true[rows]).value
    tail = min(np.sum(differences <= 0), np.sum(differences >= 0))
    low, high = np.percentile(differences, (2.5, 97.5))
    return Comparison(
        metric=metric,
        difference=formula(b, true).value - formula(a, true).value,
        low=float(low),
        high=float(high),
        stderr=float(np.std(differences, ddof=1)) if resamples > 1 else 0.0,
        p_value=min(1.0, 2 * (int(tail) + 1) / (resamples + 1)),
        agreement=_agreement(a, b, true),
        identical=bool(np.all(a == b)),
        rows=len(true),
        test=f"paired bootstrap, {resamples} draws",
    )


def _rows(
    first: npt.ArrayLike, second: npt.ArrayLike, labels: npt.ArrayLike
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    """The three as arrays of one length."""
    a, b, true = np.asarray(first), np.asarray(second), np.asarray(labels)
    if not a.shape == b.shape == true.shape or true.ndim != 1 or not len(true):
        message = f"A comparison needs the same rows three times, came shapes {a.shape}, {b.shape} and {true.shape}."
        raise DataError(message, "Evaluate both engines on the same labelled rows.")
    return a, b, true


def _agreement(a: npt.NDArray[Any], b: npt.NDArray[Any], true: npt.NDArray[Any]) -> float:
    """Share of rows with equal classes, or with scores that differ by at most `NEAR` of the labels' range."""
    if a.dtype.kind in "iub" and b.dtype.kind in "iub":
        return float(np.mean(a == b))
    return float(np.mean(np.abs(a - b) <= NEAR * float(np.ptp(true))))


def _binomial_p(successes: int, trials: int) -> float:
    """min(1, 2 P(X <= successes)) for X ~ binomial(trials, 1/2), summed exactly in whole numbers."""
    term = total = 1
    for k in range(successes):
        term = term * (trials - k) // (k + 1)
        total += term
    p: float = 2 * total / 2**trials
    return min(1.0, p)

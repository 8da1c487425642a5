"""GLUE's five metrics as plain functions of NumPy arrays, each with its standard error.

Every function takes predictions and references of shape (n,), n at least 1, and returns (value, standard error). None
warns: where a formula has no value (nothing to correlate, no positive anywhere) the result is the documented (0, 0).

Standard errors are closed forms. F1 and Matthews are ratios of means, so theirs comes from the delta method: the
variance over rows of the statistic's influence function, divided by n (e.g. A. van der Vaart, "Asymptotic Statistics",
1998, chapter 3). They describe other draws of the evaluation rows, not other trainings of the model.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

UNKNOWN_STDERR = 1.0
"""Standard error of a correlation of fewer than 4 rows, where Fisher's has no value: no correlation spreads more."""


class Estimate(NamedTuple):
    """A metric's value and its standard error."""

    value: float
    stderr: float


def accuracy(predictions: IntArray, references: IntArray) -> Estimate:
    """Share of equal labels; the standard error is the binomial sqrt(p (1 - p) / n)."""
    share = float(np.mean(predictions == references))
    return Estimate(share, float(np.sqrt(share * (1 - share) / len(references))))


def f1(predictions: IntArray, references: IntArray, positive: int = 1) -> Estimate:
    """F1 = 2a / (2a + b + c) of class `positive`: a hits, b false alarms, c misses; (0, 0) when a + b + c = 0.

    Delta method over the multinomial of (a, b, c, rest): variance 4 a (b + c) (a + b + c) / (2a + b + c)^4.
    """
    guessed, true = predictions == positive, references == positive
    hits, wrong = int(np.sum(guessed & true)), int(np.sum(guessed ^ true))
    size = 2 * hits + wrong
    if size == 0:
        return Estimate(0.0, 0.0)
    return Estimate(2 * hits / size, float(np.sqrt(4 * hits * wrong * (hits + wrong)) / size**2))


def matthews(predictions: IntArray, references: IntArray) -> Estimate:
    """Matthews correlation, for more than two classes Gorodkin's R_K; (0, 0) when either side has one class only.

    With x, y the one-hot rows less their means, it is C_xy / sqrt(C_xx C_yy), C the mean inner products (J. Gorodkin,
    "Comparing two K-category assignments by a K-category correlation coefficient", 2004). Delta method for the error.
    """
    classes = np.union1d(predictions, references)
    x, y = _centred_one_hot(predictions, classes), _centred_one_hot(references, classes)
    xy, xx, yy = (np.sum(left * right, axis=1) for left, right in ((x, y), (x, x), (y, y)))
    cxx, cyy = float(np.mean(xx)), float(np.mean(yy))
    if cxx == 0 or cyy == 0:
        return Estimate(0.0, 0.0)
    value = float(np.clip(np.mean(xy) / np.sqrt(cxx * cyy), -1, 1))
    influence = xy / np.sqrt(cxx * cyy) - value / 2 * (xx / cxx + yy / cyy)
    return Estimate(value, float(np.sqrt(np.mean(influence**2) / len(references))))


def pearson(predictions: FloatArray, references: FloatArray) -> Estimate:
    """Pearson's r; (0, 0) when either side is constant.

    Fisher's z = artanh(r) has variance 1 / (n - 3); back on r's scale the standard error is (1 - r^2) / sqrt(n - 3).
    """
    r = _correlation(predictions, references)
    return Estimate(0.0, 0.0) if r is None else Estimate(r, _fisher_stderr(r, 1.0, len(references)))


def spearman(predictions: FloatArray, references: FloatArray) -> Estimate:
    """Spearman's rho: Pearson's r of the ranks, ties sharing their mean rank; (0, 0) when either side is constant.

    Fisher's z with the variance (1 + rho^2 / 2) / (n - 3) of D. Bonett and T. Wright, "Sample size requirements for
    estimating Pearson, Kendall and Spearman correlations", Psychometrika 65 (2000).
    """
    from scipy.stats import rankdata

    rho = _correlation(rankdata(predictions), rankdata(references))
    return Estimate(0.0, 0.0) if rho is None else Estimate(rho, _fisher_stderr(rho, 1 + rho**2 / 2, len(references)))


def _centred_one_hot(labels: IntArray, classes: IntArray) -> FloatArray:
    """One-hot rows (n, classes) less their mean; exactly zero when there is one class."""
    rows = (labels[:, None] == classes).astype(np.float64)
    centred: FloatArray = rows - rows.mean(axis=0)
    return centred


def _correlation(x: npt.NDArray[Any], y: npt.NDArray[Any]) -> float | None:
    """Pearson's r in float64; None when either side is constant."""
    if x.min() == x.max() or y.min() == y.max():
        return None
    a, b = _unit(x.astype(np.float64)), _unit(y.astype(np.float64))
    return float(np.clip(a @ b, -1, 1))


def _unit(x: FloatArray) -> FloatArray:
    """`x` less its mean, of length 1; scaled twice, so that tiny values do not vanish when squared."""
    centred = x - x.mean()
    centred /= np.abs(centred).max()
    unit: FloatArray = centred / np.linalg.norm(centred)
    return unit


def _fisher_stderr(r: float, factor: float, n: int) -> float:
    """(1 - r^2) sqrt(factor / (n - 3)), and no more than UNKNOWN_STDERR."""
    return min(UNKNOWN_STDERR, (1 - r * r) * float(np.sqrt(factor / (n - 3)))) if n > 3 else UNKNOWN_STDERR

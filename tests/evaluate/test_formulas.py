"""The metrics' arithmetic against other formulas, and their standard errors against repeated draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantkit.evaluate.formulas import UNKNOWN_STDERR, accuracy, f1, matthews, pearson, spearman

LABELS = (accuracy, f1, matthews)
SCORES = (pearson, spearman)


def pairs(elements, size=40):
    return st.lists(st.tuples(elements, elements), min_size=1, max_size=size).map(lambda rows: np.array(rows).T)


def test_hand_computed_values():
    predictions, references = np.array([1, 1, 1, 0, 0, 0, 0, 1]), np.array([1, 1, 0, 0, 0, 1, 0, 1])
    # 3 hits, 1 false alarm, 1 miss, 3 true negatives
    assert accuracy(predictions, references) == pytest.approx((6 / 8, math.sqrt(0.75 * 0.25 / 8)))
    assert f1(predictions, references) == pytest.approx((6 / 8, math.sqrt(4 * 3 * 2 * 5) / 64))
    assert matthews(predictions, references).value == pytest.approx((3 * 3 - 1 * 1) / math.sqrt(4 * 4 * 4 * 4))


@given(pairs(st.integers(0, 1)))
def test_binary_labels_agree_with_the_confusion_matrix(rows):
    predictions, references = rows
    tp, fp, fn, tn = (int(np.sum((predictions == p) & (references == r))) for p, r in ((1, 1), (1, 0), (0, 1), (0, 0)))
    assert accuracy(predictions, references).value == pytest.approx((tp + tn) / (tp + tn + fp + fn))
    precision, recall = tp / (tp + fp) if tp + fp else 0.0, tp / (tp + fn) if tp + fn else 0.0
    expected = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    assert f1(predictions, references).value == pytest.approx(expected)
    below = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    assert matthews(predictions, references).value == pytest.approx(
        (tp * tn - fp * fn) / math.sqrt(below) if below else 0.0, abs=1e-12
    )


@given(pairs(st.integers(0, 1)))
def test_matthews_of_two_classes_is_pearsons_r(rows):
    assert matthews(*rows).value == pytest.approx(pearson(*rows.astype(float)).value, abs=1e-12)


def test_matthews_of_three_classes_is_gorodkins_rk():
    predictions, references = np.array([0, 1, 2, 2, 1, 0, 2, 1]), np.array([0, 1, 1, 2, 1, 2, 2, 0])
    # R_K from counts: (c s - sum p_k t_k) / sqrt((s^2 - sum p_k^2) (s^2 - sum t_k^2)), c correct of s
    correct, size = 5, 8
    p, t = np.bincount(predictions), np.bincount(references)
    expected = (correct * size - p @ t) / math.sqrt((size**2 - p @ p) * (size**2 - t @ t))
    assert matthews(predictions, references).value == pytest.approx(expected)


@settings(deadline=None)  # the first call imports scipy.stats
@given(pairs(st.integers(-5, 5).map(float) | st.floats(-1e6, 1e6)))
def test_correlations_agree_with_scipy(rows):
    from scipy import stats

    predictions, references = rows
    if min(np.ptp(predictions), np.ptp(references)) < 1e-3:
        return
    assert pearson(predictions, references).value == pytest.approx(stats.pearsonr(*rows).statistic, abs=1e-9)
    assert spearman(predictions, references).value == pytest.approx(stats.spearmanr(*rows).statistic, abs=1e-9)


def test_correlations_do_not_depend_on_scale():
    draw = np.random.default_rng(3)
    x, y = draw.random(50), draw.random(50)
    assert pearson(x * 1e-200, y * 1e150 + 1).value == pytest.approx(pearson(x, y).value)


@pytest.mark.parametrize("metric", LABELS)
def test_perfect_labels(metric):
    labels = np.array([0, 1, 1, 0, 1])
    assert metric(labels, labels) == pytest.approx((1.0, 0.0))


@pytest.mark.parametrize("metric", SCORES)
def test_perfect_scores(metric):
    scores = np.array([0.5, 4.0, 2.0, 3.0, 1.0])
    assert metric(scores, scores) == pytest.approx((1.0, 0.0))
    assert metric(-scores, scores) == pytest.approx((-1.0, 0.0))


@pytest.mark.parametrize("constant", [0, 1])
def test_one_class_only_has_a_documented_value(constant):
    mixed, same = np.array([0, 1, 1, 0]), np.full(4, constant)
    assert matthews(same, mixed) == matthews(mixed, same) == matthews(same, same) == (0.0, 0.0)
    assert accuracy(same, mixed).value == 0.5
    assert f1(np.zeros(4, int), np.zeros(4, int)) == (0.0, 0.0)
    assert f1(np.zeros(4, int), mixed) == (0.0, 0.0)


@pytest.mark.parametrize("metric", SCORES)
def test_constant_scores_have_a_documented_value(metric):
    mixed, same = np.array([0.0, 1.0, 2.0, 5.0]), np.full(4, 0.1)
    assert metric(same, mixed) == metric(mixed, same) == metric(np.array([1.0]), np.array([2.0])) == (0.0, 0.0)


@pytest.mark.parametrize("metric", SCORES)
def test_correlation_of_three_rows_has_no_known_error(metric):
    assert metric(np.array([1.0, 2.0, 4.0]), np.array([1.0, 3.0, 2.0])).stderr == UNKNOWN_STDERR


@pytest.mark.parametrize("metric", LABELS)
@pytest.mark.parametrize("share", [0.2, 0.5])
def test_errors_of_labels_are_those_of_repeated_draws(metric, share):
    draw = np.random.default_rng(5)

    def rows(n):
        references = (draw.random(n) < share).astype(int)
        return np.where(draw.random(n) < 0.8, references, 1 - references), references

    spread = np.std([metric(*rows(400)).value for _ in range(1500)])
    assert np.mean([metric(*rows(400)).stderr for _ in range(100)]) == pytest.approx(spread, rel=0.08)


def test_error_of_three_class_matthews_is_that_of_repeated_draws():
    draw = np.random.default_rng(6)

    def rows(n):
        references = draw.integers(0, 3, n)
        return np.where(draw.random(n) < 0.6, references, draw.integers(0, 3, n)), references

    spread = np.std([matthews(*rows(400)).value for _ in range(1500)])
    assert np.mean([matthews(*rows(400)).stderr for _ in range(100)]) == pytest.approx(spread, rel=0.08)


@pytest.mark.parametrize("metric", SCORES)
@pytest.mark.parametrize("rho", [0.1, 0.85])
def test_errors_of_correlations_are_those_of_repeated_draws(metric, rho):
    draw = np.random.default_rng(8)

    def rows(n):
        x = draw.standard_normal(n)
        return x, rho * x + math.sqrt(1 - rho**2) * draw.standard_normal(n)

    spread = np.std([metric(*rows(200)).value for _ in range(1500)])
    assert np.mean([metric(*rows(200)).stderr for _ in range(100)]) == pytest.approx(spread, rel=0.08)

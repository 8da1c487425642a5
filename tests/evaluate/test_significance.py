"""Paired tests: exact p-values, seeded intervals, and words that say what can be shown."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantkit.errors import DataError, UnknownNameError
from quantkit.evaluate.accuracy import EvalResult
from quantkit.evaluate.significance import compare, mcnemar, paired_bootstrap


def answers(only_first, only_second, both=0, neither=0):
    """Predictions of two engines that are right as often as told; the true label is always 1."""
    first = [1] * only_first + [0] * only_second + [1] * both + [0] * neither
    second = [0] * only_first + [1] * only_second + [1] * both + [0] * neither
    return np.array(first), np.array(second), np.ones(len(first), int)


@settings(deadline=None)  # the first call imports scipy.stats
@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 60))
def test_mcnemar_agrees_with_the_binomial_test(only_first, only_second, both):
    from scipy.stats import binomtest

    result = mcnemar(*answers(only_first, only_second, both))
    discordant = only_first + only_second
    expected = binomtest(only_first, discordant).pvalue if discordant else 1.0
    assert result.p_value == pytest.approx(expected)
    assert result.difference == pytest.approx((only_second - only_first) / (discordant + both))
    assert result.low <= result.difference <= result.high
    assert result.agreement == pytest.approx(both / (discordant + both))


def test_mcnemar_interval_of_a_known_case():
    result = mcnemar(*answers(10, 20, both=60, neither=10))
    stderr = np.sqrt(30 - 10**2 / 100) / 100
    assert (result.low, result.high) == pytest.approx((0.1 - 1.96 * stderr, 0.1 + 1.96 * stderr))
    assert (result.metric, result.test, result.rows) == ("accuracy", "McNemar exact", 100)


def test_mcnemar_of_many_rows_is_still_exact():
    assert mcnemar(*answers(3000, 3000)).p_value == 1.0
    assert 0 <= mcnemar(*answers(0, 6000)).p_value < 1e-300


def test_words():
    words = mcnemar(*answers(0, 0, both=9)).in_words("fp32", "int8")
    assert words == "int8 and fp32 give the same answer on all 9 rows."
    words = mcnemar(*answers(5, 3, both=864)).in_words("fp32", "int8")
    assert words.startswith("No difference between int8 and fp32 can be shown (accuracy -0.0023, 95 % interval -0.0")
    assert words.endswith("McNemar exact, p = 0.73, 872 rows).")
    assert mcnemar(*answers(20, 3, both=100)).in_words("fp32", "int8").startswith("int8 is worse than fp32 (")
    assert mcnemar(*answers(3, 20, both=100)).in_words("fp32", "int8").startswith("int8 is better than fp32 (")


def regression(n=300, noise=1.0, seed=2):
    draw = np.random.default_rng(seed)
    labels = draw.random(n) * 5
    good = labels + 0.5 * draw.standard_normal(n)
    return good, good + noise * draw.standard_normal(n), labels


@pytest.mark.parametrize("metric", ["pearson", "spearman"])
def test_bootstrap_shows_a_real_difference(metric):
    result = paired_bootstrap(*regression(noise=1.5), metric, resamples=400)
    assert result.shown
    assert result.difference < 0
    assert result.low < result.difference < result.high < 0
    assert result.p_value == pytest.approx(2 / 401)
    assert "int8 is worse than fp32" in result.in_words("fp32", "int8")


def test_bootstrap_does_not_show_what_is_not_there():
    good, _, labels = regression()
    draw = np.random.default_rng(9)
    noise = 0.5 * draw.standard_normal(len(labels))
    result = paired_bootstrap(good, labels + noise, labels, "pearson", resamples=400)
    assert result.low < 0 < result.high
    assert not result.shown
    assert result.in_words("fp32", "int8").startswith("No difference")


def test_bootstrap_is_seeded():
    rows = regression(n=60)
    first = paired_bootstrap(*rows, "pearson", resamples=100)
    assert first == paired_bootstrap(*rows, "pearson", resamples=100)
    assert first.low != paired_bootstrap(*rows, "pearson", resamples=100, seed=1).low


def test_bootstrap_interval_agrees_with_mcnemars():
    rows = answers(30, 12, both=300, neither=58)
    exact, drawn = mcnemar(*rows), paired_bootstrap(*rows, "accuracy")
    assert drawn.difference == pytest.approx(exact.difference)
    assert (drawn.low, drawn.high) == pytest.approx((exact.low, exact.high), abs=0.004)
    assert exact.shown
    assert drawn.shown


def test_standard_errors_are_those_of_the_difference():
    rows = answers(30, 12, both=300, neither=58)
    exact = mcnemar(*rows)
    assert exact.stderr == pytest.approx((exact.high - exact.low) / 2 / 1.96)
    # A bootstrap of the same difference spreads as much, although each accuracy alone spreads twice as much.
    assert paired_bootstrap(*rows, "accuracy").stderr == pytest.approx(exact.stderr, rel=0.1)


def test_bootstrap_of_matthews_spreads_as_repeated_samples_do():
    draw = np.random.default_rng(4)

    def sample(n):
        labels = draw.integers(0, 2, n)
        first = np.where(draw.random(n) < 0.8, labels, 1 - labels)
        return first, np.where(draw.random(n) < 0.9, first, labels), labels

    from quantkit.evaluate.formulas import matthews

    repeated = [matthews(b, t).value - matthews(a, t).value for a, b, t in (sample(500) for _ in range(400))]
    drawn = paired_bootstrap(*sample(500), "matthews", resamples=400)
    assert drawn.stderr == pytest.approx(np.std(repeated), rel=0.25)
    assert drawn.low < np.mean(repeated) < drawn.high


def test_agreement_of_scores_is_nearness_and_not_equality():
    labels = np.linspace(0, 5, 10)
    second = labels + np.array([0.05] * 8 + [0.3] * 2)
    result = paired_bootstrap(labels, second, labels, "pearson", resamples=20)
    assert (result.agreement, result.identical) == (0.8, False)
    assert "same answer" not in paired_bootstrap(labels, labels + 0.05, labels, "pearson").in_words("fp32", "int8")


def test_json_says_it_in_words():
    value = mcnemar(*answers(5, 3, both=864)).as_json("fp32", "int8")
    assert value["words"].startswith("No difference between int8 and fp32 can be shown")
    assert value["agreement"] == pytest.approx(864 / 872)


def test_equal_answers_differ_by_nothing():
    good, _, labels = regression(n=50)
    result = paired_bootstrap(good, good, labels, "spearman", resamples=50)
    assert (result.difference, result.low, result.high, result.p_value, result.agreement) == (0, 0, 0, 1, 1)


def test_compare_takes_the_test_that_fits_the_task():
    def result(predictions):
        return EvalResult({}, np.zeros((len(predictions), 1), np.float32), predictions)

    first, second, labels = answers(5, 3, both=20)
    classes = SimpleNamespace(labels=("a", "b"), metrics=("accuracy", "f1"))
    assert compare(result(first), result(second), labels, classes) == mcnemar(first, second, labels)
    truth = np.arange(len(labels)) % 2
    correlated = SimpleNamespace(labels=("a", "b"), metrics=("matthews", "accuracy"))
    expected = paired_bootstrap(first, second, truth, "matthews", resamples=50)
    assert compare(result(first), result(second), truth, correlated, resamples=50) == expected
    good, bad, scores = regression(n=40)
    task = SimpleNamespace(labels=None, metrics=("pearson", "spearman"))
    assert compare(result(good), result(bad), scores, task) == paired_bootstrap(good, bad, scores, "pearson")


def test_rows_must_be_the_same():
    for first, second, labels in (([1], [1, 0], [1, 0]), ([], [], []), ([[1]], [[1]], [[1]])):
        with pytest.raises(DataError, match="same rows three times"):
            mcnemar(first, second, labels)
    with pytest.raises(UnknownNameError, match="pearson"):
        paired_bootstrap([1], [1], [1], "pearsons")

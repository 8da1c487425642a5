"""The auto method: what it chooses for which tensor, and what it says about it."""

from __future__ import annotations

import numpy as np
import pytest

import quantkit
from quantkit.calibrate import calibrate_histograms, curves, make_calibrator
from quantkit.calibrate.auto import AutoCalibrator, candidate_ranges, histogram_sqnr_db, share_rounded_to_zero
from quantkit.collect.histogram import MASK_LOGITS, Histogram
from quantkit.errors import CalibrationError, InputError
from quantkit.qparams import fake_quantize, scale_from_amax, sqnr_db

SEED = 5


def gauss(n: int = 50_000) -> np.ndarray:
    return np.random.default_rng(SEED).standard_normal(n).astype(np.float32)


def masked_scores(low: float = -10000.0) -> tuple[np.ndarray, np.ndarray]:
    """Scores, and the same with a third of them behind an additive mask."""
    scores = 6 * gauss()
    hidden = np.random.default_rng(SEED).random(scores.size) < 1 / 3
    return scores, np.where(hidden, scores + np.float32(low), scores).astype(np.float32)


def histogram(values: np.ndarray, mode: str = "tensorrt", mask_logits: float | None = None) -> Histogram:
    return Histogram.empty(mode, mask_logits).updated(values)


@pytest.mark.parametrize("mode", ["tensorrt", "pow2"])
@pytest.mark.parametrize("draw", [np.abs, np.negative, lambda x: x**3, np.exp], ids=["half", "gauss", "cubed", "log"])
def test_the_estimate_from_the_histogram_is_the_round_trips_sqnr(draw, mode):
    sample = draw(gauss())
    h = histogram(sample, mode)
    for share in (1.0, 0.5, 0.2):
        amax = share * h.amax
        real = sqnr_db(sample, fake_quantize(sample, scale_from_amax(amax)))
        assert histogram_sqnr_db(h, amax) == pytest.approx(real, abs=0.6 / share)


def test_exact_zeros_cost_nothing():
    values = gauss()
    with_zeros = histogram(np.concatenate([values, np.zeros(500_000, np.float32)]))
    assert histogram_sqnr_db(with_zeros, 2.0) == pytest.approx(histogram_sqnr_db(histogram(values), 2.0), abs=1e-9)
    assert share_rounded_to_zero(with_zeros, 2.0) == share_rounded_to_zero(histogram(values), 2.0)


def test_no_candidate_is_better_by_more_than_the_margin(histogram):
    chosen = make_calibrator("auto").compute(histogram)
    best = max(histogram_sqnr_db(histogram, amax) for amax in candidate_ranges(histogram).values())
    assert histogram_sqnr_db(histogram, chosen.amax) >= best - 1.0


def test_minmax_is_kept_within_the_margin_and_left_beyond_it():
    h = histogram(gauss())
    ranges = candidate_ranges(h)
    gain = max(histogram_sqnr_db(h, amax) for amax in ranges.values()) - histogram_sqnr_db(h, ranges["minmax"])
    assert gain > 0
    kept = AutoCalibrator(margin_db=gain + 0.01).compute(h)
    left = AutoCalibrator(margin_db=gain - 0.01).compute(h)
    assert kept.amax == h.amax
    assert kept.reason.startswith("minmax, ")
    assert left.amax == ranges["mse"] < h.amax
    assert left.reason.startswith("mse, ")
    assert "minmax" in left.reason


def test_a_heavy_tail_is_said_and_clipped_even_within_the_margin():
    values = np.concatenate([gauss(), np.array([40.0, 41.0, 47.0], np.float32)])
    h = histogram(values)
    best = max(candidate_ranges(h).values(), key=lambda amax: histogram_sqnr_db(h, amax))
    chosen = AutoCalibrator(margin_db=100).compute(h)
    assert chosen.amax == best < h.amax
    assert "heavy tail (max 14" in chosen.reason
    assert AutoCalibrator(margin_db=100, heavy_tail=1000).compute(h).amax == h.amax


def test_a_range_that_outliers_rule_says_what_it_costs():
    # A few large values hold nearly all of the power, so they must be kept, and the rest rounds to 0.
    values = np.concatenate([gauss(), np.full(20, 900.0, np.float32)])
    chosen = AutoCalibrator().compute(histogram(values))
    assert chosen.amax > 890
    real = float(np.mean(fake_quantize(gauss(), chosen.scale) == 0))
    assert chosen.reason.endswith("% of the values become 0")
    assert float(chosen.reason.split("; ")[-1].split()[0]) == pytest.approx(100 * real, abs=0.2)


def test_probabilities_have_the_range_one_whatever_was_seen():
    seen = histogram(np.abs(gauss() / 10).astype(np.float32))
    found = calibrate_histograms({"probs": seen, "other": seen}, AutoCalibrator(), kinds={"probs": "softmax"})
    assert found["probs"].scale == np.float32(1) / np.float32(127)
    assert "fixed at 1" in found["probs"].reason
    assert found["other"].amax <= seen.amax < 1


@pytest.mark.parametrize("low", [-10000.0, -1e9, -3.4e38])
def test_masked_logits_take_the_range_of_the_scores_before_the_mask(low):
    scores, masked = masked_scores(low)
    histograms = {"scores": histogram(scores), "masked": histogram(masked)}
    kinds = {"masked": "masked logits", "scores": "attention scores"}
    found = calibrate_histograms(histograms, AutoCalibrator(), kinds=kinds, unmasked={"masked": "scores"})
    assert found["masked"].amax == found["scores"].amax < 40
    assert "range of scores before the mask" in found["masked"].reason
    assert found["masked"].method == "auto"


def test_infinities_of_a_mask_do_no_harm_when_the_scores_are_known():
    scores, _ = masked_scores()
    masked = np.where(scores < -6, -np.inf, scores).astype(np.float32)
    histograms = {"scores": histogram(scores), "masked": histogram(masked)}
    kinds, unmasked = {"masked": "masked logits"}, {"masked": "scores"}
    found = calibrate_histograms(histograms, AutoCalibrator(), kinds=kinds, unmasked=unmasked)
    assert found["masked"].amax == found["scores"].amax
    with pytest.raises(CalibrationError, match="'masked'"):
        calibrate_histograms(histograms, AutoCalibrator(), kinds=kinds)
    with pytest.raises(CalibrationError, match="'masked'"):
        calibrate_histograms(histograms, make_calibrator("minmax"), kinds=kinds, unmasked=unmasked)


def test_mask_values_that_were_set_apart_leave_the_rule_to_the_scores():
    _, masked = masked_scores()
    visible = masked[masked > MASK_LOGITS]
    apart = histogram(masked, "pow2", MASK_LOGITS)
    found = AutoCalibrator().compute_kind(apart, "masked logits")
    assert found.amax == AutoCalibrator().compute(histogram(visible, "pow2")).amax < 40
    assert f"{masked.size - visible.size} set apart" in found.reason


def test_masked_logits_alone_take_the_bins_beside_the_mask():
    _, masked = masked_scores()
    h = histogram(masked)
    found = AutoCalibrator().compute_kind(h, "masked logits")
    largest = np.abs(masked[masked > MASK_LOGITS]).max()
    assert largest <= found.amax <= largest + h.bin_width
    # With -3.4e38 one bin holds all scores; the largest positive one is still known.
    found = AutoCalibrator().compute_kind(histogram(masked_scores(-3.4e38)[1]), "masked logits")
    assert found.amax == masked[masked > MASK_LOGITS].max()


def test_masked_logits_of_data_without_padding_are_ordinary():
    scores, _ = masked_scores()
    h = histogram(scores)
    assert AutoCalibrator().compute_kind(h, "masked logits").amax == AutoCalibrator().compute(h).amax


def test_without_a_kind_a_mask_is_a_value_like_any_other():
    _, masked = masked_scores()
    assert AutoCalibrator().compute(histogram(masked)).amax > 9000


def test_the_kind_is_told_in_the_reason():
    assert AutoCalibrator().compute_kind(histogram(gauss()), "layer norm").reason.startswith("layer norm: ")


@pytest.mark.parametrize("parameters", [{"margin_db": -1}, {"heavy_tail": 0.5}, {"margin_db": float("nan")}])
def test_parameters_out_of_range_are_refused(parameters):
    with pytest.raises(InputError, match=next(iter(parameters))):
        AutoCalibrator(**parameters)


def test_arrays_without_a_graph_are_calibrated_too():
    batches = [{"x": gauss(), "zeros": np.zeros(9, np.float32)}]
    table = quantkit.calibrate_arrays(batches, method="auto", margin_db=1.0)
    assert (table.algorithm, table.parameters) == ("auto", {"margin_db": 1.0, "heavy_tail": 4.0})
    assert table["x"].reason
    assert (table["zeros"].scale, table["zeros"].reason) == (0, "every value was zero")
    assert "EntropyCalibration2" in table.dumps("tensorrt")


def test_the_curves_of_both_searches_are_at_hand():
    h = histogram(gauss())
    found = quantkit.curves(h)
    assert set(found) == {"kl", "mse"}
    for kind, method in (("kl", "entropy"), ("mse", "mse")):
        curve = found[kind]
        amax = make_calibrator(method).compute(h).amax
        assert np.float32(curve.candidates[np.argmin(curve.losses)]) == pytest.approx(amax)
        assert curve.candidates.size > 1900
    assert curves(histogram(np.zeros(3, np.float32))) == {}

"""The MSE search: its curve against a round trip of every bin, and that nothing beats its choice."""

from __future__ import annotations

import numpy as np
import pytest

from quantkit.calibrate.minmax import MinMaxCalibrator
from quantkit.calibrate.mse import MSECalibrator, mse_curve
from quantkit.collect.histogram import Histogram
from quantkit.qparams import fake_quantize


def by_hand(h, amax):
    """Mean squared error of the INT8 round trip: zeros exact, all else at its bin's centre, float64."""
    centres = (np.arange(2048) + 0.5) * h.bin_width
    counts = h.counts.astype(np.float64)
    counts[0] -= h.zero_count
    step = amax / 127
    error = np.clip(np.rint(centres / step), 0, 127) * step - centres
    return float(np.sum(counts * error**2) / h.total)


def test_the_curve_is_the_round_trip(histogram):
    candidates, losses = mse_curve(histogram)
    assert candidates[-1] == histogram.amax
    for i in [*range(0, candidates.size, 151), candidates.size - 1]:
        assert losses[i] == pytest.approx(by_hand(histogram, candidates[i]), rel=1e-8, abs=1e-18 * histogram.amax**2)


def test_no_candidate_beats_the_choice(histogram):
    result = MSECalibrator().compute(histogram, curve=True)
    assert by_hand(histogram, result.amax) <= result.curve.losses.min() * (1 + 1e-5) + 1e-15 * histogram.amax**2


def test_no_worse_than_minmax_on_the_values_themselves(sample, histogram):
    def error(calibrator):
        return float(np.mean((fake_quantize(sample, calibrator.compute(histogram).scale) - sample) ** 2))

    # The bin's centre stands for its values: that is the slack.
    assert error(MSECalibrator()) <= 1.02 * error(MinMaxCalibrator()) + histogram.bin_width**2 / 12


def test_zeros_do_not_pull_the_threshold(sample):
    dense = Histogram.empty("tensorrt").updated(sample)
    sparse = dense.updated(np.zeros(10 * sample.size, np.float32))
    assert MSECalibrator().compute(sparse).amax == MSECalibrator().compute(dense).amax


def test_a_lone_outlier_is_clipped_only_if_that_pays():
    r = np.random.default_rng(0)
    body = r.standard_normal(1_000_000).astype(np.float32)
    far = MSECalibrator().compute(Histogram.empty("tensorrt").updated(np.append(body, np.float32(20)))).amax
    assert 4 < far < 20
    few = MSECalibrator().compute(Histogram.empty("tensorrt").updated(np.append(body[:100], np.float32(20)))).amax
    assert few == pytest.approx(20, rel=0.1)

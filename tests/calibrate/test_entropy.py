"""The KL search: its curve against the definition written in loops, its ties and its exclusions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from quantkit.calibrate.entropy import EntropyCalibrator, kl_curve, kl_divergence
from quantkit.qparams import scale_from_amax


def by_hand(counts, kept):
    """KL divergence of one candidate in plain Python: no arrays, no prefix sums."""
    bins = [float(c) for c in counts]
    bins[0] = bins[1]
    outliers = sum(bins[kept:])
    mass, filled = [0.0] * 128, [0] * 128
    for j in range(kept):
        mass[j * 128 // kept] += bins[j]
        filled[j * 128 // kept] += bins[j] > 0
    p = bins[:kept]
    p[-1] += outliers
    q = [mass[j * 128 // kept] / filled[j * 128 // kept] if bins[j] > 0 else 0.0 for j in range(kept)]
    if sum(q) == 0 or (p[-1] > 0 and q[-1] == 0):
        return math.inf
    total_p, total_q = sum(p), sum(q)
    return sum(a / total_p * math.log((a / total_p) / (b / total_q)) for a, b in zip(p, q, strict=True) if a > 0)


def test_the_curve_is_the_definition(histogram):
    losses = kl_curve(histogram.counts)
    assert losses.shape == (1921,)
    for kept in range(128, 2049, 97):
        filled = np.count_nonzero(histogram.counts[1:kept]) + (histogram.counts[1] > 0)
        if filled == 1:
            continue
        expected = by_hand(histogram.counts.tolist(), kept)
        assert losses[kept - 128] == pytest.approx(expected, abs=1e-11)
        assert kl_divergence(histogram.counts, kept) == pytest.approx(expected, abs=1e-12)


def test_no_candidate_beats_the_choice(histogram):
    result = EntropyCalibrator().compute(histogram, curve=True)
    chosen = np.argmin(np.abs(result.curve.candidates - result.amax))
    assert result.curve.losses[chosen] <= result.curve.losses.min() + 1e-12
    assert np.all(result.curve.losses >= 0)


def test_thresholds_are_half_a_bin_beyond_the_kept_bins(histogram):
    candidates = EntropyCalibrator().compute(histogram, curve=True).curve.candidates
    assert candidates[0] == 128.5 * histogram.bin_width
    assert candidates[-1] == 2048.5 * histogram.bin_width


def test_the_last_of_equal_candidates_wins(from_counts):
    # Each value has a group of its own from a certain candidate on: all those lose nothing.
    h = from_counts({100: 500, 900: 300, 2000: 70}, amax=2000.9)
    losses = kl_curve(h.counts)
    assert np.count_nonzero(losses == 0) > 1
    assert EntropyCalibrator().compute(h).amax == 2048.5


def test_bin_zero_counts_like_bin_one(from_counts):
    few = from_counts({0: 1, 1: 40, 50: 30, 600: 20, 2047: 3})
    many = from_counts({0: 10**6, 1: 40, 50: 30, 600: 20, 2047: 3})
    assert EntropyCalibrator().compute(few) == EntropyCalibrator().compute(many)


def test_the_threshold_may_exceed_the_largest_value(from_counts):
    h = from_counts({2047: 5})
    result = EntropyCalibrator().compute(h)
    assert result.amax == 2048.5 > h.amax
    assert result.scale == scale_from_amax(2048.5)


def test_an_empty_last_bin_with_values_beyond_is_ruled_out(from_counts):
    losses = kl_curve(from_counts({10: 5, 20: 3, 200: 4, 2047: 1}).counts)
    assert np.isfinite(losses[201 - 128])
    assert np.all(np.isinf(losses[: 201 - 128]))
    assert np.all(np.isinf(losses[202 - 128 : 2048 - 128]))


def test_the_counts_unit_does_not_matter(histogram):
    plain, thousandfold = kl_curve(histogram.counts), kl_curve(histogram.counts * 1000)
    finite = np.isfinite(plain)
    assert np.array_equal(finite, np.isfinite(thousandfold))
    assert thousandfold[finite] == pytest.approx(plain[finite], abs=1e-11)

"""The Legacy calibrator's two ways to a threshold, on histograms laid out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from quantkit.calibrate.legacy import LOGF_ODD, LegacyCalibrator, log_heights, quantile_threshold, regression_threshold


def test_the_quantile_is_the_upper_edge_of_its_bin(from_counts):
    h = from_counts({10: 90, 100: 9, 2047: 1})
    assert quantile_threshold(h, 0.5) == 11.0
    assert quantile_threshold(h, 0.95) == 101.0
    assert quantile_threshold(h, 0.995) == 2048.0


def test_a_sum_equal_to_the_quantile_is_not_enough(from_counts):
    h = from_counts({10: 1, 100: 2, 2047: 1})  # sums 0.25, 0.75, 1: exact in binary
    assert quantile_threshold(h, 0.25) == 101.0
    assert quantile_threshold(h, math.nextafter(0.25, 0)) == 11.0


def test_quantile_one_gives_the_range_unless_the_sum_rounds_above_one(from_counts):
    exact = from_counts({10: 1, 500: 3}, amax=1500.0)
    assert quantile_threshold(exact, 1.0) == 2048.0
    tenths = from_counts(dict.fromkeys(range(1, 50), 1), amax=1500.0)
    running = 0.0
    for _ in range(49):
        running += 1 / 49
    assert quantile_threshold(tenths, 1.0) == (50.0 if running > 1 else 2048.0)


def test_quantile_zero_is_the_first_bin_that_holds_anything(from_counts):
    assert quantile_threshold(from_counts({7: 1, 2047: 9}), 0.0) == 8.0


def exponential(decay, peak=5000.0, first=1):
    counts = {i: round(peak * math.exp(-(i - first) / decay)) for i in range(first, 2048)}
    return {i: c for i, c in counts.items() if c}


def test_the_line_through_an_exponential_ends_where_about_one_count_is_left(from_counts):
    result = LegacyCalibrator(0.5, 0.6).compute(from_counts(exponential(100.0, peak=1e6)))
    # ln(10^6) - 0.694 high at the centre of bin 1, falling by 1 in 100 bins.
    assert result.reason == "regression"
    assert result.amax == pytest.approx(1.5 + 100 * (math.log(1e6) - 0.694), rel=1e-4)


def test_bin_zero_and_bins_below_the_peak_take_no_part(from_counts):
    counts = exponential(100.0, first=40)
    plain = regression_threshold(from_counts(counts), 0.3)
    assert regression_threshold(from_counts(counts | {0: 10**7, 5: 400, 30: 4999}), 0.3) == plain


def test_a_cutoff_of_one_leaves_one_point_and_no_line(from_counts):
    h = from_counts(exponential(100.0))
    assert math.isnan(regression_threshold(h, 1.0))
    assert LegacyCalibrator(0.9, 1.0).compute(h).reason == "quantile"


@pytest.mark.parametrize(
    "counts",
    [
        {2047: 5},  # a single bin
        {1: 10, 2: 10},  # level: the line never comes down
        {100: 50, 2047: 49},  # so slow that it ends beyond twice the maximum
        {1: 1, 2: 1, 2047: 1},  # counts of one do not count
    ],
)
def test_without_a_believable_line_the_quantile_is_used(from_counts, counts):
    result = LegacyCalibrator(0.4, 0.0).compute(from_counts(counts))
    assert result.reason == "quantile"
    assert result.amax == quantile_threshold(from_counts(counts), 0.4)


def test_the_line_decides_whatever_the_quantile(from_counts):
    h = from_counts(exponential(60.0))
    assert LegacyCalibrator(0.1, 0.5).compute(h).amax == LegacyCalibrator(0.9999, 0.5).compute(h).amax


def test_log_heights_are_float32_and_order_like_counts():
    counts = np.arange(300_000)
    heights = log_heights(counts)
    assert np.array_equal(heights, heights.astype(np.float32))
    assert np.all(np.diff(heights) >= 0)
    assert heights[0] == -np.float32(0.694)
    assert heights[1] < 0 < heights[2]
    assert heights == pytest.approx(np.log(counts + 1.0) - 0.694, abs=1e-6)


def test_the_odd_logarithms_are_nearly_ties():
    exact = np.log(LOGF_ODD.astype(np.float64))
    below = np.nextafter(exact.astype(np.float32), np.float32(-1)).astype(np.float64)
    unit = np.spacing(exact.astype(np.float32)).astype(np.float64)
    assert np.all(np.abs(((exact - below) / unit) % 1 - 0.5) < 0.003)


def test_the_odd_logarithms_are_those_of_the_c_library():
    ctypes = pytest.importorskip("ctypes")
    try:
        library = ctypes.CDLL("libm.so.6")
    except OSError:
        pytest.skip("no glibc here")
    logf = library.logf
    logf.restype, logf.argtypes = ctypes.c_float, [ctypes.c_float]
    arguments = [int(n) + d for n in LOGF_ODD for d in (-1, 0, 1)]
    expected = np.array([logf(a) for a in arguments], np.float32) - np.float32(0.694)
    assert np.array_equal(log_heights(np.array(arguments) - 1), expected)

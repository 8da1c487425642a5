"""Percentiles: at least the share asked for, decimals taken as written."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from quantkit.calibrate.minmax import MinMaxCalibrator
from quantkit.calibrate.percentile import PercentileCalibrator


@pytest.mark.parametrize("percentile", [0.0, 50.0, 99.0, 99.9, 99.99, 99.999])
def test_at_least_that_share_lies_within(percentile, sample, histogram):
    amax = PercentileCalibrator(percentile).compute(histogram).amax
    magnitudes = np.abs(sample)
    slack = histogram.bin_width * 1e-3  # a bin's edge is a float32 product: a value may fall on its other side
    needed = Fraction(str(percentile)) * sample.size / 100
    assert np.count_nonzero(magnitudes <= amax + slack) >= needed
    assert np.count_nonzero(magnitudes < amax - histogram.bin_width - slack) < max(needed, 1)


def test_one_hundred_is_minmax(histogram):
    assert PercentileCalibrator(100).compute(histogram).amax == MinMaxCalibrator().compute(histogram).amax


def test_never_beyond_the_largest_value(histogram):
    assert PercentileCalibrator(99.99999).compute(histogram).amax <= histogram.amax


def test_decimals_mean_what_they_say(from_counts):
    # 99.99 per cent of 10,000 is 9,999 values; the double nearest to 0.9999 times 10,000 is a little more.
    h = from_counts({10: 9_999, 2047: 1})
    assert PercentileCalibrator(99.99).compute(h).amax == 11.0
    assert PercentileCalibrator(99.991).compute(h).amax == 2048.0


def test_percentiles_rise(histogram):
    amax = [PercentileCalibrator(p).compute(histogram).amax for p in (0, 10, 50, 90, 99, 99.9, 100)]
    assert amax == sorted(amax)

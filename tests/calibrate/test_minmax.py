"""MinMax keeps the largest magnitude to the bit."""

from __future__ import annotations

import numpy as np

from quantkit.calibrate.minmax import MinMaxCalibrator


def test_amax_is_the_largest_magnitude(sample, histogram):
    assert MinMaxCalibrator().compute(histogram).amax == float(np.abs(sample).max())

"""Every scale that TensorRT 8.6 recorded is reproduced bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from quantkit.calibrate import calibrate_histograms, make_calibrator

RUNS = {
    "minmax_nb1": ("minmax", {}),
    "minmax_nb6": ("minmax", {}),
    "entropy2_nb1": ("entropy", {}),
    "entropy2_nb2": ("entropy", {}),
    "entropy2_nb6": ("entropy", {}),
    "legacy_q0.9999_c1.0_nb1": ("legacy", {"quantile": 0.9999, "regression_cutoff": 1.0}),
    "legacy_q0.9999_c1.0_nb6": ("legacy", {"quantile": 0.9999, "regression_cutoff": 1.0}),
    "legacy_q0.999_c1.0_nb6": ("legacy", {"quantile": 0.999, "regression_cutoff": 1.0}),
    "legacy_q0.99_c1.0_nb6": ("legacy", {"quantile": 0.99, "regression_cutoff": 1.0}),
    "legacy_q1.0_c1.0_nb6": ("legacy", {"quantile": 1.0, "regression_cutoff": 1.0}),
    "legacy_q0.9999_c0.9_nb6": ("legacy", {"quantile": 0.9999, "regression_cutoff": 0.9}),
    "legacy_q0.9999_c0.5_nb6": ("legacy", {"quantile": 0.9999, "regression_cutoff": 0.5}),
    "legacy_q0.999_c0.5_nb6": ("legacy", {"quantile": 0.999, "regression_cutoff": 0.5}),
    "legacy_q0.99_c0.1_nb6": ("legacy", {"quantile": 0.99, "regression_cutoff": 0.1}),
    "legacy_q0.99_c0.0_nb6": ("legacy", {"quantile": 0.99, "regression_cutoff": 0.0}),
    "legacy_q0.5_c0.5_nb6": ("legacy", {"quantile": 0.5, "regression_cutoff": 0.5}),
}


@pytest.mark.shared
def test_the_list_of_runs_is_complete(recorded_scales):
    assert set(recorded_scales) == set(RUNS)


@pytest.mark.shared
@pytest.mark.parametrize("run", RUNS)
def test_scales_are_tensorrts(run, recorded_scales, recorded_histograms):
    method, parameters = RUNS[run]
    histograms = recorded_histograms[int(run[-1])]
    thresholds = calibrate_histograms(histograms, make_calibrator(method, **parameters))
    recorded = recorded_scales[run]
    assert len(recorded) == 150
    different = {n: (thresholds[n].scale, s) for n, s in recorded.items() if thresholds[n].scale != s}
    assert not different
    assert all(isinstance(thresholds[n].scale, np.float32) for n in recorded)

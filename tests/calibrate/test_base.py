"""What holds for every calibrator: purity, scaling, what is refused, what the registry says."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys

import numpy as np
import pytest

from quantkit.calibrate import CALIBRATORS, Curve, calibrate_histograms, make_calibrator
from quantkit.calibrate.base import threshold
from quantkit.collect.histogram import Histogram
from quantkit.errors import CalibrationError, InputError, UnknownNameError

METHODS = {
    "auto": {},
    "minmax": {},
    "entropy": {},
    "mse": {},
    "percentile": {"percentile": 99.9},
    "legacy": {"quantile": 0.999},
}
VARIANTS = [*METHODS.items(), ("legacy", {"quantile": 0.999, "regression_cutoff": 0.5})]
every_method = pytest.mark.parametrize(("method", "parameters"), VARIANTS)


def test_every_registered_method_is_tested():
    assert set(CALIBRATORS) == set(METHODS)


@every_method
def test_compute_changes_nothing_and_repeats_itself(method, parameters, histogram):
    before = histogram.counts.copy()
    calibrator = make_calibrator(method, **parameters)
    first, second = calibrator.compute(histogram), calibrator.compute(histogram)
    assert np.array_equal(histogram.counts, before)
    assert first == second
    assert first.amax > 0
    assert first.method == method
    assert first.amax == float(np.float32(first.amax))
    assert first.scale == np.float32(np.float32(first.amax) / np.float32(127))


@every_method
@pytest.mark.parametrize("power", [-40, -1, 1, 7, 40])
def test_a_power_of_two_scales_the_threshold_exactly(method, parameters, power, sample):
    factor = np.float32(2.0**power)
    calibrator = make_calibrator(method, **parameters)
    plain = calibrator.compute(Histogram.empty("tensorrt").updated(sample))
    scaled = calibrator.compute(Histogram.empty("tensorrt").updated(sample * factor))
    assert scaled.amax == plain.amax * float(factor)


@every_method
def test_the_sign_of_the_values_does_not_matter(method, parameters, sample):
    calibrator = make_calibrator(method, **parameters)
    mirrored = calibrator.compute(Histogram.empty("tensorrt").updated(-sample))
    assert mirrored == calibrator.compute(Histogram.empty("tensorrt").updated(sample))


@every_method
def test_all_zero_has_threshold_and_scale_zero(method, parameters):
    zeros = Histogram.empty("tensorrt").updated(np.zeros(100, np.float32))
    result = make_calibrator(method, **parameters).compute(zeros, curve=True)
    assert result.amax == 0.0
    assert result.scale == np.float32(0)
    assert result.reason == "every value was zero"


@every_method
@pytest.mark.parametrize("value", [3.0, 1e-30, 1e30])
def test_a_constant_is_kept(method, parameters, value):
    constant = Histogram.empty("tensorrt").updated(np.full(1000, value, np.float32))
    result = make_calibrator(method, **parameters).compute(constant)
    assert float(np.float32(value)) <= result.amax <= value * 2048.5 / 2048 * (1 + 1e-6)


@every_method
@pytest.mark.parametrize(("bad", "words"), [(np.nan, "1 NaN and 0 Inf"), (np.inf, "0 NaN and 1 Inf")])
def test_nan_and_inf_are_refused_by_name_and_count(method, parameters, bad, words):
    values = np.append(np.arange(9, dtype=np.float32), np.float32(bad))
    histograms = {"layer0.attention.scores": Histogram.empty("tensorrt").updated(values)}
    calibrator = make_calibrator(method, **parameters)
    with pytest.raises(CalibrationError, match=words) as raised:
        calibrate_histograms(histograms, calibrator)
    assert "'layer0.attention.scores'" in str(raised.value)
    assert "among 10 values" in str(raised.value)
    with pytest.raises(CalibrationError, match=words):
        calibrator.compute(histograms["layer0.attention.scores"])


@every_method
def test_nothing_seen_is_refused(method, parameters):
    with pytest.raises(CalibrationError, match=r"'empty'.*no value"):
        calibrate_histograms({"empty": Histogram.empty("tensorrt")}, make_calibrator(method, **parameters))


def test_a_threshold_beyond_float32_is_refused():
    with pytest.raises(CalibrationError, match="exceeds float32"):
        threshold(3.5e38, "entropy")


@every_method
def test_only_a_search_has_a_curve(method, parameters, histogram):
    calibrator = make_calibrator(method, **parameters)
    assert calibrator.compute(histogram).curve is None
    result = calibrator.compute(histogram, curve=True)
    kinds = {"entropy": "kl", "mse": "mse"}
    if method in kinds:
        assert isinstance(result.curve, Curve)
        assert result.curve.kind == kinds[method]
        assert result.curve.candidates.shape == result.curve.losses.shape
        assert result.curve.candidates.dtype == result.curve.losses.dtype == np.float64
        assert np.all(np.diff(result.curve.candidates) > 0)
        assert np.min(np.abs(result.curve.candidates - result.amax)) <= 1e-6 * result.amax
    else:
        assert result.curve is None


@pytest.mark.parametrize("method", list(METHODS))
def test_defaults_in_the_docstring_are_those_of_the_code(method):
    cls = CALIBRATORS[method]
    for field in dataclasses.fields(cls):
        stated = re.search(rf"^ +{field.name}: (?s:.*?)default ([0-9.]*[0-9])", cls.__doc__, re.MULTILINE)
        assert stated, f"{method}: no default stated for {field.name}"
        assert float(stated[1]) == field.default


def test_thresholds_keep_the_order_of_the_histograms(histogram):
    histograms = dict.fromkeys(("z", "a", "m"), histogram)
    assert list(calibrate_histograms(histograms, make_calibrator("minmax"))) == ["z", "a", "m"]


def test_an_unknown_method_has_a_guess():
    with pytest.raises(UnknownNameError, match="Did you mean entropy"):
        make_calibrator("entropi")


def test_an_unknown_parameter_has_a_guess():
    with pytest.raises(InputError, match="takes percentile") as raised:
        make_calibrator("percentile", percentil=99)
    assert raised.value.hint == "Did you mean percentile?"
    with pytest.raises(InputError, match="takes none"):
        make_calibrator("minmax", percentile=99)


@pytest.mark.parametrize("value", [-0.1, 100.5, float("nan"), "99", None, True])
def test_a_percentile_out_of_range_is_refused(value):
    with pytest.raises(InputError, match="percentile must be a number from 0 to 100"):
        make_calibrator("percentile", percentile=value)


@pytest.mark.parametrize("name", ["quantile", "regression_cutoff"])
@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan"), "1", None])
def test_a_legacy_parameter_out_of_range_is_refused(name, value):
    with pytest.raises(InputError, match=f"{name} must be a number from 0 to 1"):
        make_calibrator("legacy", **{name: value})


def test_calibrators_are_values():
    assert make_calibrator("legacy", quantile=0.5) == make_calibrator("legacy", quantile=0.5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_calibrator("legacy").quantile = 0.5


def test_importing_the_room_loads_nothing_heavy():
    code = "import sys, quantkit.calibrate as c; c.make_calibrator('entropy'); print(sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for module in ("onnx", "openvino", "onnxruntime", "transformers", "scipy", "numba"):
        assert f"'{module}'" not in loaded

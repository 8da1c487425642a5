"""INT8 arithmetic, against ONNX's definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantkit import qparams


def test_quantize_is_onnx_quantizelinear_within_127():
    onnx = pytest.importorskip("onnx")
    from onnx import helper, reference

    x = np.linspace(-3, 3, 1001, dtype=np.float32)
    scale = np.float32(0.02)
    node = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"])
    info = [helper.make_tensor_value_info(n, t, None) for n, t in (("x", 1), ("s", 1), ("z", 3))]
    out = helper.make_tensor_value_info("y", onnx.TensorProto.INT8, None)
    model = helper.make_model(helper.make_graph([node], "g", info, [out]))
    (expected,) = reference.ReferenceEvaluator(model).run(None, {"x": x, "s": scale, "z": np.int8(0)})
    assert np.array_equal(qparams.quantize(x, scale), np.maximum(expected, -127))


def test_halves_round_to_even():
    assert qparams.quantize([0.5, 1.5, 2.5, -0.5, -1.5], 1.0).tolist() == [0, 2, 2, 0, -2]


@given(st.floats(2.0**-100, 2.0**100, width=32))
def test_scale_and_threshold_are_inverse_to_one_rounding(amax):
    back = qparams.amax_from_scale(qparams.scale_from_amax(amax))
    assert abs(float(back) - amax) <= 2e-7 * amax


def test_a_scale_of_zero_gives_zeros():
    assert not qparams.quantize(np.ones(3), 0).any()


def test_sqnr_of_known_noise():
    assert qparams.sqnr_db([1.0, 1.0], [1.0, 1.0]) == math.inf
    assert qparams.sqnr_db([10.0], [9.0]) == pytest.approx(20.0)
    assert qparams.sqnr_from_power(0.0, 1.0) == -math.inf


def test_weight_scales_by_channel():
    weight = np.array([[1.0, -254.0, 0.0], [-2.0, 5.0, 0.0]], np.float32)
    assert qparams.weight_scales(weight, 1).tolist() == [np.float32(2 / 127), 2.0, 1.0]
    assert qparams.weight_scales(weight, 0).shape == (2,)

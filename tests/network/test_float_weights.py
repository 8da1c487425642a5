"""Weights as float constants: the same codes come out of the QuantizeLinear."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from quantkit.network.float_weights import with_float_weights


def model_of(codes: np.ndarray, scale: np.ndarray, zero_point: np.ndarray | None, axis: int) -> onnx.ModelProto:
    """A graph whose outputs are the dequantized constant, twice."""
    inputs = ["w", "s"] + ([] if zero_point is None else ["z"])
    nodes = [helper.make_node("DequantizeLinear", inputs, [name], name=name, axis=axis) for name in ("a", "b")]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, codes.shape) for name in ("a", "b")]
    constants = {"w": codes, "s": scale} | ({} if zero_point is None else {"z": zero_point})
    initializers = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "g", [], outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def outputs_of(model: onnx.ModelProto) -> list[np.ndarray]:
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {})


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("signed", [True, False])
def test_values_stay(axis: int, signed: bool) -> None:
    draw = np.random.default_rng(0)
    low, high, dtype = (-128, 128, np.int8) if signed else (0, 256, np.uint8)
    codes = draw.integers(low, high, (5, 7)).astype(dtype)
    scale = draw.uniform(1e-6, 3, codes.shape[axis]).astype(np.float32)
    zero_point = draw.integers(low, high, scale.shape).astype(dtype)
    model = model_of(codes, scale, zero_point, axis)
    changed = with_float_weights(model)
    onnx.checker.check_model(changed)
    assert [node.op_type for node in changed.graph.node] == ["QuantizeLinear", "DequantizeLinear", "DequantizeLinear"]
    assert {t.name: t.data_type for t in changed.graph.initializer}["w.float"] == TensorProto.FLOAT
    assert "w" not in {t.name for t in changed.graph.initializer}
    for one, other in zip(outputs_of(changed), outputs_of(model), strict=True):
        np.testing.assert_array_equal(one, other)


def test_without_constants_the_graph_is_the_same_object() -> None:
    node = helper.make_node("Relu", ["x"], ["y"])
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy"]
    model = helper.make_model(helper.make_graph([node], "g", values[:1], values[1:]))
    assert with_float_weights(model) is model


@given(st.integers(-127, 127), st.floats(2.0**-100, 2.0**100, width=32))
def test_no_scale_moves_a_code(code: int, scale: float) -> None:
    step = np.float32(scale)
    assert np.rint(np.float32(np.float32(code) * step) / step) == code

"""Graphs in float16 types, for networks without precision flags; computed by onnxruntime."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from quantkit.backends.trt.typed import half_graph
from quantkit.errors import BackendError
from quantkit.network.precision import PrecisionPlan
from quantkit.network.qdq import insert_qdq
from quantkit.tables.table import CalibrationTable, Entry


def logits(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> np.ndarray:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {i.name: feed[i.name] for i in session.get_inputs()})[0]


@pytest.mark.parametrize("fixed", [True, False])
def test_the_half_graph_computes_in_float16_with_the_same_interface(network, make_feed, fixed) -> None:
    graph = network.fixed(4, 16) if fixed else network.proto
    half = half_graph(graph)
    onnx.checker.check_model(half)
    feed = make_feed(4, 16)
    found, expected = logits(half, feed), logits(graph, feed)
    assert found.dtype == np.float32
    assert 0 < np.abs(found - expected).max() < 0.02
    floats = [t for t in half.graph.initializer if t.data_type == TensorProto.FLOAT]
    assert not floats
    assert [v.name for v in half.graph.output] == ["logits"]
    assert graph.graph.initializer[0].data_type in (TensorProto.FLOAT, TensorProto.INT64)


def test_q_dq_pairs_become_float16_too(network, make_feed) -> None:
    table = CalibrationTable({name: Entry(np.float32(0.03)) for name in network.activations()})
    graph = insert_qdq(network.fixed(4, 16), table, PrecisionPlan("gemm", symmetric=True)).proto
    half = half_graph(graph)
    assert max(o.version for o in half.opset_import) >= 19
    scales = [t for t in half.graph.initializer if t.name.endswith(".scale")]
    assert scales
    assert all(t.data_type == TensorProto.FLOAT16 for t in scales)
    found = [value.name for value in onnx.shape_inference.infer_shapes(half, strict_mode=True).graph.value_info]
    assert found
    feed = make_feed(4, 16)
    assert np.abs(logits(half, feed) - logits(graph, feed)).max() < 0.1


def test_a_constant_beyond_float16_is_named() -> None:
    big = numpy_helper.from_array(np.array([1e6], np.float32), "big")
    node = helper.make_node("Mul", ["x", "big"], ["y"])
    info = helper.make_tensor_value_info
    graph = helper.make_graph([node], "g", [], [info("y", TensorProto.FLOAT, [1])], [big])
    with pytest.raises(BackendError, match="'big' holds 1e\\+06, which float16 cannot"):
        half_graph(helper.make_model(graph))


def test_float_inputs_are_refused() -> None:
    info = helper.make_tensor_value_info
    node = helper.make_node("Relu", ["x"], ["y"])
    graph = helper.make_graph([node], "g", [info("x", TensorProto.FLOAT, [1])], [info("y", TensorProto.FLOAT, [1])])
    with pytest.raises(BackendError, match="input 'x' is float32"):
        half_graph(helper.make_model(graph))

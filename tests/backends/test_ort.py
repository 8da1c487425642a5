"""What only onnxruntime does: uint8 activations, and the optimizer that would undo INT8."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from quantkit.backends import get_backend
from quantkit.backends.ort.unsigned import with_unsigned_activations
from quantkit.errors import BackendError

pytestmark = pytest.mark.skipif(
    get_backend("onnxruntime").available() is not None, reason="onnxruntime is not installed"
)


@pytest.fixture(scope="module")
def backend():
    return get_backend("onnxruntime")


def test_half_precision_is_refused_with_the_reason(backend, make_transformer):
    assert backend.precisions() == ("fp32", "int8")
    with pytest.raises(BackendError, match="no half-precision kernels"):
        backend.compile(make_transformer(4, 8).proto, "fp16")


def test_unsigned_activations_compute_the_same(make_transformer, make_feed, reference):
    graph = make_transformer(4, 8, quantized=True)
    before = graph.proto.SerializeToString()
    changed, count = with_unsigned_activations(graph.proto)
    assert graph.proto.SerializeToString() == before
    assert count == 4
    kinds = {t.name: t.data_type for t in changed.graph.initializer}
    quantizers = [n for n in changed.graph.node if n.op_type == "QuantizeLinear"]
    assert {kinds[n.input[2]] for n in quantizers} == {onnx.TensorProto.UINT8}
    weights = [n for n in changed.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in kinds]
    assert len(weights) == 6
    assert {kinds[n.input[2]] for n in weights} == {onnx.TensorProto.INT8}
    feed = make_feed()
    expected = reference(graph, feed)
    graph.proto = changed
    for name, array in reference(graph, feed).items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


def test_graphs_that_stay_as_they_are(make_transformer, make_one_node):
    plain = make_transformer(4, 8).proto
    assert with_unsigned_activations(plain) == (plain, 0)
    # Codes that something else than a DequantizeLinear reads, or that are an output, must keep their values.
    shown = make_one_node(helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["codes"]))
    shown.graph.node.append(helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["y"]))
    shown.graph.node.append(helper.make_node("Cast", ["codes"], ["z"], to=1))
    shown.graph.initializer.append(numpy_helper.from_array(np.array(0.1, np.float32), "scale"))
    shown.graph.initializer.append(numpy_helper.from_array(np.array(0, np.int8), "zero"))
    assert with_unsigned_activations(shown)[1] == 0
    del shown.graph.node[2]
    assert with_unsigned_activations(shown)[1] == 1
    shown.graph.output[0].name = "codes"
    assert with_unsigned_activations(shown)[1] == 0


def test_int8_says_what_was_changed(backend, make_transformer):
    with backend.compile(make_transformer(4, 8, quantized=True).proto, "int8", threads=1) as engine:
        assert any("4 int8 activations" in note for note in engine.notes)


def test_a_failing_run_is_one_sentence(backend, make_one_node):
    proto = make_one_node(helper.make_node("Gather", ["table", "index"], ["y"]))
    proto.graph.initializer.append(numpy_helper.from_array(np.zeros((3, 2), np.float32), "table"))
    proto.graph.node.insert(0, helper.make_node("Cast", ["x"], ["index"], to=onnx.TensorProto.INT64))
    proto.graph.node.insert(0, helper.make_node("Add", ["x", "x"], ["twice"]))
    proto.graph.node[1].input[0] = "twice"
    good, bad = {"x": np.ones((2, 4), np.float32)}, {"x": np.full((2, 4), 9, np.float32)}
    with backend.compile(proto, "fp32", threads=1) as engine, backend.tap(proto, ["y"], threads=1) as tap:
        for runner in (engine, tap):
            runner.infer(good)
            with pytest.raises(BackendError, match=r"could not run the graph: .*out of data bounds") as caught:
                runner.infer(bad)
            assert "[ONNXRuntimeError]" not in caught.value.message
            assert caught.value.__cause__ is not None
            assert runner.infer(good)["y"].shape == (2, 4, 2)

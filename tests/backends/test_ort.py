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


def test_a_failing_run_is_one_sentence(backend, make_transformer, make_feed):
    feed = make_feed()
    feed["input_ids"][0, 0] = 10_000
    with backend.compile(make_transformer(4, 8).proto, "fp32", threads=1) as engine:
        with pytest.raises(BackendError, match=r"could not run the graph: .*out of data bounds") as caught:
            engine.infer(feed)
        assert "[ONNXRuntimeError]" not in caught.value.message
        assert caught.value.__cause__ is not None
        engine.infer(make_feed())
    with backend.tap(make_transformer(4, 8).proto, ["gelu"], threads=1) as tap:
        tap.infer(make_feed())
        with pytest.raises(BackendError, match="out of data bounds"):
            tap.infer(feed)

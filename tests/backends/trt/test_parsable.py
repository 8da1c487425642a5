"""Graphs for TensorRT: Shape nodes without attributes, weights as float constants, the same result."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime

from quantkit.backends.trt.parsable import parsable
from quantkit.network.precision import PrecisionPlan
from quantkit.network.qdq import insert_qdq
from quantkit.tables.table import CalibrationTable, Entry


def logits(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["logits"], feed)[0]


def test_a_dynamic_graph_loses_shape_s_attributes_and_nothing_else(network, make_feed) -> None:
    before = [node for node in network.proto.graph.node if node.op_type == "Shape"]
    assert any(node.attribute for node in before)
    changed = parsable(network.proto)
    onnx.checker.check_model(changed)
    assert not any(node.attribute for node in changed.graph.node if node.op_type == "Shape")
    assert any(node.attribute for node in network.proto.graph.node if node.op_type == "Shape"), "the original is kept"
    for shape in ((4, 16), (1, 8)):
        feed = make_feed(*shape)
        np.testing.assert_array_equal(logits(changed, feed), logits(network.proto, feed))


def test_a_graph_of_fixed_shapes_is_the_same_object(network) -> None:
    fixed = network.fixed(4, 16)
    assert parsable(fixed) is fixed


def test_int8_constants_become_float_ones_with_the_same_codes(network, make_feed) -> None:
    table = CalibrationTable({name: Entry(np.float32(6.0)) for name in network.activations()}, "minmax")
    graph = insert_qdq(network.fixed(4, 16), table, PrecisionPlan("gemm")).proto
    changed = parsable(graph)
    onnx.checker.check_model(changed)
    constants = {tensor.name: tensor.data_type for tensor in changed.graph.initializer}
    read = {node.op_type: set() for node in changed.graph.node}
    for node in changed.graph.node:
        read[node.op_type].add(constants.get(node.input[0]))
    assert read["DequantizeLinear"] == {None}
    assert onnx.TensorProto.FLOAT in read["QuantizeLinear"]
    feed = make_feed(4, 16)
    np.testing.assert_array_equal(logits(changed, feed), logits(graph, feed))

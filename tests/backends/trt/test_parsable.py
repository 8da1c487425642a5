"""Graphs for TensorRT's parser: Shape nodes without attributes, the same result."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime

from quantkit.backends.trt.parsable import parsable


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


def quantized(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with pairs in front of one product, as far as the parser is concerned."""
    model = onnx.ModelProto()
    model.CopyFrom(proto)
    scale = onnx.numpy_helper.from_array(np.array(0.02, np.float32), "pair.scale")
    zero = onnx.numpy_helper.from_array(np.array(0, np.int8), "pair.zero")
    model.graph.initializer.extend([scale, zero])
    nodes = []
    for node in model.graph.node:
        nodes.append(node)
        if node.op_type == "LayerNormalization" and not any(n.op_type == "QuantizeLinear" for n in nodes):
            inner, outer = f"{node.output[0]}.inner", node.output[0]
            node.output[0] = inner
            nodes.append(onnx.helper.make_node("QuantizeLinear", [inner, "pair.scale", "pair.zero"], ["pair.q"]))
            nodes.append(onnx.helper.make_node("DequantizeLinear", ["pair.q", "pair.scale", "pair.zero"], [outer]))
    kept = onnx.GraphProto(node=nodes)
    del model.graph.node[:]
    model.graph.node.extend(kept.node)
    return model


def test_norms_of_a_quantized_graph_become_their_parts(network, make_feed) -> None:
    graph = quantized(network.fixed(4, 16))
    changed = parsable(graph)
    onnx.checker.check_model(changed)
    assert any(node.op_type == "LayerNormalization" for node in graph.graph.node), "the original is kept"
    assert not any(node.op_type == "LayerNormalization" for node in changed.graph.node)
    names = {name for node in graph.graph.node for name in node.output}
    assert names <= {name for node in changed.graph.node for name in node.output}
    feed = make_feed(4, 16)
    np.testing.assert_allclose(logits(changed, feed), logits(graph, feed), atol=1e-4)


def test_norms_are_taken_apart_in_newer_opsets_too() -> None:
    helper = onnx.helper
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("LayerNormalization", ["x", "g"], ["n"], axis=-1, epsilon=0.01),
        helper.make_node("QuantizeLinear", ["n", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["logits"]),
    ]
    constants = {"g": np.arange(1, 9, dtype=np.float32), "s": np.array(0.05, np.float32), "z": np.array(0, np.int8)}
    graph = helper.make_graph(
        nodes,
        "norm",
        [value("x", onnx.TensorProto.FLOAT, [3, 8])],
        [value("logits", onnx.TensorProto.FLOAT, [3, 8])],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    x = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    changed = parsable(model)
    onnx.checker.check_model(changed)
    np.testing.assert_allclose(logits(changed, {"x": x}), logits(model, {"x": x}), atol=0.051)

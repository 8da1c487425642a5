"""The file for TensorRT's parser: the same answers, and every rule that it obeys can be broken and is then told."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from quantkit.backends.trt.exported import for_parser, parser_problems
from quantkit.errors import ModelError
from quantkit.network.precision import PrecisionPlan
from quantkit.network.qdq import insert_qdq
from quantkit.tables.table import CalibrationTable, Entry


def quantized(network, **plan) -> onnx.ModelProto:
    table = CalibrationTable({name: Entry(np.float32(0.02), -2.0, 2.5) for name in network.activations()})
    return insert_qdq(network.proto, table, PrecisionPlan(int8_only=True, **plan)).proto


def logits(model: onnx.ModelProto, feed) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(["logits"], feed)[0]


@pytest.mark.parametrize("mode", ["gemm", "gemm+residual+mha"])
def test_the_file_obeys_the_rules_and_answers_the_same(network, make_feed, mode):
    source = quantized(network, mode=mode)
    exported = for_parser(source)
    onnx.checker.check_model(exported)
    assert parser_problems(exported) == []
    feed = make_feed(4, 16)
    np.testing.assert_allclose(logits(exported, feed), logits(source, feed), atol=1e-5)


def test_asymmetric_activations_are_refused(network):
    with pytest.raises(ModelError, match="not int8; TensorRT has no uint8"):
        for_parser(quantized(network, symmetric=False))


def constant(model, suffix):
    return next(t for t in model.graph.initializer if t.name.endswith(suffix))


def break_opset(model):
    model.opset_import[0].version = 21


def break_scale(model):
    tensor = constant(model, "ffn.gelu.scale")
    tensor.CopyFrom(numpy_helper.from_array(np.array(0, np.float32), tensor.name))


def break_scale_type(model):
    tensor = constant(model, "ffn.gelu.scale")
    tensor.CopyFrom(numpy_helper.from_array(np.array(0.5, np.float64), tensor.name))


def break_zero_point(model):
    tensor = constant(model, "ffn.gelu.zero_point")
    tensor.CopyFrom(numpy_helper.from_array(np.array(3, np.int8), tensor.name))


def drop_zero_point(model):
    node = next(node for node in model.graph.node if node.op_type == "QuantizeLinear")
    del node.input[2]


def break_operator(model):
    node = next(node for node in model.graph.node if node.op_type == "Erf")
    node.op_type = "Gelu"


def break_reader(model):
    codes = next(node.output[0] for node in model.graph.node if node.op_type == "QuantizeLinear")
    model.graph.node.append(helper.make_node("Transpose", [codes], ["moved"], name="mover"))


def break_shape(model):
    model.graph.node.append(helper.make_node("Shape", ["input_ids"], ["part"], name="part", start=1))


def break_input(model):
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.BOOL


def break_domain(model):
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    model.graph.node.append(helper.make_node("Tanh", ["logits"], ["t"], name="t", domain="com.microsoft"))


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (break_opset, "opset is 21"),
        (break_scale, "not above 0"),
        (break_scale_type, "no float32 constant"),
        (break_zero_point, "zero point of .* is not 0"),
        (drop_zero_point, "no constant zero point"),
        (break_operator, "is a Gelu"),
        (break_reader, "mover .Transpose. reads int8 codes"),
        (break_shape, "takes a part of a shape"),
        (break_input, "element type 9"),
        (break_domain, "domain com.microsoft"),
    ],
)
def test_every_rule_is_checked(network, harm, says):
    model = for_parser(quantized(network))
    harm(model)
    problems = " | ".join(parser_problems(model))
    import re

    assert re.search(says, problems), problems

"""The quantized model as a file for TensorRT's ONNX parser, and the rules that such a file obeys.

The rules hold for TensorRT 8.6 to 10 (its operator list for ONNX, its documentation of explicit quantization): they are
checked on the graph alone, so that a file can be made and checked where there is no GPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from quantkit.backends.trt.parsable import parsable
from quantkit.errors import ModelError

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

OPSETS = range(13, 18)
"""13 brought scales along an axis; the parser of 8.6 knows operators up to 17."""
FLOAT, INT8, INT32, INT64 = 1, 3, 6, 7
OPERATORS = frozenset(
    [
        "Add",
        "Cast",
        "Clip",
        "Concat",
        "Constant",
        "ConstantOfShape",
        "DequantizeLinear",
        "Div",
        "Equal",
        "Erf",
        "Exp",
        "Expand",
        "Flatten",
        "Gather",
        "Gemm",
        "Greater",
        "Identity",
        "LayerNormalization",
        "Less",
        "Log",
        "MatMul",
        "Max",
        "Min",
        "Mul",
        "Neg",
        "Not",
        "Pow",
        "QuantizeLinear",
        "Range",
        "ReduceMax",
        "ReduceMean",
        "ReduceSum",
        "Relu",
        "Reshape",
        "Shape",
        "Sigmoid",
        "Slice",
        "Softmax",
        "Split",
        "Sqrt",
        "Squeeze",
        "Sub",
        "Tanh",
        "Transpose",
        "Unsqueeze",
        "Where",
    ]
)
"""Operators that encoders are made of and that the parsers of 8.6 and 10 both take."""


def for_parser(proto: ModelProto) -> ModelProto:
    """A graph with symmetric Q/DQ pairs in the form that the parser reads rightly and the builder takes.

    See `parsable` for what is replaced; the rest is checked.

    Raises:
        ModelError: the graph breaks a rule all the same.
    """
    model = parsable(proto)
    if problems := parser_problems(model):
        more = f" ({len(problems)} such places)" if len(problems) > 1 else ""
        raise ModelError(f"TensorRT's parser would not take this model: {problems[0]}{more}.")
    return model


def parser_problems(proto: ModelProto) -> list[str]:
    """What in a quantized graph TensorRT's parser would refuse or misread, one sentence each; [] when nothing."""
    graph = proto.graph
    problems = []
    opset = max((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), default=0)
    if opset not in OPSETS:
        problems.append(f"its opset is {opset}, and {OPSETS.start} to {OPSETS.stop - 1} are read")
    for domain in sorted({o.domain for o in proto.opset_import if o.domain not in ("", "ai.onnx")}):
        if any(node.domain == domain for node in graph.node):
            problems.append(f"it has operators of the domain {domain}")
    problems += [
        f"the input {value.name} is of element type {value.type.tensor_type.elem_type}"
        for value in graph.input
        if value.type.tensor_type.elem_type not in (FLOAT, INT8, INT32, INT64)
    ]
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type not in OPERATORS:
            problems.append(f"{node.name} is a {node.op_type}, which the parser does not know")
        elif node.op_type == "Shape" and node.attribute:
            problems.append(f"{node.name} takes a part of a shape, which the parser reads as all of it")
        elif node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            problems += _pair_problems(node, constants)
    return problems + _reader_problems(graph)


def _pair_problems(node: NodeProto, constants: dict[str, Any]) -> list[str]:
    """Scale: constant, positive, float32. Zero point: int8 and 0."""
    from onnx import numpy_helper

    problems = []
    scale = constants.get(node.input[1])
    if scale is None or scale.data_type != FLOAT:
        problems.append(f"the scale of {node.name} is no float32 constant")
    else:
        values = numpy_helper.to_array(scale)
        if not (np.isfinite(values).all() and (values > 0).all()):
            problems.append(f"a scale of {node.name} is not above 0")
    zero = constants.get(node.input[2]) if len(node.input) > 2 else None
    if zero is None:
        problems.append(f"{node.name} has no constant zero point, so its codes would be uint8")
    elif zero.data_type != INT8:
        problems.append(f"the codes of {node.name} are not int8; TensorRT has no uint8 activations")
    elif np.any(numpy_helper.to_array(zero)):
        problems.append(f"the zero point of {node.name} is not 0; TensorRT quantizes around zero only")
    return problems


def _reader_problems(graph: GraphProto) -> list[str]:
    """int8 codes may be read by DequantizeLinear alone."""
    codes = {node.output[0] for node in graph.node if node.op_type == "QuantizeLinear"}
    return [
        f"{node.name} ({node.op_type}) reads int8 codes without a DequantizeLinear"
        for node in graph.node
        if node.op_type != "DequantizeLinear" and codes.intersection(node.input)
    ]

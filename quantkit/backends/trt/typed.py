"""Half precision for strongly typed networks, where no flag makes it: the graph itself is converted to float16.

TensorRT 11 has only such networks. Every float32 constant, cast and scale becomes float16; outputs are cast back to
float32, so that the graph's interface stays. Q/DQ pairs take the type of their scales (opset 19 allows float16 there).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from quantkit.errors import BackendError

if TYPE_CHECKING:
    from onnx import ModelProto

OPSET = 19
"""The first in which QuantizeLinear and DequantizeLinear take float16 scales."""


def half_graph(proto: ModelProto) -> ModelProto:
    """A copy of a float32 graph that computes in float16, with the same inputs and outputs.

    Raises:
        BackendError: a constant is beyond float16, or the graph takes float32 inputs.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.ModelProto()
    model.CopyFrom(proto)
    graph = model.graph
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(_half(tensor.name, numpy_helper.to_array(tensor)), tensor.name))
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
            if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == TensorProto.FLOAT:
                value = _half(node.name, numpy_helper.to_array(attribute.t))
                attribute.t.CopyFrom(numpy_helper.from_array(value, attribute.t.name))
    for value in graph.value_info:
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
    for value in graph.input:
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            raise BackendError(f"The input {value.name!r} is float32; only token inputs can be converted.")
    for value in graph.output:
        inner = f"{value.name}.half"
        for node in graph.node:
            node.output[:] = [inner if name == value.name else name for name in node.output]
            node.input[:] = [inner if name == value.name else name for name in node.input]
        cast = helper.make_node("Cast", [inner], [value.name], name=f"{value.name}.float", to=TensorProto.FLOAT)
        graph.node.append(cast)
    for opset in model.opset_import:
        if opset.domain in ("", "ai.onnx") and opset.version < OPSET:
            opset.version = OPSET
    model.ir_version = max(model.ir_version, 9)
    return model


def _half(name: str, value: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    """A constant as float16."""
    with np.errstate(over="ignore"):
        half = value.astype(np.float16)
    if not np.isfinite(half).all():
        worst = float(np.abs(value).max())
        raise BackendError(f"The constant {name!r} holds {worst:g}, which float16 cannot; build FP32 instead.")
    return half

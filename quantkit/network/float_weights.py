"""Quantized weights as float ones behind a QuantizeLinear, for readers that want them so.

TensorRT's explicit quantization takes a weight as float constant -> QuantizeLinear -> DequantizeLinear, and 8.6 does
not build from int8 constants. The codes stay the same: code * scale, rounded to float32, is within half a step of no
other code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from quantkit.network.rewriting import drop_unread_constants, fresh_name, replace_nodes

if TYPE_CHECKING:
    from onnx import ModelProto


def with_float_weights(proto: ModelProto) -> ModelProto:
    """A copy of a graph in which no DequantizeLinear reads a constant; the graph itself when none does.

    Constants of other than one or two dimensions, or with an unsigned type or a zero point that is not zero, become
    float as well: QuantizeLinear gets the same scale and zero point.
    """
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}

    def quantized(node: object) -> bool:
        return node.op_type == "DequantizeLinear" and node.input[0] in constants  # type: ignore[attr-defined]

    if not any(quantized(node) for node in proto.graph.node):
        return proto
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.ModelProto()
    model.CopyFrom(proto)
    taken = {name for node in model.graph.node for name in (node.name, *node.input, *node.output)} | set(constants)
    nodes, quantizers = [], dict[tuple[str, ...], str]()
    for node in model.graph.node:
        if quantized(node):
            axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
            key = (*node.input, str(axis))
            if key not in quantizers:
                given = [numpy_helper.to_array(constants[name]) for name in node.input]
                value = fresh_name(f"{node.input[0]}.float", taken)
                codes = quantizers[key] = fresh_name(f"{node.input[0]}.codes", taken)
                model.graph.initializer.append(numpy_helper.from_array(_floats(*given, axis=axis), value))
                inputs = [value, *node.input[1:]]
                nodes.append(helper.make_node("QuantizeLinear", inputs, [codes], name=codes, axis=axis))
            node.input[0] = quantizers[key]
        nodes.append(node)
    replace_nodes(model.graph, nodes)
    drop_unread_constants(model.graph, set(constants))
    return model


def _floats(
    codes: npt.NDArray[np.integer],
    scale: npt.NDArray[np.float32],
    zero_point: npt.NDArray[np.integer] | None = None,
    *,
    axis: int,
) -> npt.NDArray[np.float32]:
    """(codes - zero point) * scale in the scale's type; scale and zero point along `axis` where they are vectors."""

    def along(value: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return (
            value.reshape([-1 if i == axis % codes.ndim else 1 for i in range(codes.ndim)]) if value.size > 1 else value
        )

    steps = codes.astype(np.float32)
    if zero_point is not None:
        steps = steps - along(zero_point).astype(np.float32)
    return np.asarray(steps * along(scale), scale.dtype)

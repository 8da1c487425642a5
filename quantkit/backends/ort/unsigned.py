"""int8 activations as uint8: the same arithmetic in the form that onnxruntime has kernels for on x86.

q = round(x / s) in [-128, 127] and q + 128 = round(x / s) + 128 in [0, 255] stand for the same numbers, and the kernels
take the 128 off exactly, in integers. onnxruntime does this itself, but only where a QuantizeLinear feeds a single
DequantizeLinear; the shared pair before query, key and value would stay, and its three products would run in float.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from onnx import ModelProto

_INT8 = 3
"""onnx.TensorProto.INT8."""
_OFFSET = 128


def with_unsigned_activations(proto: ModelProto) -> tuple[ModelProto, int]:
    """A graph that computes the same with uint8 activations, and how many quantizers were changed.

    Changed are the QuantizeLinear nodes whose zero point is an int8 initializer and whose codes only DequantizeLinear
    nodes read; weights (DequantizeLinear over an int8 initializer) stay int8. Without any, the graph itself comes back.
    """
    pairs = _signed_pairs(proto)
    if not pairs:
        return proto, 0
    changed = type(proto)()
    changed.CopyFrom(proto)
    initializers = {tensor.name: tensor for tensor in proto.graph.initializer}
    taken = {*initializers, *(name for node in proto.graph.node for name in node.output)}
    fresh: dict[str, str] = {}
    for node in changed.graph.node:
        codes = node.output[0] if node.op_type == "QuantizeLinear" else node.input[0] if node.input else ""
        if codes not in pairs or node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        signed = node.input[2]
        if signed not in fresh:
            fresh[signed] = _add_unsigned(changed, initializers[signed], taken)
        node.input[2] = fresh[signed]
    known = [value for value in changed.graph.value_info if value.name not in pairs]
    del changed.graph.value_info[:]
    changed.graph.value_info.extend(known)
    return changed, len(pairs)


def _signed_pairs(proto: Any) -> frozenset[str]:
    """Names of the int8 codes that can become uint8."""
    signed = {tensor.name for tensor in proto.graph.initializer if tensor.data_type == _INT8}
    codes = {
        node.output[0]
        for node in proto.graph.node
        if node.op_type == "QuantizeLinear" and len(node.input) == 3 and node.input[2] in signed
    }
    other = {value.name for value in proto.graph.output}
    for node in proto.graph.node:
        if node.op_type != "DequantizeLinear" or len(node.input) < 3 or node.input[2] not in signed:
            other.update(node.input)
    return frozenset(codes - other)


def _add_unsigned(proto: Any, signed: Any, taken: set[str]) -> str:
    """Adds the uint8 zero point that stands for an int8 one; gives its name."""
    from onnx import numpy_helper

    name = f"{signed.name}.unsigned"
    while name in taken:
        name += "_"
    taken.add(name)
    shifted = numpy_helper.to_array(signed).astype(np.int16) + _OFFSET
    proto.graph.initializer.append(numpy_helper.from_array(shifted.astype(np.uint8), name))
    return name

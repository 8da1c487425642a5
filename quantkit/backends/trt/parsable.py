"""A graph in the form that TensorRT's ONNX parser reads rightly, and its builder takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from quantkit.network.float_weights import with_float_weights
from quantkit.network.rewriting import replace_nodes

if TYPE_CHECKING:
    from onnx import ModelProto


def parsable(proto: ModelProto) -> ModelProto:
    """The graph with what TensorRT 8.6 trips over replaced by what computes the same.

    - A Shape of some dimensions (attributes of opset 15) becomes a whole Shape and a Slice: the parser reads past the
      attributes, takes the whole shape, and fails where it is used.
    - Int8 weights become float ones behind a QuantizeLinear: with int8 constants the builder stops at an assertion of
      its own (`convertMyelinWeightsToFp32: params.weights.type() != DataType::kINT8`), whatever the placement.

    A graph without either is returned as it is.
    """
    return _with_whole_shapes(with_float_weights(proto))


def _with_whole_shapes(proto: ModelProto) -> ModelProto:
    """The graph, with every Shape of some dimensions as a whole Shape and a Slice."""
    if not any(node.op_type == "Shape" and node.attribute for node in proto.graph.node):
        return proto
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.ModelProto()
    model.CopyFrom(proto)
    nodes = []
    for node in model.graph.node:
        given = {a.name: a.i for a in node.attribute} if node.op_type == "Shape" else {}
        if not given:
            nodes.append(node)
            continue
        name = node.output[0]
        bounds = {"start": given.get("start", 0), "end": given.get("end", np.iinfo(np.int64).max)}
        for word, value in bounds.items():
            constant = numpy_helper.from_array(np.array([value], np.int64), f"{name}.from_{word}")
            model.graph.initializer.append(constant)
        whole = f"{name}.whole"
        nodes.append(helper.make_node("Shape", [node.input[0]], [whole], name=whole))
        cut = [whole, f"{name}.from_start", f"{name}.from_end"]
        nodes.append(helper.make_node("Slice", cut, [name], name=node.name))
    replace_nodes(model.graph, nodes)
    return model

"""A graph in the form that TensorRT's ONNX parser reads rightly, and its builder takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

AXES_ARE_INPUTS = 18
"""The opset in which ReduceMean takes its axes as an input."""


def parsable(proto: ModelProto) -> ModelProto:
    """The graph with every node that TensorRT 8.6 trips over replaced by others that compute the same.

    - A Shape of some dimensions (attributes of opset 15) becomes a whole Shape and a Slice: the parser reads past the
      attributes, takes the whole shape, and fails where it is used.
    - In a graph with Q/DQ pairs, LayerNormalization becomes its parts.

    A graph without such nodes is returned as it is.
    """
    quantized = any(node.op_type == "DequantizeLinear" for node in proto.graph.node)

    def replaced(node: NodeProto) -> bool:
        return (node.op_type == "Shape" and bool(node.attribute)) or (
            quantized and node.op_type == "LayerNormalization" and len(node.output) == 1
        )

    if not any(replaced(node) for node in proto.graph.node):
        return proto
    import onnx

    model = onnx.ModelProto()
    model.CopyFrom(proto)
    nodes = []
    for node in model.graph.node:
        if not replaced(node):
            nodes.append(node)
        elif node.op_type == "Shape":
            nodes += _whole_shape(model, node)
        else:
            nodes += _parts_of_norm(model, node)
    kept = onnx.GraphProto(node=nodes)
    del model.graph.node[:]
    model.graph.node.extend(kept.node)
    return model


def _whole_shape(model: ModelProto, node: NodeProto) -> list[NodeProto]:
    """Shape, then a Slice from `start` to `end`."""
    from onnx import helper, numpy_helper

    given = {a.name: a.i for a in node.attribute}
    name = node.output[0]
    bounds = {"start": given.get("start", 0), "end": given.get("end", np.iinfo(np.int64).max)}
    for word, value in bounds.items():
        constant = numpy_helper.from_array(np.array([value], np.int64), f"{name}.from_{word}")
        model.graph.initializer.append(constant)
    whole = f"{name}.whole"
    cut = [whole, f"{name}.from_start", f"{name}.from_end"]
    return [
        helper.make_node("Shape", [node.input[0]], [whole], name=whole),
        helper.make_node("Slice", cut, [name], name=node.name),
    ]


def _parts_of_norm(model: ModelProto, node: NodeProto) -> list[NodeProto]:
    """Mean, deviation from it, its mean square, quotient, scale and shift."""
    from onnx import helper, numpy_helper

    given = {a.name: a for a in node.attribute}
    axis = given["axis"].i if "axis" in given else -1
    name, x = node.output[0], node.input[0]
    opset = max(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    made: list[NodeProto] = []

    def constant(word: str, value: object, dtype: type) -> str:
        model.graph.initializer.append(numpy_helper.from_array(np.array(value, dtype), f"{name}.{word}"))
        return f"{name}.{word}"

    def add(op: str, inputs: list[str], word: str, **attributes: object) -> str:
        output = f"{name}.{word}" if word else name
        made.append(helper.make_node(op, inputs, [output], name=output if word else node.name or name, **attributes))
        return output

    def mean(y: str, word: str) -> str:
        if opset >= AXES_ARE_INPUTS:
            return add("ReduceMean", [y, constant(f"{word}_axes", [axis], np.int64)], word)
        return add("ReduceMean", [y], word, axes=[axis])

    centred = add("Sub", [x, mean(x, "mean")], "centred")
    variance = mean(add("Mul", [centred, centred], "square"), "variance")
    epsilon = constant("epsilon", given["epsilon"].f if "epsilon" in given else 1e-5, np.float32)
    deviation = add("Sqrt", [add("Add", [variance, epsilon], "shifted")], "deviation")
    normal = add("Div", [centred, deviation], "normal")
    shifted = len(node.input) > 2 and bool(node.input[2])
    scaled = add("Mul", [normal, node.input[1]], "scaled" if shifted else "")
    if shifted:
        add("Add", [scaled, node.input[2]], "")
    return made

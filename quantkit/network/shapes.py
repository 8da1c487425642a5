"""Shape inference and constant folding for ONNX models, without copying the weights around."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper, shape_inference

from quantkit.errors import ModelError
from quantkit.network.index import GraphIndex, attribute, has_subgraph, reads

SMALL = 1024  # constants up to this many elements may hold shapes, so inference gets to see their values
LARGEST = 1 << 27  # elements; nothing larger is folded
ROUNDS = 16  # each round folds what the last one's shapes made known; real exports need two or three
GROWING = frozenset(("ConstantOfShape", "Expand", "Tile", "Range", "Pad", "Resize", "Upsample", "OneHot"))
"""Operators whose results may be far larger than their inputs."""
NOT_FOLDED = frozenset(
    (
        "QuantizeLinear",
        "DequantizeLinear",
        "RandomNormal",
        "RandomUniform",
        "RandomNormalLike",
        "RandomUniformLike",
        "Bernoulli",
        "Multinomial",
    )
)


def infer_shapes(model: onnx.ModelProto) -> None:
    """Replaces the model's value_info, and its outputs' shapes, by what follows from inputs and weights.

    An output about which nothing follows keeps the shape it was declared with. Large constants are shown to ONNX's
    inference as typed inputs: it would copy them twice otherwise.

    Raises:
        ModelError: shapes contradict each other, or an operator is unknown.
    """
    graph = model.graph
    light = onnx.ModelProto(ir_version=model.ir_version)
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    light.graph.name = graph.name or "graph"
    light.graph.node.extend(graph.node)
    light.graph.input.extend(graph.input)
    known = {info.name for info in graph.input}
    for tensor in graph.initializer:
        if prod(tensor.dims) <= SMALL:
            light.graph.initializer.append(tensor)
        elif tensor.name not in known:
            light.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    for output in graph.output:
        light.graph.output.append(helper.make_tensor_value_info(output.name, output.type.tensor_type.elem_type, None))
    try:
        inferred = shape_inference.infer_shapes(light, strict_mode=True, data_prop=True)
    except (shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError, ValueError) as error:
        raise ModelError(
            f"The graph's shapes do not fit together: {_first_line(error)}.",
            "Check the model with onnx.checker, or export it again.",
        ) from error
    del graph.value_info[:]
    graph.value_info.extend(inferred.graph.value_info)
    for declared, found in zip(graph.output, inferred.graph.output, strict=True):
        if found.type.tensor_type.HasField("shape"):
            declared.CopyFrom(found)


def set_input_shapes(model: onnx.ModelProto, shape: tuple[int | str, ...]) -> None:
    """Gives every input of rank len(shape) that shape, in place; extents, or names of changing dimensions."""
    for info in GraphIndex(model.graph).inputs:
        dims = info.type.tensor_type.shape.dim
        if len(dims) == len(shape):
            for dim, extent in zip(dims, shape, strict=True):
                dim.Clear()
                if isinstance(extent, int):
                    dim.dim_value = extent
                else:
                    dim.dim_param = extent


def fold_constants(model: onnx.ModelProto) -> None:
    """Computes, in place, every tensor that does not depend on the inputs, and Shape where the shape is known.

    What is left reads initializers; nodes and constants that nothing reads are dropped. Q/DQ pairs stay.

    Raises:
        ModelError: shapes contradict each other.
    """
    # A transposed weight is as large as the weight; what is folded beside that is small.
    left = LARGEST + 2 * sum(prod(tensor.dims) for tensor in model.graph.initializer)
    for _ in range(ROUNDS):
        infer_shapes(model)
        folded = _fold_once(model, left)
        if folded is None:
            break
        left -= folded
    _drop_unread(model)


def _fold_once(model: onnx.ModelProto, most: int) -> int | None:
    """One pass over the nodes in order, for `most` elements; how many it folded, None when no node was folded."""
    index = GraphIndex(model.graph)
    values = _Constants(index, most)
    kept = [node for node in model.graph.node if not _fold(node, index, values, model.opset_import)]
    if len(kept) == len(model.graph.node):
        return None
    needed = {name for node in kept for name in node.input} | {info.name for info in model.graph.output}
    needed |= {name for node in kept if has_subgraph(node) for name in values.folded}
    del model.graph.node[:]
    model.graph.node.extend(kept)
    for name, value in values.folded.items():
        if name in needed:
            model.graph.initializer.append(numpy_helper.from_array(value, name))
    return values.elements


class _Constants:
    """Values of initializers, converted when first asked for, and of what was folded in this pass."""

    def __init__(self, index: GraphIndex, most: int) -> None:
        self.index, self.folded = index, dict[str, npt.NDArray[Any]]()
        self.elements, self.most = 0, most
        self._converted: dict[str, npt.NDArray[Any]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self.folded or name in self.index.initializers

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        if name in self.folded:
            return self.folded[name]
        if name not in self._converted:
            self._converted[name] = numpy_helper.to_array(self.index.initializers[name])
        return self._converted[name]


def _fold(node: onnx.NodeProto, index: GraphIndex, values: _Constants, opsets: Any) -> bool:
    """Puts the node's results into `values` when they can be known."""
    if node.op_type in NOT_FOLDED or has_subgraph(node):
        return False
    if node.op_type == "Shape":
        extents = _extents(node, index)
        if extents is None:
            return False
        values.folded[node.output[0]] = extents
        return True
    if not all(name in values for name in node.input if name):
        return False
    elements = _elements_of(node, index, values)
    if elements > LARGEST or values.elements + elements > values.most:
        return False
    results = _evaluate(node, {name: values[name] for name in node.input if name}, opsets)
    if results is None:
        return False
    values.folded.update(results)
    values.elements += sum(value.size for value in results.values())
    return True


def _elements_of(node: onnx.NodeProto, index: GraphIndex, values: _Constants) -> int:
    """Elements of all results of a node whose inputs are known: by inference, or by the values that decide them.

    A few bytes of a file can ask for any number of elements. Where nothing is known, operators that give no more
    elements than they take, or as many as broadcasting does, are believed, all others count as too many.
    """
    shapes = [index.shape(name) for name in node.output if name]
    if all(shape is not None and all(isinstance(d, int) for d in shape) for shape in shapes):
        return sum(map(_elements, shapes))
    taken = [values[name] for name in node.input if name]
    match node.op_type, taken:
        case "ConstantOfShape", [shape]:
            return _product(shape)
        case "Expand", [data, shape]:
            return max(1, data.size) * _product(shape)
        case "Tile", [data, repeats]:
            return int(data.size) * _product(repeats)
        case "Range", [start, limit, delta] if all(value.size == 1 for value in taken) and float(delta.item()):
            return int(min(2 * LARGEST, max(0.0, (float(limit.item()) - float(start.item())) / float(delta.item()))))
    grows = node.op_type in GROWING
    return 2 * LARGEST if grows else prod(max(1, value.size) for value in taken[:2])


def _product(extents: npt.NDArray[Any]) -> int:
    """Product of what is to be a shape, as a whole number of any size."""
    return prod(max(1, abs(int(extent))) for extent in extents.ravel()[:64])


def _extents(node: onnx.NodeProto, index: GraphIndex) -> npt.NDArray[np.int64] | None:
    """Result of a Shape node when every dimension it gives is known."""
    shape = index.shape(node.input[0])
    if shape is None:
        return None
    wanted = shape[attribute(node, "start", 0) : attribute(node, "end", len(shape))]
    return np.array(wanted, np.int64) if all(isinstance(d, int) for d in wanted) else None


def _elements(shape: tuple[int | str, ...] | None) -> int:
    """Elements of a shape as far as it is known."""
    return prod(d for d in shape or () if isinstance(d, int))


def _evaluate(
    node: onnx.NodeProto, inputs: Mapping[str, npt.NDArray[Any]], opsets: Any
) -> dict[str, npt.NDArray[Any]] | None:
    """Results of one node by ONNX's reference implementation; None when it has none for the operator."""
    from onnx.reference import ReferenceEvaluator

    names = [name for name in node.output if name]
    graph = helper.make_graph(
        [node],
        "one",
        [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
            for n, v in inputs.items()
        ],
        [helper.make_tensor_value_info(n, onnx.TensorProto.UNDEFINED, None) for n in names],
    )
    try:
        results = ReferenceEvaluator(helper.make_model(graph, opset_imports=opsets)).run(names, dict(inputs))
    except Exception:  # the reference raises whatever NumPy raises; a node that cannot be folded simply stays
        return None
    arrays = {name: np.asarray(value) for name, value in zip(names, results, strict=True)}
    return arrays if all(value.dtype != object for value in arrays.values()) else None


def _drop_unread(model: onnx.ModelProto) -> None:
    """Removes nodes whose results nothing reads, then constants that nothing reads, in place."""
    graph = model.graph
    wanted = {info.name for info in graph.output}
    live: set[str] = set()
    for i in reversed(range(len(graph.node))):
        node = graph.node[i]
        if has_subgraph(node) or any(name in wanted for name in node.output):
            wanted.update(reads(node))
            live.update(node.output)
        else:
            del graph.node[i]
    # One by one from behind: taking the constants out and putting them back would copy all weights.
    for part, needed in ((graph.initializer, wanted), (graph.value_info, live)):
        for i in reversed(range(len(part))):
            if part[i].name not in needed:
                del part[i]


def _first_line(error: Exception) -> str:
    """The first line of a library's message, without a final full stop."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:300]

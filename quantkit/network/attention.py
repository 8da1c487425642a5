"""The factor 1/sqrt(d) of the attention, in front of the first product where INT8 needs it.

A fused INT8 attention wants the factor on the query (or the key), not on the scores. Exports of eager attention divide
the scores; there the factor is moved to the query, which gives the same up to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from quantkit.network.index import GraphIndex
from quantkit.network.structure import find_encoder


@dataclass(frozen=True)
class LateScale:
    """A factor behind the product of query and key.

    Attributes:
        query: left input of the product, read by nothing else.
        factor: what the scores are multiplied by, positive.
        product: name of the product's node.
        scaling: name of the node that multiplies or divides.
    """

    query: str
    factor: np.float32
    product: str
    scaling: str


def late_scales(index: GraphIndex) -> list[LateScale]:
    """The factors that stand behind the first attention product and could stand in front of it."""
    found = []
    names = {node.name: node for node in index.graph.node}
    outputs = {info.name for info in index.graph.output}
    for pair in find_encoder(index).products:
        scores = names[pair.scores_node].output[0]
        readers = index.consumers.get(scores, [])
        if len(readers) != 1 or scores in outputs or len(index.consumers[pair.query]) != 1 or pair.query == pair.key:
            continue
        node = readers[0]
        constant = next((name for name in node.input if name in index.initializers), "")
        if node.op_type not in ("Mul", "Div") or not constant or (node.op_type == "Div" and node.input[0] != scores):
            continue
        values = numpy_helper.to_array(index.initializers[constant])
        if values.size != 1 or values.ndim > 1 or not (np.isfinite(values).all() and values.item() > 0):
            continue
        factor = np.float32(1 / values.item() if node.op_type == "Div" else values.item())
        found.append(LateScale(pair.query, factor, pair.scores_node, node.name))
    return found


def drop_scaling(model: onnx.ModelProto, scale: LateScale) -> None:
    """Takes the scaling node out of a model, in place; the product gives the scaled scores under their name."""
    nodes = {node.name: node for node in model.graph.node}
    product, scaling = nodes[scale.product], nodes[scale.scaling]
    for i in reversed(range(len(model.graph.value_info))):
        if model.graph.value_info[i].name == product.output[0]:
            del model.graph.value_info[i]
    product.output[0] = scaling.output[0]
    model.graph.node.remove(scaling)

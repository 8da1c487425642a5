"""What every rewriting of a graph needs: names not taken yet, other nodes, constants that nothing reads any more."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt
    from onnx import GraphProto, NodeProto, TensorProto


def fresh_name(name: str, taken: set[str]) -> str:
    """The name itself, or with a number where the graph uses it already; it is taken from then on."""
    candidate, number = name, 1
    while candidate in taken:
        candidate, number = f"{name}_{number}", number + 1
    taken.add(candidate)
    return candidate


def replace_nodes(graph: GraphProto, nodes: Iterable[NodeProto]) -> None:
    """Lets a graph have these nodes, in place; they may be its own."""
    kept = type(graph)(node=nodes)  # copied before the originals are deleted
    del graph.node[:]
    graph.node.extend(kept.node)


def drop_unread_constants(graph: GraphProto, among: Collection[str] | None = None) -> None:
    """Removes, in place, the constants that no node reads, subgraphs included; of those named by `among` only."""
    from quantkit.network.index import reads

    read = {name for node in graph.node for name in reads(node)} | {info.name for info in graph.output}
    # One by one from behind: taking the constants out and putting them back would copy all weights.
    for i in reversed(range(len(graph.initializer))):
        name = graph.initializer[i].name
        if name not in read and (among is None or name in among):
            del graph.initializer[i]


def replace_values(tensor: TensorProto, values: npt.NDArray[np.float32]) -> None:
    """Gives a constant other values, of any shape, in place."""
    from onnx import numpy_helper

    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), tensor.name))

"""Cuts a network into stretches that run one after the other, so that not all of its tensors exist at once.

A cut is made behind a tensor that is all of the sentence that is read later on, and that several nodes read: the fork
in front of every residual connection. There runtimes fuse nothing across, since the tensor has to exist anyway; a
stretch therefore computes with the same kernels, and the same bits, as the whole network whose tensors are shown. What
depends on the attention mask alone is computed again in every stretch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import onnx
from onnx import TensorProto, helper

from quantkit.network.graph import Network
from quantkit.network.index import GraphIndex, reads
from quantkit.network.shapes import SMALL, fold_constants, set_input_shapes

TOKENS = "input_ids"
READERS = 2
"""Nodes that must read a tensor for a cut behind it."""

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Segment:
    """A stretch of a network.

    Attributes:
        names: tensors that are wanted of it, in topological order.
        start: tensor that is fed to it beside the network's inputs; None for the first.
        end: tensor that the next one starts from; None for the last.
        tensor_bytes: bytes of everything that it shows, for one batch.
        largest_bytes: bytes of the largest tensor that it computes.
        weight_bytes: bytes of the constants that it reads.
    """

    names: tuple[str, ...]
    start: str | None
    end: str | None
    tensor_bytes: int
    largest_bytes: int
    weight_bytes: int

    @property
    def shown(self) -> tuple[str, ...]:
        """What a tap of the segment has to show: the wanted tensors, and the one that the next segment starts from."""
        return self.names if self.end is None or self.end in self.names else (*self.names, self.end)


class Segments:
    """A network for one shape of batch, and where it can be cut.

    Args:
        network: with free or fixed shapes.
        shape: (batch, sequence).
        names: the tensors that are wanted.
    """

    def __init__(self, network: Network, shape: tuple[int, int], names: Collection[str]) -> None:
        self._proto, self._index, self._shape = network.proto, network.index, shape
        self._names = frozenset(names)
        self._nodes = list(network.proto.graph.node)
        self._shapes: Shapes = static_shapes(network, shape)
        self._sizes = {name: 4 * prod(extents) for name, extents in self._shapes.items()}

    def bytes_of(self, name: str) -> int:
        """Bytes of a float32 tensor for one batch; 0 where its shape is not known."""
        return self._sizes.get(name, 0)

    def whole(self) -> Segment:
        """The network as one segment."""
        return self._segment(0, len(self._nodes), None, None)

    def finest(self) -> list[Segment]:
        """As many segments as there can be, each with something that is wanted; those behind the last are left out."""
        found: list[Segment] = []
        begin, start = 0, None
        ends = [*self._cuts(), (len(self._nodes), None)]
        last = max((i for i, node in enumerate(self._nodes) if self._names & set(node.output)), default=-1)
        for end, tensor in ends:
            if not any(self._names & set(node.output) for node in self._nodes[begin:end]) and end <= last:
                continue  # nothing is wanted here: it goes with the next one
            found.append(self._segment(begin, end, start, tensor if end <= last else None))
            if end > last:
                break
            begin, start = end, tensor
        return found

    def joined(self, first: Segment, second: Segment) -> Segment:
        """Two neighbours as one."""
        return Segment(
            (*first.names, *second.names),
            first.start,
            second.end,
            first.tensor_bytes + second.tensor_bytes,
            max(first.largest_bytes, second.largest_bytes),
            first.weight_bytes + second.weight_bytes,
        )

    def proto(self, segment: Segment) -> onnx.ModelProto:
        """The graph of a segment with static shapes; its outputs are what a tap shows."""
        nodes, constants = self._closure(segment)
        # Filled in place: a graph that is put into a model is copied, weights and all.
        model = onnx.ModelProto(ir_version=self._proto.ir_version)
        graph, read = model.graph, {name for node in nodes for name in reads(node)}
        graph.name = "segment"
        graph.node.extend(nodes)
        graph.input.extend(info for info in self._index.inputs if info.name in read)
        graph.initializer.extend(self._index.initializers[name] for name in constants)
        for name in segment.shown:
            graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
        model.opset_import.extend(self._proto.opset_import)
        set_input_shapes(model, self._shape)
        if segment.start is not None:
            shape = list(self._shapes[segment.start])
            graph.input.append(helper.make_tensor_value_info(segment.start, TensorProto.FLOAT, shape))
        fold_constants(model)
        return model

    def _cuts(self) -> list[tuple[int, str]]:
        """(number of nodes before the cut, the tensor that crosses it), in order."""
        graph = self._proto.graph
        if TOKENS not in {info.name for info in self._index.inputs}:
            return []
        readers: dict[str, list[int]] = {}
        for i, node in enumerate(self._nodes):
            for name in dict.fromkeys(reads(node)):
                readers.setdefault(name, []).append(i)
        for info in graph.output:
            readers.setdefault(info.name, []).append(len(self._nodes))
        stream, open_, cuts = {TOKENS}, {TOKENS}, list[tuple[int, str]]()
        for i, node in enumerate(self._nodes):
            if node.op_type not in ("Shape", "Size") and stream.intersection(reads(node)):
                stream.update(node.output)
                open_.update(name for name in node.output if name in readers)
            open_ = {name for name in open_ if readers[name][-1] > i}
            if len(open_) == 1 and self._may_cut(name := next(iter(open_)), [r for r in readers[name] if r > i]):
                if cuts and cuts[-1][1] == name:
                    continue
                cuts.append((i + 1, name))
        return cuts

    def _may_cut(self, name: str, later: Sequence[int]) -> bool:
        """Whether a tensor is a fork whose values can be fed."""
        index = self._index
        known = name in self._shapes and index.dtype(name) == TensorProto.FLOAT
        return known and name not in index.aliases and len(later) >= READERS

    def _segment(self, begin: int, end: int, start: str | None, stop: str | None) -> Segment:
        """The segment of nodes begin .. end - 1."""
        made = [name for node in self._nodes[begin:end] for name in node.output if name]
        names = tuple(name for name in made if name in self._names)
        bare = Segment(names, start, stop, 0, 0, 0)
        _, constants = self._closure(bare)
        weights = sum(self._index.initializers[name].ByteSize() for name in constants)
        largest = max((self.bytes_of(name) for name in made if name in self._index.data), default=0)
        return Segment(names, start, stop, sum(map(self.bytes_of, bare.shown)), largest, weights)

    def _closure(self, segment: Segment) -> tuple[list[onnx.NodeProto], list[str]]:
        """The nodes that a segment's tensors need, as far back as its start, and the constants that these read."""
        wanted, nodes = set(segment.shown), []
        if segment.start is not None:
            wanted.discard(segment.start)
        for node in reversed(self._nodes):
            if wanted.intersection(node.output):
                nodes.append(node)
                wanted.update(name for name in reads(node) if name != segment.start)
        return nodes[::-1], [name for name in self._index.initializers if name in wanted]


def static_shapes(network: Network, shape: tuple[int, int]) -> dict[str, tuple[int, ...]]:
    """Activation -> extents for one shape of batch, where they are known; the weights are not copied for it.

    Raises:
        ModelError: the model does not take this shape.
    """
    network.check_shape(*shape)
    proto, light = network.proto, onnx.ModelProto(ir_version=network.proto.ir_version)
    light.opset_import.extend(proto.opset_import)
    light.graph.name = "shapes"
    light.graph.node.extend(proto.graph.node)
    light.graph.input.extend(network.index.inputs)
    light.graph.output.extend(proto.graph.output)
    set_input_shapes(light, shape)
    for tensor in proto.graph.initializer:
        if prod(tensor.dims) <= SMALL:
            light.graph.initializer.append(tensor)
        else:
            light.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    fold_constants(light)
    index, found = GraphIndex(light.graph), dict[str, tuple[int, ...]]()
    for name in network.index.activations:
        extents = index.shape(name)
        if extents is not None and all(isinstance(extent, int) for extent in extents):
            found[name] = tuple(int(extent) for extent in extents)
    return found

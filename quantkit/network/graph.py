"""A network ready to be calibrated and built: an ONNX model, what its tensors are, and its hash."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import onnx
from onnx import numpy_helper

from quantkit.errors import ModelError
from quantkit.files import sha256_array
from quantkit.network.index import GraphIndex, WeightMatMul
from quantkit.network.shapes import fold_constants, infer_shapes, set_input_shapes

BATCH, SEQUENCE = "batch", "sequence"
Axes = tuple[str | None, ...]
PROBES = ((3, 5), (7, 11))  # batch and length of two trials; no product or sum of one pair fits the other


@dataclass(frozen=True, eq=False)
class Network:
    """An ONNX model with token inputs of shape (batch, sequence). The model must not be changed.

    Attributes:
        proto: the model, with type and shape of every tensor in value_info.
        id2label: class number -> name, where the model says so.
        max_positions: longest sequence the model takes; None when unknown.
        notes: what was noticed while loading, one sentence each (weights left unused, names changed).
    """

    proto: onnx.ModelProto
    id2label: Mapping[int, str] = field(default_factory=dict)
    max_positions: int | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        computed = [name for node in self.proto.graph.node for name in node.output if name]
        if not self.index.info.keys() >= set(computed):
            infer_shapes(self.proto)
            self.__dict__.pop("index")

    @cached_property
    def index(self) -> GraphIndex:
        """Lookups over the graph."""
        return GraphIndex(self.proto.graph)

    @cached_property
    def sha256(self) -> str:
        """Hexadecimal SHA-256 of the nodes, their attributes, names, and all constants.

        What does not change a result is left out: producer, documentation, inferred shapes, how constants are stored.
        """
        return model_sha256(self.proto)

    @property
    def names(self) -> tuple[str, ...]:
        """Every tensor that a node computes, in topological order."""
        return tuple(name for node in self.proto.graph.node for name in node.output if name)

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the inputs that are fed, in the model's order."""
        return tuple(info.name for info in self.index.inputs)

    @property
    def output_name(self) -> str:
        """Name of the logits."""
        return str(self.proto.graph.output[0].name)

    @property
    def num_labels(self) -> int:
        """Width of the logits; 0 when the graph does not say."""
        shape = self.index.shape(self.output_name) or ("",)
        return shape[-1] if isinstance(shape[-1], int) else 0

    def activations(self) -> list[str]:
        """Floating-point tensors computed from the data, in topological order: what can be calibrated.

        Constants, and tensors that depend on nothing but the inputs' shapes, are not among them.
        """
        return list(self.index.activations)

    def aliases(self) -> dict[str, str]:
        """Activation that holds another's values in another order -> that other, which is no alias itself."""
        return dict(self.index.aliases)

    def weight_matmuls(self) -> list[WeightMatMul]:
        """Every product of an activation with a constant matrix, in graph order."""
        return list(self.index.weight_matmuls)

    def axes(self) -> dict[str, Axes]:
        """Activation -> what each of its dimensions is: "batch", "sequence" or None.

        Where shape inference loses the names of the dimensions (as in most exports), the shapes for two different
        batches and lengths are compared: a dimension that follows the batch is the batch. A model with fixed shapes
        has only numbers: the first dimension counts as batch where it has the batch's extent, others as sequence where
        they have the sequence's, unless a width of the network is the same number. A tensor whose shape stays unknown
        is left out.
        """
        return dict(self._axes)

    @cached_property
    def _axes(self) -> dict[str, Axes]:
        """See `axes`; the trials are worth keeping."""
        shapes = [self.index]
        batch, sequence = self._token_dims
        if not (isinstance(batch, int) and isinstance(sequence, int)) and not self._named:
            shapes = [GraphIndex(self.fixed(*self._probe(size)).graph) for size in PROBES]
        token_dims = [index.shape(self.input_names[0]) or ("", "") for index in shapes]
        widths = self._widths if isinstance(sequence, int) else frozenset()
        found: dict[str, Axes] = {}
        for name in self.index.activations:
            known = [shape for index in shapes if (shape := index.shape(name)) is not None]
            if len(known) == len(shapes) and len({len(shape) for shape in known}) == 1:
                dims = zip(*known, strict=True)
                found[name] = tuple(_label(i, pair, token_dims, widths) for i, pair in enumerate(dims))
        return found

    def fixed(self, batch: int, seq_len: int) -> onnx.ModelProto:
        """A copy with static shapes, in which everything that follows from them is a constant; names stay.

        Raises:
            ModelError: the model has other fixed shapes, or cannot take a sequence this long.
        """
        self.check_shape(batch, seq_len)
        model = onnx.ModelProto()
        model.CopyFrom(self.proto)
        set_input_shapes(model, (batch, seq_len))
        fold_constants(model)
        return model

    def check_shape(self, batch: int, seq_len: int) -> None:
        """Refuses a shape of batch that the model cannot take.

        Raises:
            ModelError: the model has other fixed shapes, or cannot take a sequence this long.
        """
        if self.max_positions is not None and seq_len > self.max_positions:
            raise ModelError(
                f"A sequence of {seq_len} tokens is longer than the model's {self.max_positions} positions.",
                f"Ask for at most {self.max_positions}.",
            )
        for what, have, want in zip(("batch", "sequence length"), self._token_dims, (batch, seq_len), strict=True):
            if isinstance(have, int) and have != want:
                raise ModelError(
                    f"The model was exported with the fixed {what} {have}; {want} was asked for.",
                    f"Ask for {have}, or export it with dynamic axes.",
                )

    @cached_property
    def _token_dims(self) -> tuple[int | str, int | str]:
        """Extents or names of the two dimensions of the inputs."""
        shape = self.index.shape(self.input_names[0]) or ()
        return (shape[0], shape[1]) if len(shape) == 2 else ("", "")

    @property
    def _named(self) -> bool:
        """Whether every dimension of every activation is a number or has the name of an input's dimension."""
        names = set(self._token_dims)
        shapes = (self.index.shape(name) for name in self.index.activations)
        return all(shape is not None and all(isinstance(d, int) or d in names for d in shape) for shape in shapes)

    def _probe(self, size: tuple[int, int]) -> tuple[int, int]:
        """Batch and length of a trial, with the extents that are fixed."""
        batch, sequence = (
            want if isinstance(have, str) else have for have, want in zip(self._token_dims, size, strict=True)
        )
        return batch, sequence

    @cached_property
    def _widths(self) -> frozenset[int | str]:
        """Extents that are not the sequence's: widths of matrices, number and size of the attention heads."""
        found: set[int | str] = set()
        for product in self.index.weight_matmuls:
            found.update(self.index.shape(product.weight) or ())
        for node in self.index.data_matmuls:
            left, right = (self.index.shape(name) or () for name in node.input)
            shape = self.index.shape(node.output[0]) or ()
            if len(left) == len(right) == len(shape) == 4:
                # (batch, heads, sequence, d) @ (batch, heads, d, sequence), and probabilities @ values after it.
                found.add(shape[1])
                found.add(left[3] if shape[2] == shape[3] else shape[3])
        return frozenset(found)


def _label(
    position: int, dims: tuple[int | str, ...], tokens: list[tuple[int | str, ...]], widths: frozenset[int | str]
) -> str | None:
    """What a dimension is, from its extents and the inputs' in each of some trials."""
    if all(dim == shape[0] for dim, shape in zip(dims, tokens, strict=True)) and position == 0:
        return BATCH
    same = all(dim == shape[1] for dim, shape in zip(dims, tokens, strict=True))
    return SEQUENCE if same and position > 0 and not widths.intersection(dims) else None


def model_sha256(model: onnx.ModelProto) -> str:
    """Hexadecimal SHA-256 of what a model computes; see `Network.sha256`."""
    digest = hashlib.sha256()
    for opset in sorted(model.opset_import, key=lambda o: o.domain):
        digest.update(f"opset {opset.domain!r} {opset.version}\n".encode())
    for part in (model.graph.input, model.graph.output):
        digest.update(f"{[info.name for info in part]}\n".encode())
    for node in model.graph.node:
        digest.update(f"{node.domain!r} {node.op_type} {list(node.input)} {list(node.output)}\n".encode())
        for attribute in sorted(node.attribute, key=lambda a: a.name):
            digest.update(attribute.SerializeToString(deterministic=True))
    for tensor in sorted(model.graph.initializer, key=lambda t: t.name):
        digest.update(f"{tensor.name}\n".encode())
        sha256_array(digest, numpy_helper.to_array(tensor))
    return digest.hexdigest()

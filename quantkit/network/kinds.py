"""What each activation of a network is: probabilities, masked logits, the output of a GELU, ...

A calibrator that knows it can do better than one that sees only a histogram: probabilities have a range that needs no
data, and the -10000 that an attention mask adds says nothing about the range of the scores. Kinds are found by what
the nodes around a tensor do, never by its name. The kinds are:

    softmax, masked logits, mask, attention scores, attention context, layer norm, gelu, dense (a weight product and its
    bias), matmul, residual, embedding, the steps of a decomposed operation ("gelu step", "layer norm step"), and, for
    everything else, the operator's name in lower case.

A tensor that only reorders, cuts or casts another has the other's kind.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import onnx

from quantkit.network.index import ALIASING, GraphIndex, reads

SOFTMAX, MASKED_LOGITS, MASK, SCORES = "softmax", "masked logits", "mask", "attention scores"

PASSING = (*ALIASING, "Cast", "Dropout", "Slice", "Gather", "GatherElements", "GatherND", "Split", "Expand", "Concat")
ELEMENTWISE = ("Add", "Sub", "Mul", "Div", "Where", "Max", "Min", "Clip", "Pow")
DECOMPOSED = (*ELEMENTWISE, "Cast", "ReduceMean", "Sqrt", "Reciprocal")
"""Operators that a decomposed GELU or LayerNorm is made of, its Erf or Tanh apart."""
FUSED = {
    "Softmax": SOFTMAX,
    "LayerNormalization": "layer norm",
    "SkipLayerNormalization": "layer norm",
    "Gelu": "gelu",
    "FastGelu": "gelu",
    "BiasGelu": "gelu",
    "Gemm": "dense",
}
LASTING = ("dense", "embedding", SCORES)
"""Kinds that a constant factor or summand does not change."""


@dataclass(frozen=True)
class TensorKinds:
    """What `classify` found.

    Attributes:
        kinds: activation -> its kind, for every activation in topological order.
        unmasked: activation of kind "masked logits" -> the activation that holds the same values before the mask, where
            the graph has one.
    """

    kinds: dict[str, str] = field(default_factory=dict)
    unmasked: dict[str, str] = field(default_factory=dict)

    @property
    def masked(self) -> tuple[str, ...]:
        """The activations of kind "masked logits"."""
        return tuple(name for name, kind in self.kinds.items() if kind == MASKED_LOGITS)


def classify(index: GraphIndex) -> TensorKinds:
    """The kind of every activation of a graph."""
    return _Classifier(index).run()


class _Classifier:
    """One walk over a graph, in topological order."""

    def __init__(self, index: GraphIndex) -> None:
        self.index = index
        self.found = TensorKinds()
        self.patterns = {**decomposed_layer_norms(index), **decomposed_gelus(index)}

    @cached_property
    def masks(self) -> frozenset[str]:
        """Tensors that depend on the attention mask and on nothing else that is fed."""
        found = {info.name for info in self.index.inputs if "mask" in info.name}
        for node in self.index.graph.node:
            inputs = [name for name in reads(node) if name in self.index.data]
            if inputs and all(name in found for name in inputs):
                found.update(name for name in node.output if name in self.index.data)
        return frozenset(found)

    @cached_property
    def before_softmax(self) -> frozenset[str]:
        """Tensors from which a softmax is reached through elementwise and reordering operators only."""
        found: set[str] = set()
        frontier = [node.input[0] for node in self.index.graph.node if node.op_type == "Softmax"]
        while frontier:
            name = frontier.pop()
            if name in found or name not in self.index.data:
                continue
            found.add(name)
            node = self.index.producer.get(name)
            if node is not None and node.op_type in (*PASSING, *ELEMENTWISE):
                frontier.extend(node.input)
        return frozenset(found)

    def run(self) -> TensorKinds:
        """The kinds of all activations."""
        activations = set(self.index.activations)
        for node in self.index.graph.node:
            for name in node.output:
                if name in activations:
                    self.found.kinds[name] = self._kind(node, name)
        return self.found

    def _kind(self, node: onnx.NodeProto, name: str) -> str:
        """The kind of one result of a node; those of its inputs are known."""
        if name in self.masks:
            return MASK
        if name in self.patterns:
            return self.patterns[name]
        if node.op_type in PASSING:
            return self._passed(node, name)
        if node.op_type in ELEMENTWISE:
            return self._elementwise(node, name)
        if node.op_type == "MatMul":
            return self._product(node, name)
        return FUSED.get(node.op_type, str(node.op_type).lower())

    def _passed(self, node: onnx.NodeProto, name: str) -> str:
        """Kind of what a reordering, cutting or casting node gives."""
        sources = [source for source in node.input if source in self.found.kinds]
        kinds = {self.found.kinds[source] for source in sources}
        if len(kinds) == 1:
            if len(sources) == 1 and sources[0] in self.found.unmasked:
                self.found.unmasked[name] = self.found.unmasked[sources[0]]
            return kinds.pop()
        return "embedding" if node.op_type == "Gather" and not sources else str(node.op_type).lower()

    def _elementwise(self, node: onnx.NodeProto, name: str) -> str:
        """Kind of a sum, product, choice ... of tensors and constants."""
        operands = list(node.input)[1:] if node.op_type == "Where" else list(node.input)
        values = [x for x in operands if x in self.index.data and x not in self.masks]
        kinds = [self.found.kinds.get(x, "") for x in values]
        if name in self.before_softmax:
            if MASKED_LOGITS in kinds:
                if node.op_type in ("Max", "Min", "Clip") and values[0] in self.found.unmasked:
                    self.found.unmasked[name] = self.found.unmasked[values[0]]
                return MASKED_LOGITS
            hidden = any(x in self.masks for x in node.input)
            if hidden and len(values) == 1 and node.op_type in ("Add", "Sub", "Where"):
                self.found.unmasked[name] = values[0]
                return MASKED_LOGITS
        if len(values) == 1:
            if kinds[0] == "matmul" and node.op_type == "Add":
                return "dense"
            # A Where that replaces some values by a constant is a guard against NaN.
            return kinds[0] if kinds[0] in LASTING or node.op_type == "Where" else str(node.op_type).lower()
        if SCORES in kinds and name in self.before_softmax:
            return SCORES
        if node.op_type == "Add" and values:
            return "embedding" if set(kinds) == {"embedding"} else "residual"
        return str(node.op_type).lower()

    def _product(self, node: onnx.NodeProto, name: str) -> str:
        """Kind of a matrix product."""
        if not all(x in self.index.data for x in node.input):
            return "matmul"
        if name in self.before_softmax:
            return SCORES
        return "attention context" if SOFTMAX in [self.found.kinds.get(x) for x in node.input] else "matmul"


def decomposed_gelus(index: GraphIndex) -> dict[str, str]:
    """Tensors of every GELU written as x * (1 + erf(x / sqrt 2)) / 2, or with tanh, in any order of the factors."""
    kinds: dict[str, str] = {}
    for node in index.graph.node:
        if node.op_type not in ("Erf", "Tanh"):
            continue
        chain, factor = _gelu_chain(index, node.output[0])
        if not factor:
            continue
        # The factor is x, or x / 2; the way back from the function leads to x.
        before = index.producer.get(factor)
        sources = (factor, *(x for x in (before.input if before else ()) if x in index.data))
        ways = ((x, _between(index, node.input[0], x)) for x in sources)
        x, inner = next(((x, way) for x, way in ways if way is not None), ("", None))
        if inner is None:
            continue
        steps = inner | set(chain[:-1]) | ({factor} - {x})
        kinds.update(dict.fromkeys(steps, "gelu step"))
        kinds[chain[-1]] = "gelu"
    return kinds


def _gelu_chain(index: GraphIndex, tensor: str) -> tuple[list[str], str]:
    """What follows an Erf or Tanh up to the GELU's result, and the factor with which it is multiplied, "" if none."""
    chain, factor, added = [tensor], "", False
    while len(readers := index.consumers.get(chain[-1], [])) == 1 and readers[0].op_type in ("Add", "Mul"):
        others = [x for x in readers[0].input if x != chain[-1] and x in index.data]
        if others and (readers[0].op_type == "Add" or factor):
            break
        added |= readers[0].op_type == "Add"
        factor = others[0] if others else factor
        chain.append(readers[0].output[0])
    return chain, factor if added else ""


def decomposed_layer_norms(index: GraphIndex) -> dict[str, str]:
    """Tensors of every LayerNorm written as (x - mean) / sqrt(variance + eps) * gamma + beta."""
    kinds: dict[str, str] = {}
    for node in index.graph.node:
        deviation = node.input[0] if node.op_type in ("Div", "Mul") else ""
        centred = index.producer.get(deviation)
        if centred is None or centred.op_type != "Sub" or node.input[1] not in index.data:
            continue
        steps = _between(index, node.output[0], centred.input[0])
        made_by = {index.producer[name].op_type for name in steps or ()}
        if steps is None or not {"ReduceMean", "Sqrt"} <= made_by:
            continue
        last = node.output[0]
        for op in ("Mul", "Add"):
            readers = index.consumers.get(last, [])
            if len(readers) == 1 and readers[0].op_type == op and sum(x in index.data for x in readers[0].input) == 1:
                last = readers[0].output[0]
                steps.add(last)
        kinds.update(dict.fromkeys(steps, "layer norm step"))
        kinds[last] = "layer norm"
    return kinds


def _between(index: GraphIndex, end: str, start: str) -> set[str] | None:
    """Tensors on the way back from `end` (included) to `start` (not); None when the way leads past other operators."""
    found, frontier = set[str](), [end]
    while frontier:
        name = frontier.pop()
        if name == start or name in found or name not in index.data:
            continue
        node = index.producer.get(name)
        if node is None or node.op_type not in DECOMPOSED:
            return None
        found.add(name)
        frontier.extend(node.input)
    return found

"""A transformer of one layer, small enough to compile in milliseconds, and feeds for it."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

VOCAB, HIDDEN, HEADS, LABELS, POSITIONS = 50, 32, 2, 3, 16


class _Graph:
    def __init__(self, quantized: bool) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.floats: list[str] = []
        self.quantized = quantized
        self.draw = np.random.default_rng(3)

    def const(self, name: str, value: np.ndarray) -> str:
        self.initializers.append(numpy_helper.from_array(np.asarray(value, order="C"), name))
        return name

    def op(self, kind: str, inputs: list[str], name: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [name], name=f"{name}/node", **attributes))
        self.floats.append(name)
        return name

    def pair(self, x: str, scale: np.ndarray | float, zero: np.ndarray | int, axis: int | None = None) -> str:
        """A Q/DQ pair (or DQ over int8 weights) around `x`."""
        axes = {} if axis is None else {"axis": axis}
        parts = [self.const(f"{x}.scale", np.float32(scale)), self.const(f"{x}.zero", np.int8(zero))]
        if axis is None:
            self.nodes.append(helper.make_node("QuantizeLinear", [x, *parts], [f"{x}.codes"]))
        self.nodes.append(helper.make_node("DequantizeLinear", [f"{x}.codes", *parts], [f"{x}.back"], **axes))
        return f"{x}.back"

    def dense(self, x: str, name: str, outputs: int, inputs: int = HIDDEN, quantize: bool = True) -> str:
        weight = (self.draw.standard_normal((inputs, outputs)) * 0.2).astype(np.float32)
        if self.quantized and quantize:
            scale = np.abs(weight).max(axis=0) / 127
            self.const(f"{name}.weight.codes", np.rint(weight / scale).astype(np.int8))
            w = self.pair(f"{name}.weight", scale, np.zeros(outputs), axis=1)
            source = x if f"{x}.back" in {o for n in self.nodes for o in n.output} else None
            x = f"{source}.back" if source else self.pair(x, 0.05, 0)
        else:
            w = self.const(f"{name}.weight", weight)
        bias = self.const(f"{name}.bias", (self.draw.standard_normal(outputs) * 0.1).astype(np.float32))
        return self.op("Add", [self.op("MatMul", [x, w], f"{name}.matmul"), bias], name)

    def norm(self, x: str, name: str) -> str:
        gain = self.const(f"{name}.gain", np.ones(HIDDEN, np.float32))
        return self.op("LayerNormalization", [x, gain, self.const(f"{name}.bias", np.zeros(HIDDEN, np.float32))], name)

    def heads(self, x: str, permutation: list[int]) -> str:
        shape = self.const(f"{x}.shape", np.array([0, 0, HEADS, HIDDEN // HEADS]))
        return self.op("Transpose", [self.op("Reshape", [x, shape], f"{x}_split")], f"{x}_heads", perm=permutation)


def transformer(
    batch: int | None = None, sequence: int | None = None, *, quantized: bool = False, segments: bool = True
) -> SimpleNamespace:
    """`.proto`, and `.floats`: the names of its float tensors in order."""
    g = _Graph(quantized)
    words = g.const("words", g.draw.standard_normal((VOCAB, HIDDEN)).astype(np.float32))
    x = g.op("Gather", [words, "input_ids"], "embeddings.word")
    if segments:
        kinds = g.const("kinds", g.draw.standard_normal((2, HIDDEN)).astype(np.float32))
        x = g.op("Add", [x, g.op("Gather", [kinds, "token_type_ids"], "embeddings.type")], "embeddings.sum")
    x = g.norm(x, "embeddings.norm")
    one, big = g.const("one", np.float32(1)), g.const("big", np.float32(10000))
    mask = g.op("Cast", ["attention_mask"], "mask.float", to=TensorProto.FLOAT)
    mask = g.op("Mul", [g.op("Sub", [mask, one], "mask.shifted"), big], "mask.scaled")
    mask = g.op("Unsqueeze", [mask, g.const("mask.axes", np.array([1, 2]))], "mask")
    query = g.heads(g.dense(x, "query", HIDDEN), [0, 2, 1, 3])
    key = g.heads(g.dense(x, "key", HIDDEN), [0, 2, 3, 1])
    value = g.heads(g.dense(x, "value", HIDDEN), [0, 2, 1, 3])
    scores = g.op("Add", [g.op("MatMul", [query, key], "scores"), mask], "scores_masked")
    context = g.op("MatMul", [g.op("Softmax", [scores], "probs", axis=-1), value], "context_heads")
    merged = g.op("Transpose", [context], "context_merged", perm=[0, 2, 1, 3])
    context = g.op("Reshape", [merged, g.const("context.shape", np.array([0, 0, HIDDEN]))], "context")
    x = g.norm(g.op("Add", [g.dense(context, "attention.output", HIDDEN), x], "attention.residual"), "attention.norm")
    inner = g.dense(x, "ffn.intermediate", 2 * HIDDEN)
    erf = g.op("Erf", [g.op("Mul", [inner, g.const("rsqrt2", np.float32(0.70710678))], "gelu.scaled")], "gelu.erf")
    gate = g.op("Mul", [g.op("Add", [erf, one], "gelu.plus"), g.const("half", np.float32(0.5))], "gelu.gate")
    inner = g.op("Mul", [inner, gate], "gelu")
    x = g.norm(g.op("Add", [g.dense(inner, "ffn.output", HIDDEN, 2 * HIDDEN), x], "ffn.residual"), "ffn.norm")
    first = g.op("Gather", [x, g.const("zero", np.int64(0))], "first", axis=1)
    g.dense(first, "logits", LABELS, quantize=False)
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if segments else [])]
    sizes = [batch or "batch", sequence or "sequence"]
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, sizes) for name in names]
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [sizes[0], LABELS])
    graph = helper.make_graph(g.nodes, "transformer", inputs, [logits], g.initializers)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return SimpleNamespace(proto=onnx.shape_inference.infer_shapes(proto), floats=g.floats)


def feed_of(batch: int = 4, sequence: int = 8, seed: int = 0) -> dict[str, np.ndarray]:
    """Token ids, a mask with some padding, and segments."""
    draw = np.random.default_rng(seed)
    lengths = draw.integers(1, sequence + 1, batch)
    return {
        "input_ids": draw.integers(0, VOCAB, (batch, sequence)),
        "attention_mask": (np.arange(sequence) < lengths[:, None]).astype(np.int64),
        "token_type_ids": draw.integers(0, 2, (batch, sequence)),
    }


def one_node(node: onnx.NodeProto, dtype: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """A graph x (2, 4) -> y of a single node."""
    x = helper.make_tensor_value_info("x", dtype, [2, 4])
    y = helper.make_tensor_value_info("y", dtype, None)
    graph = helper.make_graph([node], "one", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture(scope="session")
def make_transformer() -> Callable[..., SimpleNamespace]:
    return transformer


@pytest.fixture(scope="session")
def make_feed() -> Callable[..., dict[str, np.ndarray]]:
    return feed_of


@pytest.fixture(scope="session")
def make_one_node() -> Callable[..., onnx.ModelProto]:
    return one_node


@pytest.fixture(scope="session")
def reference() -> Callable[..., dict[str, np.ndarray]]:
    """Every float tensor of a graph by onnx's own pure-Python evaluator, which shares no code with any engine."""
    from onnx.reference import ReferenceEvaluator

    def run(graph: SimpleNamespace, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        shown = onnx.ModelProto()
        shown.CopyFrom(graph.proto)
        shown.opset_import[0].version = 19  # the evaluator knows Q/DQ of 19 only, where they mean the same
        del shown.graph.output[:]
        shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in graph.floats)
        return dict(zip(graph.floats, ReferenceEvaluator(shown).run(None, dict(feed)), strict=True))

    return run

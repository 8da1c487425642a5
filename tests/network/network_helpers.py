"""What the tests of this room share: BERT in NumPy, a hand-made foreign export, feeds, runs, tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file, save_file

from quantkit.collect.moments import Moments, MomentsAccumulator
from quantkit.network.config import BertConfig
from quantkit.network.graph import Network
from quantkit.network.model import load_model
from quantkit.network.refine import observed_tensors
from quantkit.tables.table import CalibrationTable, Entry

erf = np.vectorize(math.erf, otypes=[np.float64])


def tiny_model(folder: Path) -> dict[str, np.ndarray]:
    """The weights of a model folder as they stand in the file."""
    return load_file(folder / "model.safetensors")


def copy_model(source: Path, target: Path, weights: Mapping[str, np.ndarray] | None = None) -> Path:
    """A copy of a model folder's config and weights, or with other weights."""
    target.mkdir(parents=True, exist_ok=True)
    (target / "config.json").write_bytes((source / "config.json").read_bytes())
    save_file(dict(weights if weights is not None else tiny_model(source)), target / "model.safetensors")
    return target


def feed(vocab: int, batch: int = 3, length: int = 11, seed: int = 0) -> dict[str, np.ndarray]:
    """Random tokens, two segments, the last sentence padded from its fifth token on."""
    draw = np.random.default_rng(seed)
    ids = draw.integers(5, vocab, (batch, length))
    mask, types = np.ones((batch, length), np.int64), np.zeros((batch, length), np.int64)
    mask[-1, 5:], types[:, length // 2 :] = 0, 1
    ids[-1, 5:] = 0
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


def gelu(x: np.ndarray, kind: str = "gelu") -> np.ndarray:
    if kind == "relu":
        return np.maximum(x, 0)
    if kind == "gelu":
        return 0.5 * x * (1 + erf(x / math.sqrt(2)))
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


class NumpyBert:
    """BERT in float64, written from the paper and not from quantkit's definition; keeps intermediate tensors."""

    def __init__(self, weights: Mapping[str, np.ndarray], config: BertConfig) -> None:
        self.w = {name.removeprefix("bert."): value.astype(np.float64) for name, value in weights.items()}
        self.config, self.seen = config, dict[str, np.ndarray]()

    def dense(self, x: np.ndarray, name: str) -> np.ndarray:
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + self.config.layer_norm_eps)
        return scaled * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def heads(self, x: np.ndarray) -> np.ndarray:
        batch, length, _ = x.shape
        return x.reshape(batch, length, self.config.num_heads, -1).transpose(0, 2, 1, 3)

    def layer(self, x: np.ndarray, mask: np.ndarray, i: int) -> np.ndarray:
        name = f"encoder.layer.{i}"
        query, key, value = (self.heads(self.dense(x, f"{name}.attention.self.{p}")) for p in ("query", "key", "value"))
        scores = query @ key.swapaxes(-1, -2) / math.sqrt(self.config.head_size)
        scores = np.where(mask[:, None, None, :] == 1, scores, -1e9)
        probs = np.exp(scores - scores.max(-1, keepdims=True))
        probs /= probs.sum(-1, keepdims=True)
        context = (probs @ value).transpose(0, 2, 1, 3).reshape(x.shape)
        x = self.norm(self.dense(context, f"{name}.attention.output.dense") + x, f"{name}.attention.output.LayerNorm")
        inner = gelu(self.dense(x, f"{name}.intermediate.dense"), self.config.hidden_act)
        out = self.norm(self.dense(inner, f"{name}.output.dense") + x, f"{name}.output.LayerNorm")
        for key_, tensor in {"probs": probs, "context": context, "norm": x, "inner": inner, "out": out}.items():
            self.seen[f"{i}.{key_}"] = tensor
        return out

    def hidden(self, tokens: Mapping[str, np.ndarray]) -> np.ndarray:
        ids, mask, types = (tokens[name] for name in ("input_ids", "attention_mask", "token_type_ids"))
        x = self.w["embeddings.word_embeddings.weight"][ids] + self.w["embeddings.token_type_embeddings.weight"][types]
        x = x + self.w["embeddings.position_embeddings.weight"][: ids.shape[1]]
        x = self.seen["embeddings"] = self.norm(x, "embeddings.LayerNorm")
        for i in range(self.config.num_layers):
            x = self.layer(x, mask, i)
        return x

    def logits(self, tokens: Mapping[str, np.ndarray]) -> np.ndarray:
        return self.dense(np.tanh(self.dense(self.hidden(tokens)[:, 0], "pooler.dense")), "classifier")

    def masked_lm(self, tokens: Mapping[str, np.ndarray]) -> np.ndarray:
        x = gelu(self.dense(self.hidden(tokens), "cls.predictions.transform.dense"), self.config.hidden_act)
        x = self.norm(x, "cls.predictions.transform.LayerNorm")
        decoder = self.w.get("cls.predictions.decoder.weight", self.w["embeddings.word_embeddings.weight"])
        return x @ decoder.T + self.w["cls.predictions.bias"]


def run(model: onnx.ModelProto, tokens: Mapping[str, np.ndarray], names: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Outputs of a model in onnxruntime, unfused, with further tensors by name."""
    import onnxruntime as ort

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    outputs = {info.name for info in copy.graph.output}
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in outputs)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"])
    wanted = {info.name: np.int32 if "int32" in info.type else np.int64 for info in session.get_inputs()}
    results = session.run(None, {name: tokens[name].astype(kind) for name, kind in wanted.items()})
    return dict(zip([info.name for info in session.get_outputs()], results, strict=True))


def table_of(tensors: Mapping[str, np.ndarray]) -> CalibrationTable:
    """A table with the largest magnitude of each tensor as threshold."""
    return CalibrationTable(
        {n: Entry(np.float32(np.abs(v).max() / 127), float(v.min()), float(v.max())) for n, v in tensors.items()},
        "minmax",
    )


class Foreign:
    """A BERT classifier as exporters write it: numbered names, LayerNorm in pieces, a boolean mask put in with Where,
    shapes computed at run time, constants in nodes, one matrix behind a Transpose, the head as Gemm."""

    def __init__(
        self, weights: Mapping[str, np.ndarray], config: BertConfig, opset: int = 14, *, names: bool = True
    ) -> None:
        self.w = {name.removeprefix("bert."): value for name, value in weights.items()}
        self.config, self.opset, self.names, self.count = config, opset, names, 0
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def op(self, kind: str, *inputs: str, **attributes: object) -> str:
        self.count += 1
        name = f"/{kind}_{self.count}" if self.names else ""
        self.nodes.append(helper.make_node(kind, inputs, [f"val_{self.count}"], name=name, **attributes))
        return f"val_{self.count}"

    def const(self, value: np.ndarray, node: bool = False) -> str:
        if node:
            return self.op("Constant", value=numpy_helper.from_array(value))
        self.count += 1
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), f"onnx::w_{self.count}"))
        return f"onnx::w_{self.count}"

    def scalar(self, value: float) -> str:
        return self.const(np.array(value, np.float32), node=True)

    def dense(self, x: str, name: str, transposed: bool = False) -> str:
        weight = self.w[f"{name}.weight"]
        matrix = self.op("Transpose", self.const(weight), perm=[1, 0]) if transposed else self.const(weight.T.copy())
        return self.op("Add", self.const(self.w[f"{name}.bias"]), self.op("MatMul", x, matrix))

    def norm(self, x: str, name: str) -> str:
        centred = self.op("Sub", x, self.op("ReduceMean", x, axes=[-1]))
        variance = self.op("ReduceMean", self.op("Pow", centred, self.scalar(2)), axes=[-1])
        root = self.op("Sqrt", self.op("Add", variance, self.scalar(self.config.layer_norm_eps)))
        scaled = self.op("Mul", self.op("Div", centred, root), self.const(self.w[f"{name}.weight"]))
        return self.op("Add", scaled, self.const(self.w[f"{name}.bias"]))

    def extents(self, x: str, *tail: int) -> str:
        """The first two extents of x, then `tail`, as the target of a Reshape."""
        dims = [self.op("Gather", self.op("Shape", x), self.const(np.array([i]), node=True), axis=0) for i in range(2)]
        return self.op("Concat", *dims, self.const(np.array(tail, np.int64), node=True), axis=0)

    def heads(self, x: str, perm: Sequence[int]) -> str:
        shape = self.extents(x, self.config.num_heads, self.config.head_size)
        return self.op("Transpose", self.op("Reshape", x, shape), perm=perm)

    def layer(self, x: str, hidden: str, i: int) -> str:
        name = f"encoder.layer.{i}"
        query = self.heads(self.dense(x, f"{name}.attention.self.query", transposed=True), [0, 2, 1, 3])
        key = self.heads(self.dense(x, f"{name}.attention.self.key"), [0, 2, 3, 1])
        value = self.heads(self.dense(x, f"{name}.attention.self.value"), [0, 2, 1, 3])
        scores = self.op("Div", self.op("MatMul", query, key), self.scalar(math.sqrt(self.config.head_size)))
        scores = self.op("Where", hidden, self.scalar(-1e9), scores)
        context = self.op("MatMul", self.op("Softmax", scores, axis=-1), value)
        context = self.op("Transpose", context, perm=[0, 2, 1, 3])
        context = self.op("Reshape", context, self.extents(context, self.config.hidden_size))
        y = self.op("Add", self.dense(context, f"{name}.attention.output.dense"), x)
        x = self.norm(y, f"{name}.attention.output.LayerNorm")
        y = self.dense(x, f"{name}.intermediate.dense")
        one = self.op("Add", self.op("Erf", self.op("Div", y, self.scalar(math.sqrt(2)))), self.scalar(1))
        y = self.op("Mul", self.op("Mul", y, one), self.scalar(0.5))
        y = self.op("Add", self.dense(y, f"{name}.output.dense"), x)
        return self.norm(y, f"{name}.output.LayerNorm")

    def model(
        self,
        inputs: Sequence[str] = ("input_ids", "attention_mask", "token_type_ids"),
        kind: int = TensorProto.INT64,
        shape: Sequence[object] = ("batch_size", "seq"),
        output: str = "output_0",
    ) -> onnx.ModelProto:
        ids, mask, types = inputs
        length = self.op("Gather", self.op("Shape", ids), self.const(np.array([1]), node=True), axis=0)
        positions = self.const(np.arange(self.config.max_positions)[None], node=True)
        positions = self.op(
            "Slice", positions, self.const(np.zeros(1, np.int64)), length, self.const(np.ones(1, np.int64))
        )
        embed = {n: self.const(self.w[f"embeddings.{n}_embeddings.weight"]) for n in ("word", "position", "token_type")}
        x = self.op("Add", self.op("Gather", embed["word"], ids), self.op("Gather", embed["token_type"], types))
        x = self.norm(self.op("Add", x, self.op("Gather", embed["position"], positions)), "embeddings.LayerNorm")
        hidden = self.op("Equal", self.op("Cast", mask, to=TensorProto.FLOAT), self.scalar(0))
        hidden = self.op("Unsqueeze", hidden, self.const(np.array([1, 2])))
        for i in range(self.config.num_layers):
            x = self.layer(x, hidden, i)
        first = self.op("Gather", x, self.const(np.array(0), node=True), axis=1)
        pooled = self.op("Tanh", self.gemm(first, "pooler.dense"))
        self.gemm(pooled, "classifier")
        self.nodes[-1].output[0] = output
        graph = helper.make_graph(
            self.nodes,
            "main_graph",
            [helper.make_tensor_value_info(name, kind, shape) for name in inputs],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, [shape[0], self.w["classifier.bias"].shape[0]])],
            self.constants,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)

    def gemm(self, x: str, name: str) -> str:
        return self.op("Gemm", x, self.const(self.w[f"{name}.weight"]), self.const(self.w[f"{name}.bias"]), transB=1)


def changed_network(folder: Path, change: Callable[[onnx.ModelProto], None]) -> Network:
    """The network of a model folder after a change to its constants."""
    proto = onnx.ModelProto()
    proto.CopyFrom(load_model(folder).proto)
    change(proto)
    return Network(proto)


TOKENS = [feed(100, 8, 20, seed=seed) for seed in range(8)]
"""Batches that moments rest on."""


def moments_of(network: Network) -> dict[str, Moments]:
    """Moments over `TOKENS` of what refinement wants to know."""
    names = observed_tensors(network.index)
    accumulators = {name: MomentsAccumulator() for name in names}
    for tokens in TOKENS:
        values = run(network.proto, tokens, names)
        for name in names:
            accumulators[name].update(values[name], tokens["attention_mask"] != 0)
    return {name: accumulator.moments() for name, accumulator in accumulators.items()}


def span(name: str, moments: Moments) -> Entry:
    """The full range of an activation, as a calibration method's answer."""
    low, high = float(moments.low.min()), float(moments.high.max())
    return Entry(np.float32(max(-low, high) / 127), low, high, "minmax")

"""A BERT classifier as torch.onnx.export names it, with small random weights: the names of TensorRT's recordings."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

BATCH, LENGTH, HIDDEN, HEADS, INNER, VOCABULARY = 2, 8, 16, 2, 32, 50


class TorchLike:
    """Builds the graph; a node is named after its module and operator, numbered from the second of a kind on."""

    def __init__(self, layers: int, vocabulary: int = VOCABULARY, hides: float | None = None) -> None:
        """`hides`: what the mask has where padding is, put there by Where as newer transformers do; None: by Mul."""
        self.layers, self.vocabulary, self.hides = layers, vocabulary, hides
        self.draw = np.random.default_rng(5)
        self.seen: Counter[str] = Counter()
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def op(self, kind: str, *inputs: str, module: str = "", **attributes: object) -> str:
        base = f"{module}/{kind}"
        number = self.seen[base]
        self.seen[base] += 1
        name = f"{base}_{number}" if number else base
        self.nodes.append(helper.make_node(kind, inputs, [f"{name}_output_0"], name=name, **attributes))
        return f"{name}_output_0"

    def const(self, value: np.ndarray) -> str:
        name = f"onnx::Constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(value, order="C"), name))
        return name

    def matrix(self, *shape: int) -> str:
        return self.const((self.draw.standard_normal(shape) * 0.2).astype(np.float32))

    def scalar(self, value: float) -> str:
        return self.const(np.array(value, np.float32))

    def linear(self, module: str, x: str, inputs: int, outputs: int) -> str:
        product = self.op("MatMul", x, self.matrix(inputs, outputs), module=module)
        return self.op("Add", self.matrix(outputs), product, module=module)

    def norm(self, number: int, x: str) -> str:
        module = f"/LayerNorm_{number}" if number else "/LayerNorm"
        weight = self.const(np.ones(HIDDEN, np.float32))
        return self.op("LayerNormalization", x, weight, self.matrix(HIDDEN), module=module, axis=-1)

    def heads(self, x: str, perm: list[int]) -> str:
        shape = self.const(np.array([BATCH, LENGTH, HEADS, HIDDEN // HEADS]))
        return self.op("Transpose", self.op("Reshape", x, shape), perm=perm)

    def layer(self, x: str, mask: str, i: int) -> str:
        end = f"_{i}" if i else ""
        dense = [f"/dense_{n}" if n else "/dense" for n in range(3 * i, 3 * i + 3)]
        query = self.heads(self.linear(f"/query{end}", x, HIDDEN, HIDDEN), [0, 2, 1, 3])
        key = self.heads(self.linear(f"/key{end}", x, HIDDEN, HIDDEN), [0, 2, 3, 1])
        value = self.heads(self.linear(f"/value{end}", x, HIDDEN, HIDDEN), [0, 2, 1, 3])
        scores = self.op("Mul", self.op("MatMul", query, key), self.scalar(1 / math.sqrt(HIDDEN // HEADS)))
        probs = self.op("Softmax", self.op("Add", scores, mask), axis=-1)
        context = self.op("Transpose", self.op("MatMul", probs, value), perm=[0, 2, 1, 3])
        context = self.op("Reshape", context, self.const(np.array([BATCH, LENGTH, HIDDEN])))
        x = self.norm(2 * i + 1, self.op("Add", self.linear(dense[0], context, HIDDEN, HIDDEN), x))
        inner = self.linear(dense[1], x, HIDDEN, INNER)
        one = self.op("Add", self.op("Erf", self.op("Div", inner, self.scalar(math.sqrt(2)))), self.scalar(1))
        inner = self.op("Mul", self.op("Mul", inner, one), self.scalar(0.5))
        return self.norm(2 * i + 2, self.op("Add", self.linear(dense[2], inner, INNER, HIDDEN), x))

    def model(self) -> onnx.ModelProto:
        words = self.op("Gather", self.matrix(self.vocabulary, HIDDEN), "input_ids", module="/word_embeddings")
        x = self.op("Add", words, self.matrix(1, LENGTH, HIDDEN))
        types = self.op("Gather", self.matrix(2, HIDDEN), "token_type_ids", module="/token_type_embeddings")
        x = self.norm(0, self.op("Add", x, types))
        if self.hides is None:
            mask = self.op("Sub", self.op("Cast", "attention_mask", to=TensorProto.FLOAT), self.scalar(1))
            mask = self.op("Mul", mask, self.scalar(10000))
        else:
            seen = self.op("Cast", "attention_mask", to=TensorProto.BOOL)
            mask = self.op("Where", seen, self.scalar(0), self.scalar(self.hides))
        mask = self.op("Reshape", mask, self.const(np.array([BATCH, 1, 1, LENGTH])))
        for i in range(self.layers):
            x = self.layer(x, mask, i)
        first = self.op("Gather", x, self.const(np.array(0)), axis=1)
        module = f"/dense_{3 * self.layers}"
        pooled = self.op("Gemm", first, self.matrix(HIDDEN, HIDDEN), self.matrix(HIDDEN), module=module, transB=1)
        self.op("Gemm", self.op("Tanh", pooled), self.matrix(2, HIDDEN), self.matrix(2), module="/classifier", transB=1)
        self.nodes[-1].output[0] = "logits"
        graph = helper.make_graph(
            self.nodes,
            "main_graph",
            [
                helper.make_tensor_value_info(name, TensorProto.INT32, [BATCH, LENGTH])
                for name in ("input_ids", "attention_mask", "token_type_ids")
            ],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [BATCH, 2])],
            self.constants,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

"""BERT (Devlin et al. 2018, arXiv:1810.04805), written once against `GraphBuilder`.

Tensor names are part of the interface: calibration tables refer to them. For layer i of the encoder, in order
("layer0." stands for "layer<i>."):

    layer0.attention.query.matmul   .query   .query_scaled   .query_split   .query_heads     (batch, heads, sequence, d)
    layer0.attention.key.matmul     .key     .key_split      .key_heads                      (batch, heads, d, sequence)
    layer0.attention.value.matmul   .value   .value_split    .value_heads                    (batch, heads, sequence, d)
    layer0.attention.scores  .scores_masked  .probs                                   (batch, heads, sequence, sequence)
    layer0.attention.context_heads  .context_split  .context
    layer0.attention.output.matmul  .output  .residual  .norm
    layer0.ffn.intermediate.matmul  .intermediate   .gelu.scaled  .gelu.erf  .gelu.shifted  .gelu.product  .gelu
    layer0.ffn.output.matmul  .output  .residual  .norm

before them embeddings.word, .position, .word_position, .token_type, .sum, .norm and mask.float, .shifted, .flat,
.additive; after them pooler.first, .dense.matmul, .dense, .tanh, logits.matmul, logits (or, with the masked-LM head,
transform.dense.matmul, .dense, .gelu, .norm, logits.matmul, logits). A dense layer's weight is "<name>.weight" as
(inputs, outputs), its bias "<name>.bias".

Deviations from the original, none of which changes the result beyond rounding: the factor 1/sqrt(d) is applied to the
query before the product with the keys (fused INT8 attention needs it there), and the mask is added as
(mask - 1) * 10000, so that there is neither a boolean tensor nor an infinity.
"""

from __future__ import annotations

import math
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from quantkit.errors import ModelError
from quantkit.network.builder import Dim, GraphBuilder
from quantkit.network.checkpoint import Weights
from quantkit.network.config import BertConfig
from quantkit.network.weights import DECODER, Head

T = TypeVar("T")

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
OUTPUT = "logits"
MASKED_LOGIT = 10000.0


def build_bert(
    builder: GraphBuilder[T],
    config: BertConfig,
    weights: Weights,
    *,
    batch: int | None = None,
    seq_len: int | None = None,
    head: Head = "classifier",
) -> T:
    """Builds the network and returns its output, which is also marked as such.

    Args:
        builder: where the graph is built.
        config: the network's shape.
        weights: its weights; see `quantkit.network.weights.read_weights`.
        batch: extent of the batch, or None when it may change.
        seq_len: tokens in a sequence, or None when that may change.
        head: "classifier" gives logits (batch, labels), "masked-lm" logits (batch, sequence, vocabulary).

    The inputs are input_ids, attention_mask and token_type_ids, whole numbers of shape (batch, sequence).

    Raises:
        ModelError: `seq_len` is longer than the positions the model has, or an extent is not positive.
    """
    for what, extent in (("batch", batch), ("sequence length", seq_len)):
        if extent is not None and extent < 1:
            raise ModelError(f"The {what} is {extent}; expected a positive number.")
    if seq_len is not None and seq_len > config.max_positions:
        raise ModelError(
            f"A sequence of {seq_len} tokens is longer than the model's {config.max_positions} positions.",
            f"Ask for at most {config.max_positions}.",
        )
    return _Bert(builder, config, weights, head).build(batch or "batch", seq_len or "sequence")


class _Bert(Generic[T]):
    """One run of the definition: the builder, the weights, and the scalars that layers share."""

    def __init__(self, builder: GraphBuilder[T], config: BertConfig, weights: Weights, head: Head) -> None:
        self.b, self.config, self.weights, self.head = builder, config, weights, head
        self._scalars: dict[str, T] = {}

    def build(self, batch: Dim, seq_len: Dim) -> T:
        """The whole network."""
        ids, mask, types = (self.b.input(name, (batch, seq_len)) for name in INPUTS)
        x = self.embeddings(ids, types, seq_len)
        bias = self.additive_mask(mask)
        for i in range(self.config.num_layers):
            x = self.feed_forward(self.attention(x, bias, i), i)
        logits = self.classifier(x) if self.head == "classifier" else self.masked_lm(x)
        self.b.output(logits)
        return logits

    def embeddings(self, ids: T, types: T, seq_len: Dim) -> T:
        """(batch, sequence, hidden) from token numbers and segment numbers."""
        b, w = self.b, self.weights
        table = b.constant("embeddings.word.weight", w["embeddings.word_embeddings.weight"])
        word = b.gather(table, ids, name="embeddings.word")
        positions = w["embeddings.position_embeddings.weight"][None]
        if isinstance(seq_len, int):
            position = b.constant("embeddings.position", positions[:, :seq_len])
        else:
            table = b.constant("embeddings.position.weight", positions)
            position = b.prefix(table, ids, 1, name="embeddings.position")
        x = b.add(word, position, name="embeddings.word_position")
        table = b.constant("embeddings.token_type.weight", w["embeddings.token_type_embeddings.weight"])
        x = b.add(x, b.gather(table, types, name="embeddings.token_type"), name="embeddings.sum")
        return self.norm(x, "embeddings.norm", "embeddings.LayerNorm")

    def additive_mask(self, mask: T) -> T:
        """(batch, 1, 1, sequence): 0 where a token stands, -10000 where there is padding."""
        b = self.b
        x = b.sub(b.cast_float(mask, name="mask.float"), self.scalar("one", 1.0), name="mask.shifted")
        x = b.reshape(x, (0, 1, 1, -1), name="mask.flat")
        return b.mul(x, self.scalar("mask.strength", MASKED_LOGIT), name="mask.additive")

    def attention(self, x: T, bias: T, i: int) -> T:
        """Multi-head self-attention, its output projection, residual and norm."""
        b, name, source = self.b, f"layer{i}.attention", f"encoder.layer.{i}.attention"
        query = self.dense(x, f"{name}.query", f"{source}.self.query")
        query = b.mul(query, self.scalar("attention.scale", self.config.head_size**-0.5), name=f"{name}.query_scaled")
        query = self.heads(query, f"{name}.query", (0, 2, 1, 3))
        key = self.heads(self.dense(x, f"{name}.key", f"{source}.self.key"), f"{name}.key", (0, 2, 3, 1))
        value = self.heads(self.dense(x, f"{name}.value", f"{source}.self.value"), f"{name}.value", (0, 2, 1, 3))
        scores = b.add(b.matmul(query, key, name=f"{name}.scores"), bias, name=f"{name}.scores_masked")
        context = b.matmul(b.softmax(scores, name=f"{name}.probs"), value, name=f"{name}.context_heads")
        context = b.transpose(context, (0, 2, 1, 3), name=f"{name}.context_split")
        context = b.reshape(context, (0, 0, self.config.hidden_size), name=f"{name}.context")
        y = self.dense(context, f"{name}.output", f"{source}.output.dense")
        return self.norm(b.add(y, x, name=f"{name}.residual"), f"{name}.norm", f"{source}.output.LayerNorm")

    def feed_forward(self, x: T, i: int) -> T:
        """Two dense layers with the activation between them, residual and norm."""
        name, source = f"layer{i}.ffn", f"encoder.layer.{i}"
        y = self.activation(self.dense(x, f"{name}.intermediate", f"{source}.intermediate.dense"), name)
        y = self.dense(y, f"{name}.output", f"{source}.output.dense")
        return self.norm(self.b.add(y, x, name=f"{name}.residual"), f"{name}.norm", f"{source}.output.LayerNorm")

    def classifier(self, x: T) -> T:
        """Logits (batch, labels) from the first token."""
        x = self.dense(self.b.select(x, 0, 1, name="pooler.first"), "pooler.dense", "pooler.dense")
        return self.dense(self.b.tanh(x, name="pooler.tanh"), OUTPUT, "classifier")

    def masked_lm(self, x: T) -> T:
        """Logits (batch, sequence, vocabulary) of BertForMaskedLM."""
        source = "cls.predictions.transform"
        x = self.activation(self.dense(x, "transform.dense", f"{source}.dense"), "transform")
        x = self.norm(x, "transform.norm", f"{source}.LayerNorm")
        decoder, bias = self.weights[DECODER], self.weights["cls.predictions.bias"]
        return self.affine(x, OUTPUT, decoder, bias)

    def dense(self, x: T, name: str, source: str) -> T:
        """The product x @ W + b with the checkpoint's weights under `source`."""
        return self.affine(x, name, self.weights[f"{source}.weight"], self.weights[f"{source}.bias"])

    def affine(self, x: T, name: str, weight: npt.NDArray[np.float32], bias: npt.NDArray[np.float32]) -> T:
        """The product x @ weight.T + bias; the product alone is "<name>.matmul"."""
        matrix = self.b.constant(f"{name}.weight", np.ascontiguousarray(weight.T))
        product = self.b.matmul(x, matrix, name=f"{name}.matmul")
        return self.b.add(product, self.b.constant(f"{name}.bias", bias), name=name)

    def norm(self, x: T, name: str, source: str) -> T:
        """LayerNorm with the checkpoint's weights under `source`."""
        gamma = self.b.constant(f"{name}.weight", self.weights[f"{source}.weight"])
        beta = self.b.constant(f"{name}.bias", self.weights[f"{source}.bias"])
        return self.b.layer_norm(x, gamma, beta, self.config.layer_norm_eps, name=name)

    def heads(self, x: T, name: str, perm: tuple[int, ...]) -> T:
        """Cuts (batch, sequence, hidden) into heads and orders the dimensions by `perm`."""
        x = self.b.reshape(x, (0, 0, self.config.num_heads, self.config.head_size), name=f"{name}_split")
        return self.b.transpose(x, perm, name=f"{name}_heads")

    def activation(self, x: T, name: str) -> T:
        """The activation between the dense layers; its result is "<name>.gelu" (or "<name>.relu")."""
        if self.config.hidden_act == "relu":
            return self.b.relu(x, name=f"{name}.relu")
        return self.gelu(x, f"{name}.gelu") if self.config.hidden_act == "gelu" else self.gelu_tanh(x, f"{name}.gelu")

    def gelu(self, x: T, name: str) -> T:
        """The product x * (1 + erf(x / sqrt 2)) * 0.5; OpenVINO and onnxruntime recognise this very order."""
        b = self.b
        y = b.erf(b.div(x, self.scalar("sqrt_two", math.sqrt(2.0)), name=f"{name}.scaled"), name=f"{name}.erf")
        y = b.mul(x, b.add(y, self.scalar("one", 1.0), name=f"{name}.shifted"), name=f"{name}.product")
        return b.mul(y, self.scalar("half", 0.5), name=name)

    def gelu_tanh(self, x: T, name: str) -> T:
        """The product x * 0.5 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))), "gelu_new" in Hugging Face's words."""
        b = self.b
        cube = b.mul(b.mul(x, x, name=f"{name}.square"), x, name=f"{name}.cube")
        y = b.mul(cube, self.scalar("gelu.cubic", 0.044715), name=f"{name}.cubic")
        y = b.mul(
            b.add(x, y, name=f"{name}.sum"), self.scalar("gelu.slope", math.sqrt(2 / math.pi)), name=f"{name}.scaled"
        )
        y = b.add(b.tanh(y, name=f"{name}.tanh"), self.scalar("one", 1.0), name=f"{name}.shifted")
        return b.mul(b.mul(x, self.scalar("half", 0.5), name=f"{name}.half"), y, name=name)

    def scalar(self, name: str, value: float) -> T:
        """A float32 constant without dimensions, made once."""
        if name not in self._scalars:
            self._scalars[name] = self.b.constant(name, np.array(value, np.float32))
        return self._scalars[name]

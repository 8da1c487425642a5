"""BERT from plugins alone: nothing is left to Myelin, and every matrix product has the type that was asked for.

Seven kernels a layer: query, key and value as one product; attention; its output product; residual and LayerNorm; the
two products of the feed-forward part, the first with GELU; residual and LayerNorm again. In INT8 the products read and
write INT8 with the scales of a calibration table, weights have a scale for every output, and sums that LayerNorm reads
stay in FP16, as does the residual. What a product reads is coded from its lowest to its highest value where the table
knows both (GELU's result would waste half of the codes around zero): code = round(x / scale) + shift, and the product's
bias makes up for the shift. Query, key and value are coded around zero.

Tensor names are those of `quantkit.network.bert`; what only this network has is called "...@int8" and
"layer0.attention.qkv".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from quantkit.backends.trt.plugins.fields import add_plugin
from quantkit.backends.trt.plugins.library import HALF, INT8
from quantkit.errors import BackendError, TableError
from quantkit.network.bert import OUTPUT
from quantkit.network.checkpoint import Weights
from quantkit.network.config import BertConfig
from quantkit.qparams import INT8_MAX, quantize, weight_scales
from quantkit.tables.table import CalibrationTable

STARTS = "starts"
"""Input of packed networks: the first token of every sentence, and the end of the last; int32 (sentences + 1,)."""

Tiles = Callable[["Product"], Sequence[tuple[int, int]]]
"""Gives, for a product, pairs of a number of rows and the tile shape that is fastest for it; () leaves it to a rule."""


@dataclass(frozen=True)
class Product:
    """What decides how fast a linear layer is, apart from its rows: types, sizes, GELU."""

    type: int
    out_type: int
    outputs: int
    inputs: int
    gelu: bool


@dataclass(frozen=True)
class Form:
    """The shapes of a network.

    Attributes:
        batch, seq_len: fixed extents; 0 for those that may change.
        packed: whether sentences come packed: tokens (tokens,), and `STARTS`.
        longest: tokens of the longest sentence, for packed networks.
    """

    batch: int = 0
    seq_len: int = 0
    packed: bool = False
    longest: int = 0


def refusal(config: BertConfig, head: str) -> str | None:
    """Why the plugins cannot make this network; None when they can."""
    if config.head_size not in (32, 64):
        return f"the plugins' attention has heads of 32 or 64, not {config.head_size}"
    if config.hidden_act != "gelu":
        return f"the plugins have GELU with the error function, not {config.hidden_act}"
    if config.hidden_size % 32 or config.intermediate_size % 32 or config.hidden_size > 2048:
        return "the plugins take widths that are multiples of 32, the hidden one up to 2048"
    return head_refusal(head)


def head_refusal(head: str) -> str | None:
    """Why the plugins cannot make a network with this head; None when they can."""
    return None if head == "classifier" else "the plugins have the classifier's head only"


@dataclass
class PluginNetwork:
    """Fills a network definition.

    Args:
        trt: the tensorrt module.
        network: the INetworkDefinition.
        config, weights: see `quantkit.network.bert.build_bert`.
        table: scales, for INT8; None makes a network of FP16.
        tiles: see `Tiles`.

    Attributes:
        used: entries of the table that the network was made with.
        says: why it is made of these parts.

    Raises:
        BackendError: the plugins cannot make this network, or TensorRT refuses one.
        TableError: the table lacks a tensor that becomes INT8, or has no scale for it.
    """

    trt: Any
    network: Any
    config: BertConfig
    weights: Weights
    table: CalibrationTable | None = None
    tiles: Tiles = field(default=lambda _: ())

    def __post_init__(self) -> None:
        if reason := refusal(self.config, "classifier"):
            raise BackendError(f"This model cannot be built from plugins: {reason}.", "Use --network api.")
        self.used: list[str] = []
        self.kept: list[Any] = []
        self.says: tuple[str, ...] = ()

    @property
    def int8(self) -> bool:
        """Whether products are INT8."""
        return self.table is not None

    def build(self, form: Form) -> None:
        """The whole network; its output is `logits`."""
        config, trt = self.config, self.trt
        shape: tuple[int, ...] = (-1,) if form.packed else (form.batch or -1, form.seq_len or -1)
        ids = self.network.add_input("input_ids", trt.int32, shape)
        mask = None if form.packed else self.network.add_input("attention_mask", trt.int32, shape)
        types = self.network.add_input("token_type_ids", trt.int32, shape)
        starts = self.network.add_input(STARTS, trt.int32, (-1,)) if form.packed else None
        if form.packed and not 0 < form.longest <= config.max_positions:
            raise BackendError(f"Packed sentences may have 1 to {config.max_positions} tokens, not {form.longest}.")
        x, quantized = self.embeddings(ids, types, starts)
        for i in range(config.num_layers):
            last = i == config.num_layers - 1
            x, quantized = self.attention(x, quantized, starts if form.packed else mask, form, i)
            x, quantized = self.feed_forward(x, quantized, i, quantize=self.int8 and not last)
        self.classifier(x, starts)

    def embeddings(self, ids: Any, types: Any, starts: Any) -> tuple[Any, Any]:
        """The first hidden state, in FP16 and, where wanted, INT8."""
        name, prefix = "embeddings.norm", "embeddings"
        tables = {
            field: self.weights[f"{prefix}.{source}_embeddings.weight"].astype(np.float16).view(np.int16)
            for field, source in (("word", "word"), ("position", "position"), ("segment", "token_type"))
        }
        values = {
            **tables,
            **self.norm_values(f"{prefix}.LayerNorm"),
            **self.embedding_values(starts),
            "quantize": int(self.int8),
            **self.code_values(name),
        }
        return self.two_outputs("QuantkitEmbedding", name, [ids, types, *([] if starts is None else [starts])], values)

    def embedding_values(self, starts: Any) -> dict[str, Any]:
        """Fields on the form of the embeddings' output."""
        return {"packed": int(starts is not None)}

    def attention(self, x: Any, quantized: Any, lengths: Any, form: Form, i: int) -> tuple[Any, Any]:
        """Self-attention, its output product, residual and norm."""
        name, source = f"layer{i}.attention", f"encoder.layer.{i}.attention"
        head, kind = self.config.head_size, INT8 if self.int8 else HALF
        parts = ("query", "key", "value")
        scales = [self.scale(f"{name}.{part}") for part in parts]
        qkv = self.linear(
            quantized if self.int8 else x,
            f"{name}.qkv",
            np.concatenate([self.weights[f"{source}.self.{part}.weight"] for part in parts]),
            np.concatenate([self.weights[f"{source}.self.{part}.bias"] for part in parts]),
            self.input_of(i, "attention"),
            out_scales=np.repeat(np.array(scales, np.float32), self.config.hidden_size),
            out_range=f"{name}.{parts[int(np.argmax(scales))]}",
        )
        values = {
            "type": kind,
            "out_type": kind,
            "heads": self.config.num_heads,
            "head": head,
            "packed": int(form.packed),
            "longest": form.longest,
            "score_scale": float(scales[0] * scales[1] * head**-0.5),
            "value_scale": float(scales[2]),
            **self.code_values(f"{name}.context"),
        }
        context = self.plugin("QuantkitAttention", f"{name}.context", [qkv, lengths], values)[0]
        self.give_range(context, f"{name}.context")
        y = self.dense(context, f"{name}.output", f"{source}.output.dense", f"{name}.context")
        return self.norm(y, x, f"{name}.norm", f"{source}.output.LayerNorm", quantize=self.int8)

    def feed_forward(self, x: Any, quantized: Any, i: int, *, quantize: bool) -> tuple[Any, Any]:
        """Two products with GELU between them, residual and norm."""
        name, source = f"layer{i}.ffn", f"encoder.layer.{i}"
        inner = f"{name}.gelu"
        weight, bias = (self.weights[f"{source}.intermediate.dense.{part}"] for part in ("weight", "bias"))
        y = self.linear(
            quantized if self.int8 else x,
            inner,
            weight,
            bias,
            self.input_of(i, "ffn"),
            out_range=inner,
            gelu=True,
        )
        y = self.dense(y, f"{name}.output", f"{source}.output.dense", inner)
        return self.norm(y, x, f"{name}.norm", f"{source}.output.LayerNorm", quantize=quantize)

    def classifier(self, x: Any, starts: Any) -> None:
        """Logits, float32 (batch, labels), from each sentence's first token."""
        packed = {"packed": int(starts is not None)}
        inputs = [x] if starts is None else [x, starts]
        first = self.plugin("QuantkitFirst", "pooler.first", inputs, packed)[0]
        pooled = self.linear(first, "pooler.dense", *self.affine("pooler.dense"), "", half=True)
        weight, bias = self.affine("classifier")
        values = {"weight": weight.astype(np.float32), "bias": bias.astype(np.float32)}
        logits = self.plugin("QuantkitClassifier", OUTPUT, [pooled], values)[0]
        self.network.mark_output(logits)

    def dense(self, x: Any, name: str, source: str, range_name: str) -> Any:
        """A product with bias whose result is FP16; `range_name` is the table's name of the input."""
        return self.linear(x, name, *self.affine(source), range_name)

    def affine(self, source: str) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Weight (outputs, inputs) and bias of the checkpoint."""
        return self.weights[f"{source}.weight"], self.weights[f"{source}.bias"]

    def linear(
        self,
        x: Any,
        name: str,
        weight: npt.NDArray[Any],
        bias: npt.NDArray[Any],
        range_name: str,
        *,
        out_scales: Any = None,
        out_range: str = "",
        in_code: tuple[float, int] | None = None,
        gelu: bool = False,
        half: bool = False,
    ) -> Any:
        """A product with a weight (outputs, inputs).

        Args:
            x: its input, INT8 unless the network or this product is of FP16.
            name: of its result.
            weight: of the checkpoint, (outputs, inputs).
            bias: of the checkpoint, (outputs,).
            range_name: the table's name of the input.
            out_scales: scales of an INT8 result that is coded around zero, one for every output.
            out_range: the table's name of the tensor that gives an INT8 result its range; empty for an FP16 one.
            in_code: scale of an INT8 input and its code of zero; the table's when None.
            gelu: whether GELU follows.
            half: compute in FP16 whatever the network is of.
        """
        int8 = self.int8 and not half
        outputs, inputs = weight.shape
        product = Product(INT8 if int8 else HALF, INT8 if int8 and out_range else HALF, outputs, inputs, gelu)
        alpha, beta = np.ones(outputs, np.float32), bias.astype(np.float32)
        stored: npt.NDArray[Any] = weight.astype(np.float16).view(np.int16)
        if int8:
            scale, shift = in_code or self.code(range_name)
            own = weight_scales(weight, 0)
            stored = quantize(weight, own[:, None])
            alpha = (np.float32(scale) * own).astype(np.float32)
            beta = (beta - alpha * np.float32(shift) * stored.sum(axis=1, dtype=np.int64)).astype(np.float32)
        code = {"out_scale": 1.0}
        if product.out_type == INT8 and out_scales is not None:
            alpha, beta = (alpha / out_scales).astype(np.float32), (beta / out_scales).astype(np.float32)
        elif product.out_type == INT8:
            code = self.code_values(out_range)
        values: dict[str, Any] = {
            "weight": stored,
            "alpha": alpha,
            "beta": beta,
            "type": product.type,
            "out_type": product.out_type,
            "gelu": int(gelu),
            "n": outputs,
            "k": inputs,
            **code,
        }
        if tiles := [number for pair in self.tiles(product) for number in pair]:
            values["tiles"] = np.array(tiles, np.int32)
        y = self.plugin("QuantkitLinear", name, [x], values)[0]
        if product.out_type == INT8:
            self.give_range(y, out_range)
        return y

    def norm(self, x: Any, residual: Any, name: str, source: str, *, quantize: bool) -> tuple[Any, Any]:
        """Residual and LayerNorm, in FP16 and, where wanted, INT8."""
        values = {
            **self.norm_values(source),
            "type": HALF,
            "residual_type": HALF,
            "out_type": HALF,
            "quantize": int(quantize),
            **(self.code_values(name) if quantize else {}),
        }
        return self.two_outputs("QuantkitNorm", name, [x, residual], values)

    def norm_values(self, source: str) -> dict[str, Any]:
        """Weights of a LayerNorm."""
        gamma, beta = self.affine(source)
        epsilon = float(self.config.layer_norm_eps)
        return {"gamma": gamma.astype(np.float32), "beta": beta.astype(np.float32), "epsilon": epsilon}

    def input_of(self, i: int, part: str) -> str:
        """The table's name of what a layer's attention or feed-forward part reads."""
        if part == "ffn":
            return f"layer{i}.attention.norm"
        return f"layer{i - 1}.ffn.norm" if i else "embeddings.norm"

    def scale(self, name: str) -> float:
        """The table's scale of a tensor; 1 in FP16.

        Raises:
            TableError: the table lacks the tensor, or it was zero throughout.
        """
        if self.table is None:
            return 1.0
        if name not in self.table:
            raise TableError(
                f"The table has no scale for {name!r}, which becomes INT8.", "Calibrate this model with quantkit."
            )
        scale = float(self.table[name].scale)
        if scale <= 0:
            raise TableError(f"The table's scale of {name!r} is {scale}; expected a positive one.", "Calibrate again.")
        self.used.append(name)
        return scale

    def code(self, name: str) -> tuple[float, int]:
        """Scale of a tensor's INT8 codes, and the code of zero: 0 when the table does not know its extremes."""
        scale = self.scale(name)
        entry = None if self.table is None else self.table[name]
        if entry is None or entry.minimum is None or entry.maximum is None:
            return scale, 0
        low, high = min(max(entry.minimum, -entry.amax), 0.0), max(min(entry.maximum, entry.amax), 0.0)
        own = (high - low) / (2 * INT8_MAX)
        return (own, round(-low / own) - INT8_MAX) if 0 < own < scale else (scale, 0)

    def code_values(self, name: str) -> dict[str, float]:
        """A plugin's fields on its INT8 output; none in FP16."""
        if not self.int8:
            return {}
        scale, shift = self.code(name)
        return {"out_scale": scale, "out_shift": float(shift)}

    def give_range(self, tensor: Any, name: str) -> None:
        """Tells TensorRT the range of an INT8 tensor; its plugins have their scales of their own."""
        if self.table is not None and not tensor.set_dynamic_range(-self.table[name].amax, self.table[name].amax):
            raise TableError(f"TensorRT refuses the range of {name!r}.")

    def two_outputs(self, plugin: str, name: str, inputs: list[Any], values: Mapping[str, Any]) -> tuple[Any, Any]:
        """A plugin whose second output, if there is one, is the first in INT8."""
        outputs = self.plugin(plugin, name, inputs, values)
        if len(outputs) == 1:
            return outputs[0], None
        outputs[1].name = f"{name}@int8"
        self.give_range(outputs[1], name)
        return outputs[0], outputs[1]

    def plugin(self, kind: str, name: str, inputs: list[Any], values: Mapping[str, Any]) -> list[Any]:
        """Adds a plugin; its output tensors, the first of which gets the name; see `add_plugin`."""
        outputs, kept = add_plugin(self.trt, self.network, kind, name, inputs, values)
        self.kept += kept
        return outputs

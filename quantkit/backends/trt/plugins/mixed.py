"""BERT from plugins and TensorRT's own linear layers, for GPUs that our linear layers do not run on.

Tensors between layers are (tokens, width, 1, 1), the shape that TensorRT's convolutions and its attention plugin take;
with interleaved attention (1, width, tokens, 1). Sentences come packed. The linear layers are TensorRT's, with a joint
product of query, key and value; attention is TensorRT's plugin or ours; embeddings, residual and LayerNorm, and the
classifier's ends are our plugins or TensorRT's. Every tensor that TensorRT may make INT8 has its range from the table.

Names are those of `quantkit.network.bert`; what only this network has is "layer0.attention.qkv", or has an "@".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from quantkit.backends.trt import ranges
from quantkit.backends.trt.plugins import attention
from quantkit.backends.trt.plugins.attention import Factors
from quantkit.backends.trt.plugins.choice import Chosen
from quantkit.backends.trt.plugins.definition import STARTS, Form, PluginNetwork
from quantkit.backends.trt.plugins.fields import add_plugin
from quantkit.backends.trt.plugins.layers import Layers
from quantkit.backends.trt.plugins.library import FLOAT, HALF, INT8
from quantkit.errors import BackendError, TableError
from quantkit.network.bert import OUTPUT
from quantkit.qparams import INT8_MAX

PARTS = ("query", "key", "value")
EMBEDDINGS, NORM = "CustomEmbLayerNormPluginDynamic", "CustomSkipLayerNormPluginDynamic"
NUMBERS = {"float": FLOAT, "half": HALF, "int8": INT8}


@dataclass
class MixedNetwork(PluginNetwork):
    """Fills a network definition; see `PluginNetwork`.

    Args:
        chosen: the parts.
    """

    chosen: Chosen = field(default_factory=Chosen)

    def __post_init__(self) -> None:
        self.used: list[str] = []
        self.kept: list[Any] = []
        self.says: tuple[str, ...] = ()
        self.amax: dict[str, float] = {}
        self.layers = Layers(self.trt, self.network, self.chosen.constrained, self.kept)

    @property
    def own(self) -> bool:
        """Whether what stands between the products is ours."""
        return self.chosen.norms == "own"

    @property
    def interleaved(self) -> bool:
        """Whether tokens stand along the third dimension."""
        return self.chosen.attention == "interleaved"

    def build(self, form: Form) -> None:
        """The whole network; its output is `logits`.

        Raises:
            BackendError: the sentences are not packed, or longer than the model has positions.
        """
        if not form.packed or not 0 < form.longest <= self.config.max_positions:
            raise BackendError(
                f"Packed sentences may have 1 to {self.config.max_positions} tokens, not {form.longest}."
            )
        trt = self.trt
        ids, types = (self.network.add_input(name, trt.int32, (-1,)) for name in ("input_ids", "token_type_ids"))
        starts = self.network.add_input(STARTS, trt.int32, (-1,))
        kernel = self.chosen.kernel
        self.extent = self.layers.constant("longest", np.zeros(kernel.length if kernel else form.longest, np.int32))
        x, quantized = self.embeddings(ids, types, starts)
        for i in range(self.config.num_layers):
            last = i == self.config.num_layers - 1
            x, quantized = self.attention(x, quantized, starts, form, i)
            x, quantized = self.feed_forward(x, quantized, i, quantize=self.int8 and not last)
        self.classifier(x, starts)
        if self.table is not None:
            self.used += ranges.set_dynamic_ranges(trt, self.network, self.table)

    def embeddings(self, ids: Any, types: Any, starts: Any) -> tuple[Any, Any]:
        """The first hidden state; in INT8 too where that is a tensor of its own."""
        name = "embeddings.norm"
        if self.own:
            return self.as_given(super().embeddings(ids, types, starts))
        gamma, beta = self.affine("embeddings.LayerNorm")
        prefix, tables = "bert_embeddings", {"word": "word", "token_type": "token_type", "position": "position"}
        values = {
            **{
                f"{prefix}_{key}_embeddings": self.float_weight(f"embeddings.{table}_embeddings")
                for key, table in tables.items()
            },
            f"{prefix}_layernorm_gamma": gamma.astype(np.float32),
            f"{prefix}_layernorm_beta": beta.astype(np.float32),
            "output_fp16": 1,
        }
        first = f"{name}@rows" if self.interleaved else name  # TensorRT wants every layer's name to be its own
        x = self.theirs(EMBEDDINGS, "2", first, [ids, types, starts, self.extent], values)
        self.give_range(x, name)
        if self.interleaved:
            x = self.layers.shuffle(x, name, first=(2, 1, 0, 3))
        return self.as_given((x, None))

    def embedding_values(self, starts: Any) -> dict[str, Any]:
        """Our embeddings' output is (tokens, width, 1, 1)."""
        return {"packed": 1, "channels": 1}

    def attention(self, x: Any, quantized: Any, lengths: Any, form: Form, i: int) -> tuple[Any, Any]:
        """Self-attention, its output product, residual and norm."""
        name, source = f"layer{i}.attention", f"encoder.layer.{i}.attention"
        heads, head = self.config.num_heads, self.config.head_size
        kernel = self.chosen.kernel
        wide = kernel.head if kernel else head
        amax = [self.scale(f"{name}.{part}") * INT8_MAX for part in PARTS] if self.int8 else []
        by = attention.factors(head, wide, amax)
        if kernel is None:
            by = attention.factors(wide, wide, amax)
        weight, bias = (
            attention.joint(
                [self.weights[f"{source}.self.{part}.{kind}"] for part in PARTS],
                *(heads, wide, by),
                by_head=self.chosen.attention == "tensorrt",
            )
            for kind in ("weight", "bias")
        )
        shared = amax[0] * by.query if amax else 0.0
        qkv = self.linear(
            quantized, f"{name}.qkv", weight, bias, self.input_of(i, "attention"), out="int8", amax=shared
        )
        context = self.context(qkv, lengths, form, i, by, wide, shared)
        dense = attention.output_weight(self.weights[f"{source}.output.dense.weight"], heads, wide, by)
        y = self.linear(
            *(context, f"{name}.output", dense, self.weights[f"{source}.output.dense.bias"], f"{name}.context"),
            out=self.chosen.sums,
            factor=by.value,
        )
        return self.norm(y, x, f"{name}.norm", f"{source}.output.LayerNorm", quantize=self.int8)

    def context(self, qkv: Any, lengths: Any, form: Form, i: int, by: Factors, wide: int, shared: float) -> Any:
        """Attention itself: our plugin or TensorRT's; INT8 in an INT8 network."""
        name = f"layer{i}.attention"
        scale, scaled = 1.0, f"{name}.context"
        if self.int8:
            scale, scaled = self.scale(f"{name}.context") * by.value, f"{name}.context@scaled"
        if self.chosen.attention == "own":
            kind, step = (INT8, shared / INT8_MAX) if self.int8 else (HALF, 1.0)
            values = {
                **{"type": kind, "out_type": kind, "heads": self.config.num_heads, "head": wide, "packed": 1},
                **{"longest": form.longest, "score_scale": step * step * wide**-0.5, "value_scale": step},
                **({"out_scale": scale, "out_shift": 0.0} if self.int8 else {}),
            }
            y = self.plugin("QuantkitAttention", scaled, [qkv, lengths], values)[0]
        else:
            values = {"hidden_size": self.config.num_heads * wide, "num_heads": self.config.num_heads}
            if self.int8:
                values["dq_probs"] = min(self.scale(f"{name}.probs"), 1 / INT8_MAX)
            inputs = [qkv, lengths, self.extent]
            if not self.interleaved:
                values |= {"type_id": INT8 if self.int8 else HALF, "has_mask": 1, "var_seqlen": 1}
                inputs = [qkv, self.extent, lengths, self.extent]
            version = attention.INTERLEAVED if self.interleaved else attention.PACKED
            y = self.theirs(attention.PLUGIN, version, scaled, inputs, values)
        if self.int8:
            self.set_range(y, scale * INT8_MAX)
        return y

    def feed_forward(self, x: Any, quantized: Any, i: int, *, quantize: bool) -> tuple[Any, Any]:
        """Two products with GELU between them, residual and norm."""
        name, source = f"layer{i}.ffn", f"encoder.layer.{i}"
        inner, wide = f"{name}.intermediate", self.affine(f"{source}.intermediate.dense")
        if self.chosen.linear == "own":
            y = self.linear(quantized, f"{name}.gelu", *wide, self.input_of(i, "ffn"), out="int8", gelu=True)
        else:
            out = "" if self.chosen.gelu == "layers" else "half"
            y = self.gelu(self.linear(quantized, inner, *wide, self.input_of(i, "ffn"), out=out), f"{name}.gelu")
        y = self.linear(
            y, f"{name}.output", *self.affine(f"{source}.output.dense"), f"{name}.gelu", out=self.chosen.sums
        )
        return self.norm(y, x, f"{name}.norm", f"{source}.output.LayerNorm", quantize=quantize)

    def linear(
        self,
        x: Any,
        name: str,
        weight: npt.NDArray[Any],
        bias: npt.NDArray[Any],
        range_name: str,
        *,
        out: str = "half",
        amax: float = 0.0,
        factor: float = 1.0,
        gelu: bool = False,
        half: bool = False,
        **_: Any,
    ) -> Any:
        """A product with a weight (outputs, inputs).

        Args:
            x: its input; INT8, or what TensorRT may quantize, in an INT8 network.
            name: of its result, bias included.
            weight: of the checkpoint.
            bias: of the checkpoint.
            range_name: the table's name of the input.
            out: type of the result in an INT8 network: "half", "float" or "int8"; "" leaves it to TensorRT.
            amax: range of the result; from the table when 0.
            factor: what the input was multiplied by.
            gelu: whether GELU follows; our linear layers alone.
            half: compute in FP16 whatever the network is of.
        """
        int8 = self.int8 and not half
        if self.chosen.linear == "own":
            y = super().linear(
                *(x, name, weight, bias, range_name),
                out_scales=np.float32(amax / INT8_MAX) if int8 and amax else None,
                out_range=(f"{range_name}" if amax else name) if int8 and out == "int8" else "",
                in_code=(self.scale(range_name) * factor, 0) if int8 and factor != 1 else None,
                gelu=gelu,
                half=half,
            )
            if int8 and amax:
                self.set_range(y, amax)
            return y
        kernel, shift = (np.ascontiguousarray(array, np.float32) for array in (weight, bias))
        kind = self.trt.int8 if int8 else self.trt.float16
        if self.chosen.linear == "matmul":
            y = self.product(x, name, kernel, shift, amax, kind, int8=int8)
        else:
            told = out if int8 or (half and out == "float") or not out else "half"
            y = self.layers.dense(x, name, self.chosen.linear, kernel, shift, kind, told)
        if int8 and amax:
            self.set_range(y, amax)
        return y

    def product(
        self,
        x: Any,
        name: str,
        kernel: npt.NDArray[np.float32],
        bias: npt.NDArray[np.float32],
        amax: float,
        kind: Any,
        *,
        int8: bool,
    ) -> Any:
        """A linear layer as a matrix product and a sum, between two reshapes."""
        made, trt = self.layers, self.trt
        flat = made.shuffle(x, f"{name}@in", shape=(0, kernel.shape[1]))
        matrix, none = made.constant(f"{name}.weight", kernel.T), trt.MatrixOperation.NONE
        y = made.named(self.network.add_matrix_multiply(flat, none, matrix, none), f"{name}.matmul", kind)
        if int8:
            source = str(x.name)
            self.set_range(flat, self.amax[source] if source in self.amax else self.scale(source) * INT8_MAX)
            self.set_range(y, amax or self.scale(name) * INT8_MAX)
        shift = made.constant(f"{name}.bias", bias[None])
        y = made.named(self.network.add_elementwise(y, shift, trt.ElementWiseOperation.SUM), f"{name}@flat")
        if int8:
            self.set_range(y, amax or self.scale(name) * INT8_MAX)
        return made.shuffle(y, name, shape=(0, kernel.shape[0], 1, 1))

    def gelu(self, x: Any, name: str) -> Any:
        """GELU as a plugin of ours, or as layers that TensorRT fuses with the product."""
        if self.chosen.gelu == "own":
            kind = INT8 if self.int8 else HALF
            values = {"type": HALF, "out_type": kind, "width": int(x.shape[1]), **self.code_values(name)}
            y = self.plugin("QuantkitBiasGelu", name, [x], values)[0]
            self.give_range(y, name)
            return y
        return self.layers.gelu(x, name)

    def norm(self, x: Any, residual: Any, name: str, source: str, *, quantize: bool) -> tuple[Any, Any]:
        """Residual and LayerNorm."""
        sums = self.chosen.sums if self.int8 else "half"
        if not self.own:
            gamma, beta = (values.astype(np.float32) for values in self.affine(source))
            values = {"gamma": gamma, "beta": beta, **({} if self.interleaved else {"type_id": NUMBERS[sums]})}
            y = self.theirs(NORM, "3" if self.interleaved else "2", name, [x, residual], values)
            self.give_range(y, name)
            return self.as_given((y, None))
        values = {
            **self.norm_values(source),
            **{"type": NUMBERS[sums], "residual_type": HALF, "out_type": HALF, "quantize": int(quantize)},
            **(self.code_values(name) if quantize else {}),
        }
        if sums == "int8":
            values["x_scale"] = self.scale(str(x.name))
        return self.as_given(self.two_outputs("QuantkitNorm", name, [x, residual], values))

    def classifier(self, x: Any, starts: Any) -> None:
        """Logits, float32 (batch, labels), from each sentence's first token."""
        if self.own:
            super().classifier(x, starts)
            return
        last = f"layer{self.config.num_layers - 1}.ffn.norm"
        if self.interleaved:
            x = self.layers.shuffle(x, f"{last}@rows", first=(2, 1, 0, 3))
            self.give_range(x, last)
        first = self.layers.named(self.network.add_gather(x, self.layers.firsts(starts), 0), f"{last}@first")
        self.give_range(first, last)
        y = self.linear(first, "pooler.dense", *self.affine("pooler.dense"), "", half=True)
        y = self.layers.named(self.network.add_activation(y, self.trt.ActivationType.TANH), "pooler.tanh")
        weight, bias = self.affine("classifier")
        y = self.linear(y, f"{OUTPUT}@column", weight, bias, "", half=True, out="float")
        self.network.mark_output(self.layers.shuffle(y, OUTPUT, shape=(0, weight.shape[0])))

    def code(self, name: str) -> tuple[float, int]:
        """TensorRT's layers know no INT8 codes but those around zero."""
        return (self.scale(name), 0) if self.chosen.linear != "own" else super().code(name)

    def as_given(self, made: tuple[Any, Any]) -> tuple[Any, Any]:
        """A hidden state as the next residual and the next product's input: TensorRT's plugins give one for both."""
        x, quantized = made
        return x, x if quantized is None else quantized

    def theirs(self, kind: str, version: str, name: str, inputs: list[Any], values: dict[str, Any]) -> Any:
        """Adds a plugin of TensorRT's; its first output."""
        outputs, kept = add_plugin(self.trt, self.network, kind, name, inputs, values, version=version, namespace="")
        self.kept += kept
        return outputs[0]

    def float_weight(self, source: str) -> npt.NDArray[np.float32]:
        """A weight of the checkpoint, float32."""
        return self.weights[f"{source}.weight"].astype(np.float32)

    def give_range(self, tensor: Any, name: str) -> None:
        """Gives a tensor the table's range of the tensor whose values it holds."""
        if self.int8:
            self.set_range(tensor, self.scale(name) * INT8_MAX)

    def set_range(self, tensor: Any, amax: float) -> None:
        """Gives a tensor the range [-amax, amax].

        Raises:
            TableError: TensorRT refuses it.
        """
        if not tensor.set_dynamic_range(-float(amax), float(amax)):
            raise TableError(f"TensorRT refuses the range of {tensor.name!r}.")
        self.amax[str(tensor.name)] = amax

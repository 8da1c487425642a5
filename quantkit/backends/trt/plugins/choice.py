"""Which parts a network of plugins is made of: ours or TensorRT's, as far as both can be had."""

from __future__ import annotations

from dataclasses import dataclass, replace

from quantkit.backends.trt.capabilities import Capabilities
from quantkit.backends.trt.fused import Kernel, kernel_for
from quantkit.backends.trt.options import Mix
from quantkit.errors import BackendError
from quantkit.network.config import BertConfig

BUILD = "Run quantkit plugins build."
UNBUILT = "Our plugins are not built here (quantkit plugins build)."
LONGEST_EMBEDDED = 384
"""TensorRT's plugin for packed embeddings stops there."""
LAST_FULLY_CONNECTED = 9
INT8_WIDTHS = (768, 1024)
"""Widths that TensorRT's LayerNorm plugin takes in INT8."""


@dataclass(frozen=True)
class Chosen:
    """The parts of a network.

    Attributes:
        linear: "own", "convolution", "fully_connected" or "matmul".
        attention: "own", "tensorrt" or "interleaved".
        norms: "own" or "tensorrt": embeddings, residual and LayerNorm, the classifier's ends.
        gelu: "own" (a plugin, or inside our linear layers) or "layers".
        sums: type of what LayerNorm reads from the products: "half", "float" or "int8".
        constrained: whether layers are told their types.
        kernel: TensorRT's attention kernel; None for ours.
        says: why, sentence by sentence.
    """

    linear: str = "own"
    attention: str = "own"
    norms: str = "own"
    gelu: str = "own"
    sums: str = "half"
    constrained: bool = True
    kernel: Kernel | None = None
    says: tuple[str, ...] = ()

    @property
    def ours(self) -> bool:
        """Whether everything is ours."""
        return {self.linear, self.attention, self.norms} == {"own"}


@dataclass(frozen=True)
class Wanted:
    """What the network is to be.

    Attributes:
        config: the model's shape.
        int8: whether products are INT8, else FP16.
        packed: whether the user asks for sentences without padding.
        longest: tokens of the longest sentence; 0 when that is not known.
    """

    config: BertConfig
    int8: bool
    packed: bool
    longest: int


def choose(mix: Mix, able: Capabilities, built: bool, wanted: Wanted) -> Chosen:
    """The parts of a network.

    Args:
        mix: what the user asks for.
        able: what this TensorRT and this GPU can do.
        built: whether our library is built for them.
        wanted: what the network is to be.

    Raises:
        BackendError: something that was asked for cannot be had here, or nothing can.
    """
    linear, why_linear = _linear(mix, able, built, wanted)
    attention, kernel, why_attention = _attention(mix, able, built, wanted, linear)
    norms, why_norms = _norms(mix, built, wanted, attention)
    sums = _sums(mix, able, wanted, linear, norms) if attention != "interleaved" else "int8"
    gelu = mix.gelu if mix.gelu != "auto" else "own" if linear == "own" else "layers"
    says = tuple(sentence for sentence in (why_linear, why_attention, why_norms) if sentence)
    constrained = mix.constrained != "no"
    chosen = Chosen(linear, attention, norms, gelu, sums, constrained, kernel, says)
    if refused := _refusal(chosen, wanted):
        raise BackendError(refused, "Choose another --linear or --attention, or use --network api.")
    if not chosen.ours and not wanted.packed:
        return replace(chosen, says=(*says, "Padding is left out: such networks take packed sentences."))
    return chosen


def _linear(mix: Mix, able: Capabilities, built: bool, wanted: Wanted) -> tuple[str, str]:
    """Linear layers, and why.

    TensorRT 8.6's FP16 convolutions have channels last, which would turn every tensor around twice; its FP16 products
    do not. Its INT8 convolutions take and give what the plugins do.
    """
    reason = able.refusal("own linear") or ("" if built else UNBUILT)
    if mix.linear == "own" and reason:
        raise BackendError(reason, BUILD if able.can("own linear") else "Leave --linear out.")
    if mix.linear == "fully_connected" and able.version.major > LAST_FULLY_CONNECTED:
        raise BackendError(f"TensorRT {able.version} has no fully connected layers.", "Use --linear convolution.")
    if mix.linear != "auto":
        return mix.linear, ""
    products = "fully_connected" if able.version.major <= LAST_FULLY_CONNECTED else "matmul"
    theirs = "convolution" if wanted.int8 or mix.attention == "interleaved" else products
    return (theirs, f"{reason} TensorRT's own linear layers are used.") if reason else ("own", "")


def _attention(
    mix: Mix, able: Capabilities, built: bool, wanted: Wanted, linear: str
) -> tuple[str, Kernel | None, str]:
    """Attention, TensorRT's kernel where it is that, and why."""
    own = able.refusal("own plugins") or ("" if built else UNBUILT)
    if mix.attention == "own" and own:
        raise BackendError(own, BUILD if able.can("own plugins") else "Leave --attention out.")
    if mix.attention == "own" or (mix.attention == "auto" and linear == "own"):
        return "own", None, ""
    kind = "interleaved" if mix.attention == "interleaved" else "int8" if wanted.int8 else "fp16"
    head, length = wanted.config.head_size, wanted.longest
    kernel = None
    if able.can("attention plugin") and able.gpu is not None:
        kernel = kernel_for(able.gpu.compute_capability, kind, head, length)
    fits = kernel is not None and (mix.attention != "auto" or kernel.head == head)
    if fits and kernel is not None:
        wider = f", heads of {head} filled up" if kernel.head > head else ""
        name = "interleaved" if kind == "interleaved" else "tensorrt"
        says = (
            f"TensorRT's attention plugin runs its kernel for heads of {kernel.head} and {kernel.length} tokens{wider}."
        )
        return name, kernel, says
    missing = able.refusal("attention plugin") or (
        f"TensorRT's attention plugin has no kernel for {'INT8' if wanted.int8 else 'FP16'}, heads of {head} and "
        f"{length} tokens on this GPU."
    )
    if mix.attention != "auto" or own:
        raise BackendError(missing, "Use --attention own, or --network api." if not own else "Use --network api.")
    return "own", None, f"{missing} Our attention is used."


def _sums(mix: Mix, able: Capabilities, wanted: Wanted, linear: str, norms: str) -> str:
    """Type of what LayerNorm reads.

    By the names of TensorRT 8.6's INT8 kernels: those for 9.0 give INT8 or float32, those for 8.0 also FP16.
    """
    if mix.sums != "auto":
        return mix.sums
    if norms == "tensorrt":
        return "int8" if wanted.int8 and wanted.config.hidden_size in INT8_WIDTHS else "half"
    hopper = able.gpu is not None and able.gpu.compute_capability >= (9, 0)
    return "float" if wanted.int8 and hopper and linear != "own" else "half"


def _norms(mix: Mix, built: bool, wanted: Wanted, attention: str) -> tuple[str, str]:
    """Embeddings and LayerNorm, and why."""
    if attention == "interleaved":
        return "tensorrt", ""
    if mix.norms == "own" and not built:
        raise BackendError(UNBUILT, BUILD)
    if mix.norms != "auto":
        return mix.norms, ""
    return ("own", "") if built else ("tensorrt", "TensorRT's LayerNorm plugins are used.")


def _refusal(chosen: Chosen, wanted: Wanted) -> str | None:
    """Why these parts do not make this network; None when they do."""
    config = wanted.config
    if chosen.attention == "interleaved":
        if not wanted.int8:
            return "The interleaved attention plugin is INT8 alone."
        if chosen.linear != "convolution":
            return "Between interleaved attention stand convolutions; no other linear layers take its tensors."
    if chosen.linear == "own" and chosen.sums != "half":
        return "Our linear layers give LayerNorm FP16."
    if chosen.norms == "tensorrt":
        if chosen.gelu == "own" or chosen.linear == "own":
            return "Our linear layers and GELU go with our LayerNorm."
        if wanted.longest > LONGEST_EMBEDDED:
            return f"TensorRT's embedding plugin takes {LONGEST_EMBEDDED} tokens at most, not {wanted.longest}."
        if chosen.sums == "int8" and config.hidden_size not in INT8_WIDTHS:
            return f"TensorRT's LayerNorm plugin has INT8 for widths of 768 and 1024, not {config.hidden_size}."
        if chosen.sums == "float":
            return "TensorRT's LayerNorm plugin reads FP16 or INT8 here."
    if config.hidden_act != "gelu":
        return f"Networks of plugins have GELU with the error function, not {config.hidden_act}."
    if config.hidden_size % 32 or config.intermediate_size % 32:
        return "Networks of plugins take widths that are multiples of 32."
    if chosen.attention == "own" and config.head_size not in (32, 64):
        return f"Our attention has heads of 32 or 64, not {config.head_size}."
    return None

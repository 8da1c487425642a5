"""Where an encoder layer's time goes, from the kernels that ran: products with weights, attention, and the rest.

Kernels come in the order in which they ran. Attention is a fused kernel, or a softmax with the product in front of it
and the one behind it. What is counted lies between the first layer's attention and the last's: as many whole layers as
there are attentions, less one, without the embeddings and the head.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from quantkit.backends.trt.audit import of_kernel
from quantkit.errors import BackendError

PARTS = ("gemm", "attention", "memory")
PUBLISHED: dict[int, dict[str, float]] = {
    256: {"gemm": 0.61, "attention": 0.22, "memory": 0.17},
    1024: {"gemm": 0.40, "attention": 0.49, "memory": 0.11},
}
"""Published shares of a BERT layer without any fusion, by sequence length (Zhai et al. 2022, ByteTransformer,
arXiv:2210.03052); attention at 256 is what the other two leave."""

# Myelin names its kernels by the operations in them, three letters each: maximum, subtraction, exponential, sum.
_SOFTMAX = re.compile(r"softmax|MaxSubExpSum", re.IGNORECASE)


@dataclass(frozen=True)
class Shares:
    """The time of one encoder layer.

    Attributes:
        ms: part -> mean milliseconds of a layer.
        kernels: part -> mean number of kernels of a layer.
        layers: number of layers that the means are over.
        fused: whether attention is one kernel.
    """

    ms: dict[str, float]
    kernels: dict[str, float]
    layers: int
    fused: bool

    @property
    def total_ms(self) -> float:
        """Milliseconds of a layer."""
        return sum(self.ms.values())

    def share(self, part: str) -> float:
        """Share of a part, 0 to 1."""
        return self.ms[part] / self.total_ms if self.total_ms else 0.0

    def as_json(self) -> dict[str, Any]:
        """The shares as JSON values."""
        return {
            "layer_ms": round(self.total_ms, 5),
            "ms": {part: round(self.ms[part], 5) for part in PARTS},
            "share": {part: round(self.share(part), 4) for part in PARTS},
            "kernels": {part: round(self.kernels[part], 2) for part in PARTS},
            "layers": self.layers,
            "fused_attention": self.fused,
        }


def parts_of(kernels: Sequence[tuple[str, float]]) -> list[str]:
    """The part that each kernel belongs to."""
    layers = [of_kernel(name, ms) for name, ms in kernels]
    parts = ["attention" if layer.attention else "gemm" if layer.gemm else "memory" for layer in layers]
    products = [i for i, part in enumerate(parts) if part == "gemm"]
    for i, (name, _) in enumerate(kernels):
        if parts[i] != "memory" or not _SOFTMAX.search(name):
            continue
        around = [max((p for p in products if p < i), default=i), min((p for p in products if p > i), default=i)]
        for j in (*around, i):
            parts[j] = "attention"
    return parts


def layer_shares(kernels: Sequence[tuple[str, float]]) -> Shares:
    """Where the time of a layer goes.

    Args:
        kernels: name and milliseconds of every kernel of one inference, in order.

    Raises:
        BackendError: fewer than two layers' attention is among them.
    """
    parts = parts_of(kernels)
    fused = [i for i, (name, ms) in enumerate(kernels) if of_kernel(name, ms).attention]
    marks = fused or [i for i, (name, _) in enumerate(kernels) if parts[i] == "attention" and _SOFTMAX.search(name)]
    if len(marks) < 2:
        raise BackendError(
            f"{len(marks)} attentions are among the {len(kernels)} kernels; two are needed to tell a layer.",
            "Trace a model of two layers or more; without CUPTI there are no kernels at all.",
        )
    layers = len(marks) - 1
    inside = range(marks[0], marks[-1])
    ms = {part: sum(kernels[i][1] for i in inside if parts[i] == part) / layers for part in PARTS}
    count = {part: sum(parts[i] == part for i in inside) / layers for part in PARTS}
    return Shares(ms, count, layers, bool(fused))

"""What a compiled OpenVINO model really computes, read from its runtime graph and not from what was asked.

The runtime graph has one node a kernel, with `layerType`, `runtimePrecision` and `originalLayersNames` (the graph's
operations that the kernel took in). Matrix products are the nodes FullyConnected and MatMul, and those that a node
Subgraph (compiled attention) took in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

_PRODUCTS = frozenset({"FullyConnected", "MatMul"})
_INTEGERS = frozenset({"i8", "u8"})
_FLOATS = frozenset({"f32", "f16", "bf16", "f64"})
# Nodes that hold, move or convert data; their precision says nothing about the arithmetic.
_CARRIERS = frozenset({"Const", "Input", "Output", "Convert", "Reorder", "Reshape", "Transpose", "Gather", "Split"})


@dataclass(frozen=True)
class Execution:
    """What the kernels of a compiled model compute.

    Attributes:
        products: matrix products by precision ("f32", "bf16", "i8" ...).
        others: the other arithmetic nodes by precision.
        floats: names of the products that run in floating point, in the order of execution.
        kernels: kind and precision ("FullyConnected i8") -> number of nodes.
    """

    products: Counter[str]
    others: Counter[str]
    floats: tuple[str, ...] = ()
    kernels: Counter[str] = field(default_factory=Counter)

    @property
    def audit(self) -> dict[str, Any]:
        """JSON values for an engine's audit."""
        return {"kernel_counts": dict(sorted(self.kernels.items())), "float_products": list(self.floats)}

    @property
    def int8_ops(self) -> int:
        """Matrix products that run in INT8."""
        return sum(self.products[precision] for precision in _INTEGERS)

    @property
    def float_ops(self) -> int:
        """Matrix products that run in floating point."""
        return sum(self.products[precision] for precision in _FLOATS)

    @property
    def compute(self) -> str:
        """What is computed: "f32", "bf16", "int8", or "int8+f32" for INT8 products beside floating-point work."""
        floats = _floats(self.products) or _floats(self.others)
        parts = ["int8"] if self.int8_ops else []
        parts += [precision for precision, _ in floats.most_common(1)]
        return "+".join(parts) or "none"


def _floats(counts: Counter[str]) -> Counter[str]:
    """The floating-point part of the counts."""
    return Counter({precision: n for precision, n in counts.items() if precision in _FLOATS})


def matmul_names(model: Any) -> frozenset[str]:
    """Friendly names of the matrix products of an ov.Model, before it is compiled."""
    return frozenset(op.get_friendly_name() for op in model.get_ops() if op.get_type_name() == "MatMul")


def read_execution(compiled: Any, matmuls: Iterable[str]) -> Execution:
    """Counts what the kernels of an ov.CompiledModel compute; `matmuls` are the names of the graph's products.

    A compiled attention counts all its products in the precision of the node as a whole.
    """
    names = frozenset(matmuls)
    products: Counter[str] = Counter()
    others: Counter[str] = Counter()
    kernels: Counter[str] = Counter()
    floats: list[str] = []
    for node in compiled.get_runtime_model().get_ops():
        info = node.get_rt_info()
        kind, precision = _text(info, "layerType"), _text(info, "runtimePrecision")
        if kind not in _CARRIERS:
            kernels[f"{kind} {precision}"] += 1
        inside = [name for name in _text(info, "originalLayersNames").split(",") if name in names]
        if kind in _PRODUCTS:
            inside = inside[:1] or [node.get_friendly_name()]
        if inside:
            products[precision] += len(inside)
            floats += inside if precision in _FLOATS else []
        elif kind not in _CARRIERS:
            others[precision] += 1
    return Execution(products, others, tuple(floats), kernels)


def _text(info: Any, key: str) -> str:
    """A field of a node's runtime information as text; empty when it has none."""
    if key not in info:
        return ""
    value = info[key]
    return str(value.astype(str)) if hasattr(value, "astype") else str(value)

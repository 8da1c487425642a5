"""Which parts of a network run in INT8, and on which grid."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from quantkit.errors import InputError, UnknownNameError
from quantkit.qparams import INT8_MAX

if TYPE_CHECKING:
    from quantkit.tables.table import Entry

UINT8_MAX = 255


@dataclass(frozen=True)
class Mode:
    """What a mode quantizes in every encoder layer.

    Attributes:
        attention: inputs and weights of the projections (query, key, value, output).
        ffn: inputs and weights of the two feed-forward products.
        residual: the residual connections read the quantized tensor too, not the float one.
        products: the two attention products (query, key, probabilities, value).
    """

    attention: bool = True
    ffn: bool = True
    residual: bool = False
    products: bool = False


MODES: dict[str, Mode] = {
    "gemm": Mode(),
    "ffn-only": Mode(attention=False),
    "gemm+mha": Mode(products=True),
    "gemm+residual": Mode(residual=True),
    "gemm+residual+mha": Mode(residual=True, products=True),
}


@dataclass(frozen=True)
class Grid:
    """Scale and zero point of a quantized activation: value = (code - zero_point) * scale.

    Attributes:
        scale: float32 step.
        zero_point: the code of the value 0.
        signed: int8 codes in [-128, 127] (True) or uint8 codes in [0, 255].
    """

    scale: np.float32
    zero_point: int = 0
    signed: bool = True

    @classmethod
    def between(cls, low: float, high: float) -> Grid:
        """The uint8 grid over [low, high], widened to contain zero, on which zero has a code of its own."""
        low, high = min(low, 0.0), max(high, 0.0)
        scale = np.float32((high - low) / UINT8_MAX)
        zero_point = round(-low / float(scale)) if scale > 0 else 0
        return cls(scale, min(zero_point, UINT8_MAX), False)

    @classmethod
    def of(cls, entry: Entry, symmetric: bool) -> Grid:
        """The grid of a range: int8 around zero, or uint8 between the clipped extremes where they are known."""
        if symmetric or entry.minimum is None or entry.maximum is None:
            return cls(entry.scale)
        return cls.between(max(entry.minimum, -entry.amax), min(entry.maximum, entry.amax))

    @classmethod
    def unit(cls, signed: bool) -> Grid:
        """The grid over [0, 1], that of probabilities: int8 leaves half of its codes unused, uint8 none."""
        return cls(np.float32(1 / INT8_MAX)) if signed else cls(np.float32(1 / UINT8_MAX), 0, False)

    @property
    def usable(self) -> bool:
        """Whether the scale is finite and a normal positive number; kernels multiply by its reciprocal."""
        return bool(np.isfinite(self.scale) and self.scale >= np.finfo(np.float32).tiny)

    @property
    def zero_point_array(self) -> npt.NDArray[np.int8] | npt.NDArray[np.uint8]:
        """The zero point, without dimensions, in the type of the codes."""
        return np.array(self.zero_point, np.int8) if self.signed else np.array(self.zero_point, np.uint8)


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """A weight on the int8 grid: weight = codes * scales.

    Attributes:
        codes: int8 (inputs, outputs), in [-127, 127].
        scales: float32 (outputs,).
    """

    codes: npt.NDArray[np.int8]
    scales: npt.NDArray[np.float32]

    @property
    def values(self) -> npt.NDArray[np.float32]:
        """What the codes stand for, float32 (inputs, outputs)."""
        return self.codes * self.scales


@dataclass(frozen=True)
class PrecisionPlan:
    """What to quantize, what to leave in FP32, and the grid of the activations.

    Args:
        mode: one of `MODES`. Embeddings, LayerNorm, softmax, pooler and classifier stay FP32 in all of them.
        skip: what stays FP32 all the same: names of tensors, nodes or weights (shell patterns allowed), or numbers of
            layers ("3").
        symmetric: activations as int8 around zero, or, when False, as uint8 between the clipped extremes, with a zero
            point, wherever the table knows a tensor's extremes.
        int8_only: nothing is uint8, as TensorRT needs it; otherwise probabilities are, whatever `symmetric` says.

    Raises:
        UnknownNameError: there is no such mode.
        InputError: `skip` is a single string; it must be a collection of patterns.
    """

    mode: str = "gemm"
    skip: frozenset[str] = frozenset()
    symmetric: bool = True
    int8_only: bool = False

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UnknownNameError("precision mode", self.mode, MODES)
        patterns: Iterable[object] = self.skip
        if isinstance(patterns, str):
            raise InputError(
                f"skip is the string {patterns!r}; expected a collection of patterns.", "Put it in a list."
            )
        object.__setattr__(self, "skip", frozenset(str(pattern) for pattern in patterns))

    @property
    def places(self) -> Mode:
        """What the mode quantizes."""
        return MODES[self.mode]

    def skipped_by(self, *names: str, layer: int | None = None) -> str | None:
        """The first pattern, in alphabetical order, that takes out the layer or one of the names; None if none does."""
        for pattern in sorted(self.skip):
            if layer is not None and pattern.isdecimal() and int(pattern) == layer:
                return pattern
            if any(name == pattern or fnmatchcase(name, pattern) for name in names):
                return pattern
        return None

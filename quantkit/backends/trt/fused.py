"""The fused kernels of TensorRT's own attention plugin, CustomQKVToContextPluginDynamic.

Facts: the sources of its plugin library at 8.6 (the list of kernels, and which of them a GPU's shared memory holds),
and the kernels' names in the library of 8.6.0 for compute capability 9.0. Version 1 of the plugin makes a cuBLAS
handle whatever it computes. Version 2 has a fused kernel for packed sentences alone, and version 3 is packed
throughout; both then need no other library, so only these two are used.
"""

from __future__ import annotations

from dataclasses import dataclass

ComputeCapability = tuple[int, int]

_LONG, _SHORT = (128, 256, 512), (64, 96, 128, 256, 384, 512)
_INT8 = (128, 192, 256, 384, 512)
_Lengths = dict[int, tuple[int, ...]]
_AMPERE: dict[str, _Lengths] = {
    "fp16": {32: _LONG, 64: _SHORT},
    "int8": {32: _LONG, 64: _INT8},
    "interleaved": {64: _INT8[:4]},
}
KERNELS: dict[ComputeCapability, dict[str, _Lengths]] = {
    (7, 5): _AMPERE,
    (8, 0): _AMPERE,
    (8, 6): _AMPERE,
    (8, 7): {"fp16": {64: _SHORT[:5]}, "int8": {64: _INT8[:4]}, "interleaved": {64: _INT8[:4]}},
    # It runs the kernels of 8.0; the one for 384 tokens in FP16 wants more shared memory than there is.
    (8, 9): {**_AMPERE, "fp16": {32: _LONG, 64: (64, 96, 128, 256, 512)}},
    (9, 0): {"fp16": {64: _SHORT}, "int8": {64: _INT8}, "interleaved": {64: _INT8[:4]}},
}
"""Compute capability -> kind -> width of a head -> longest sentences that there are kernels for."""


@dataclass(frozen=True)
class Kernel:
    """The fused kernel that a network runs.

    Attributes:
        head: width of its heads; narrower ones are filled up with zeros.
        length: its longest sentence.
    """

    head: int
    length: int


def kernel_for(capability: ComputeCapability, kind: str, head: int, longest: int) -> Kernel | None:
    """The smallest kernel that takes the heads and the sentences; None when there is none.

    Args:
        capability: of the GPU.
        kind: "fp16", "int8" or "interleaved".
        head: width of a head.
        longest: tokens of the longest sentence.
    """
    for wide, lengths in sorted(KERNELS.get(capability, {}).get(kind, {}).items()):
        fitting = [length for length in lengths if length >= longest]
        if wide >= head and fitting:
            return Kernel(wide, fitting[0])
    return None


def kernels_text(capability: ComputeCapability) -> str:
    """What there are kernels for on a GPU, as the end of a sentence; empty when there are none."""
    told = [
        f"{'INT8' if kind == 'int8' else kind.upper()} heads of {' or '.join(map(str, sorted(heads)))}"
        f" up to {max(max(lengths) for lengths in heads.values())} tokens"
        for kind, heads in KERNELS.get(capability, {}).items()
        if kind != "interleaved"
    ]
    return ", ".join(told)

"""The built library: registered with TensorRT, and its kernels called directly (cuda/kernels.h through ctypes)."""

from __future__ import annotations

import ctypes
from functools import lru_cache
from pathlib import Path
from typing import Any

from quantkit.backends.trt.plugins import compiler
from quantkit.errors import BackendError

NAMESPACE, VERSION = "quantkit", "1"
FLOAT, HALF, INT8 = 0, 1, 2

_pointer, _int, _float, _bool = ctypes.c_void_p, ctypes.c_int, ctypes.c_float, ctypes.c_bool


def _fields(*groups: tuple[Any, str]) -> list[tuple[str, Any]]:
    """Fields of a structure, from pairs of a type and names."""
    return [(name, kind) for kind, names in groups for name in names.split()]


class Linear(ctypes.Structure):
    """`struct Linear` of kernels.h."""

    _fields_ = _fields(
        *((_pointer, "input weight alpha beta out"), (_int, "type out_type m n k"), (_bool, "gelu")),
        *((_float, "rescale shift"), (_int, "tile")),
    )


class Attention(ctypes.Structure):
    """`struct Attention` of kernels.h."""

    _fields_ = _fields(
        *((_pointer, "qkv mask starts out"), (_int, "type out_type batch sequence heads head")),
        *((_float, "score_scale value_scale rescale shift"), (_int, "form")),
    )


class Norm(ctypes.Structure):
    """`struct Norm` of kernels.h."""

    _fields_ = _fields(
        (_pointer, "x residual bias gamma beta out quantized"),
        (_int, "x_type residual_type out_type rows width"),
        (_float, "x_scale residual_scale rescale shift epsilon"),
    )


class Embedding(ctypes.Structure):
    """`struct Embedding` of kernels.h."""

    _fields_ = _fields(
        (_pointer, "tokens segments starts word position segment gamma beta out quantized"),
        (_int, "tokens_in_all batch sequence width words positions kinds"),
        (_float, "rescale shift epsilon"),
    )


class BiasGelu(ctypes.Structure):
    """`struct BiasGelu` of kernels.h."""

    _fields_ = _fields(
        (_pointer, "x bias out"), (_int, "x_type out_type rows width"), (_float, "x_scale rescale shift")
    )


STRUCTURES: tuple[type[ctypes.Structure], ...] = (Linear, Attention, Norm, Embedding, BiasGelu)


class Kernels:
    """The library's kernels.

    Args:
        path: the shared object.

    Raises:
        BackendError: it does not load, or has another idea of the structures.
    """

    def __init__(self, path: Path) -> None:
        try:
            self.raw = ctypes.CDLL(str(path))
            sizes = [int(self.raw.quantkit_size(i)) for i in range(len(STRUCTURES))]
        except (OSError, AttributeError) as error:
            raise BackendError(
                f"The plugins do not load: {error}.", "Run quantkit plugins build --force on this machine."
            ) from error
        if sizes != [ctypes.sizeof(structure) for structure in STRUCTURES]:
            raise BackendError(f"{path} is of another version of quantkit.", "Run quantkit plugins build --force.")

    def run(self, name: str, arguments: ctypes.Structure, stream: int = 0) -> None:
        """Enqueues a kernel: "linear", "attention", "norm", "embedding" or "bias_gelu".

        Raises:
            BackendError: sizes that it does not take, or CUDA's error number.
        """
        function = getattr(self.raw, f"quantkit_run_{name}")
        if status := function(ctypes.byref(arguments), _pointer(stream)):
            raise BackendError(f"The kernel {name} cannot run (CUDA error {status}).")

    def first_tokens(self, x: int, starts: int, out: int, shape: tuple[int, int, int], stream: int = 0) -> None:
        """Enqueues the copy of every sentence's first token; addresses, and (batch, sequence, width)."""
        pointers = (_pointer(x), _pointer(starts or None), _pointer(out))
        if status := self.raw.quantkit_run_first(*pointers, *map(_int, shape), _pointer(stream)):
            raise BackendError(f"The kernel first_tokens cannot run (CUDA error {status}).")

    @property
    def tiles(self) -> list[tuple[int, ...]]:
        """Tile shapes of linear layers, by number: rows, columns, teams (0: one block a tile), blocks in a cluster."""
        found = []
        for i in range(self.raw.quantkit_linear_tiles()):
            shape = (_int * 4)()
            self.raw.quantkit_linear_tile(i, shape)
            found.append(tuple(shape))
        return found

    def row_order(self, outputs: int) -> list[int]:
        """For every output column the row of the weight, as the kernel wants it."""
        return [int(self.raw.quantkit_linear_row(i)) for i in range(outputs)]


@lru_cache(maxsize=1)
def kernels() -> Kernels:
    """The kernels for this GPU and TensorRT.

    Raises:
        BackendError: they are not built, or do not load.
    """
    from quantkit.backends.trt import runtime
    from quantkit.backends.trt.cuda import device

    return Kernels(compiler.find_library(device().gpu.compute_capability, runtime.library_version()))


def is_built() -> bool:
    """Whether there is a library for this GPU and TensorRT."""
    from quantkit.backends.trt import runtime
    from quantkit.backends.trt.cuda import device

    try:
        compiler.find_library(device().gpu.compute_capability, runtime.library_version())
    except BackendError:
        return False
    return True


@lru_cache(maxsize=1)
def register() -> None:
    """Makes the plugins known to TensorRT in this process; a second call does nothing.

    Raises:
        BackendError: they are not built, do not load, or TensorRT refuses them.
    """
    if kernels().raw.quantkit_register():
        raise BackendError("TensorRT does not accept the plugins.", "Run quantkit plugins build --force.")

"""The kernels that a GPU really runs, by CUPTI's activity records: the only look inside a Myelin region.

CUPTI comes with the CUDA toolkit and with several Python packages; it is looked for and done without when missing.
Records are read by the offsets of CUpti_ActivityKernel4 and its successors, whose first fields have not moved since
CUDA 9: start and end in nanoseconds at 16 and 24, the name's address at 104.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from quantkit.errors import BackendError

_KERNEL_KINDS = (3, 10)  # CUPTI_ACTIVITY_KIND_KERNEL, CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL
_CONCURRENT_KERNEL = 10
_START, _END, _NAME = 16, 24, 104
_BUFFER_BYTES, _ALIGNMENT = 1 << 20, 8
_FORCED = 1  # CUPTI_ACTIVITY_FLAG_FLUSH_FORCED
_PLACES = ("/usr/local/cuda/extras/CUPTI/lib64", "/usr/local/cuda/lib64", "/opt/cuda/extras/CUPTI/lib64")
_NAMES = ("libcupti.so", "libcupti.so.12", "libcupti.so.13", "libcupti.so.11.8")

_Requested = ctypes.CFUNCTYPE(
    None, ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(ctypes.c_size_t), ctypes.POINTER(ctypes.c_size_t)
)
_Completed = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t)


@dataclass(frozen=True)
class Kernel:
    """One launch: the kernel's name (mangled where it is C++) and its milliseconds."""

    name: str
    ms: float


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL:
    """CUPTI, from $QUANTKIT_CUPTI, the loader's paths, the toolkit, or a Python package.

    Raises:
        BackendError: it is nowhere.
    """
    for candidate in _candidates():
        try:
            library = ctypes.CDLL(candidate)
        except OSError:
            continue
        for name in ("ActivityRegisterCallbacks", "ActivityEnable", "ActivityDisable", "ActivityFlushAll"):
            getattr(library, f"cupti{name}").restype = ctypes.c_int
        library.cuptiActivityGetNextRecord.restype = ctypes.c_int
        library.cuptiActivityGetNextRecord.argtypes = [
            ctypes.c_void_p,
            ctypes.c_size_t,
            ctypes.POINTER(ctypes.c_void_p),
        ]
        return library
    raise BackendError(
        "CUPTI is not installed, so the kernels inside Myelin regions cannot be seen.",
        "Install the CUDA toolkit, or name libcupti.so in QUANTKIT_CUPTI.",
    )


def _candidates() -> Iterator[str]:
    """Where CUPTI may be."""
    if named := os.environ.get("QUANTKIT_CUPTI"):
        yield named
        return
    yield from _NAMES
    for place in _PLACES:
        yield from (str(Path(place) / name) for name in _NAMES)
    import site

    for folder in site.getsitepackages():
        yield from map(str, sorted(Path(folder).glob("nvidia/*/lib/libcupti.so*")))


def trace(work: Callable[[], Any]) -> list[Kernel]:
    """Runs `work`, which must wait for the GPU, and gives the kernels that ran meanwhile, in order of their start.

    Raises:
        BackendError: CUPTI is missing, or refuses (another profiler may be attached).
    """
    library = _library()
    buffers: dict[int, Any] = {}
    found: list[tuple[int, Kernel]] = []

    def requested(buffer: Any, size: Any, most: Any) -> None:
        raw = ctypes.create_string_buffer(_BUFFER_BYTES + _ALIGNMENT)
        address = -(-ctypes.addressof(raw) // _ALIGNMENT) * _ALIGNMENT
        buffers[address] = raw
        buffer[0], size[0], most[0] = address, _BUFFER_BYTES, 0

    def completed(_context: Any, _stream: int, buffer: int, _size: int, valid: int) -> None:
        record = ctypes.c_void_p()
        while valid and library.cuptiActivityGetNextRecord(buffer, valid, ctypes.byref(record)) == 0:
            if record.value and (kernel := _read(record.value)):
                found.append(kernel)
        buffers.pop(buffer, None)

    callbacks = _Requested(requested), _Completed(completed)
    # CUPTI may call back as long as the process lives.
    _KEPT.extend(callbacks)
    _check(library.cuptiActivityRegisterCallbacks(*callbacks), "register callbacks")
    _check(library.cuptiActivityEnable(_CONCURRENT_KERNEL), "record kernels")
    try:
        work()
    finally:
        library.cuptiActivityFlushAll(_FORCED)
        library.cuptiActivityDisable(_CONCURRENT_KERNEL)
    return [kernel for _, kernel in sorted(found, key=lambda pair: pair[0])]


_KEPT: list[Any] = []


def _read(address: int) -> tuple[int, Kernel] | None:
    """Start and kernel of a record; None for records of other kinds."""
    if ctypes.c_uint32.from_address(address).value not in _KERNEL_KINDS:
        return None
    start = ctypes.c_uint64.from_address(address + _START).value
    end = ctypes.c_uint64.from_address(address + _END).value
    name = ctypes.c_char_p.from_address(address + _NAME).value or b""
    return start, Kernel(name.decode(errors="replace"), (end - start) / 1e6)


def _check(status: int, what: str) -> None:
    """BackendError when CUPTI refused."""
    if status:
        raise BackendError(f"CUPTI refuses to {what} (error {status}).", "Close other profilers.")

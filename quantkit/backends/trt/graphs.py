"""CUDA graphs through the driver's C interface: PyCUDA has none.

A launch of a captured graph replaces the launches of all kernels of an engine; small batches are bound by those.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

from quantkit.errors import BackendError

LIBRARY = "libcuda.so.1"
_RELAXED = 2  # CU_STREAM_CAPTURE_MODE_RELAXED: other threads may go on allocating


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL:
    """The driver's library, with the signatures that are used."""
    try:
        cuda = ctypes.CDLL(LIBRARY)
        handle, pointer = ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p)
        for name, arguments in (
            ("cuStreamBeginCapture_v2", [handle, ctypes.c_int]),
            ("cuStreamEndCapture", [handle, pointer]),
            ("cuGraphInstantiateWithFlags", [pointer, handle, ctypes.c_ulonglong]),
            ("cuGraphLaunch", [handle, handle]),
            ("cuGraphExecDestroy", [handle]),
            ("cuGraphDestroy", [handle]),
        ):
            function = getattr(cuda, name)
            function.argtypes, function.restype = arguments, ctypes.c_int
    except (OSError, AttributeError) as error:
        raise BackendError(f"CUDA graphs cannot be used: {error}.", "Update the NVIDIA driver.") from error
    return cuda


def _call(name: str, *arguments: object) -> None:
    """Calls a driver function; BackendError with its number when it fails."""
    status = getattr(_library(), name)(*arguments)
    if status:
        raise BackendError(f"CUDA graphs cannot be used here: {name} returned error {status}.")


class CudaGraph:
    """Work captured from a stream, to be launched any number of times. The context must be current in every call."""

    def __init__(self) -> None:
        self._graph = ctypes.c_void_p()
        self._executable = ctypes.c_void_p()

    @contextmanager
    def capture(self, stream: int) -> Iterator[None]:
        """Records what the block enqueues on `stream` (a handle), without running it.

        Raises:
            BackendError: the work cannot be captured.
        """
        _call("cuStreamBeginCapture_v2", stream, _RELAXED)
        try:
            yield
        except BaseException:
            # The stream has to leave capture mode before anything else can use it.
            _library().cuStreamEndCapture(stream, ctypes.byref(self._graph))
            raise
        _call("cuStreamEndCapture", stream, ctypes.byref(self._graph))
        _call("cuGraphInstantiateWithFlags", ctypes.byref(self._executable), self._graph, 0)

    def launch(self, stream: int) -> None:
        """Enqueues the captured work."""
        _call("cuGraphLaunch", self._executable, stream)

    def free(self) -> None:
        """Destroys the graph; a second call does nothing."""
        if self._executable:
            _call("cuGraphExecDestroy", self._executable)
            self._executable = ctypes.c_void_p()
        if self._graph:
            _call("cuGraphDestroy", self._graph)
            self._graph = ctypes.c_void_p()

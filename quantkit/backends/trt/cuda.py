"""The GPU through PyCUDA: the primary context (TensorRT's own), pinned and device memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt

from quantkit.backends.base import first_line
from quantkit.backends.trt.capabilities import Gpu
from quantkit.errors import BackendError, MissingDependencyError


@lru_cache(maxsize=1)
def driver() -> Any:
    """The module pycuda.driver, initialised.

    Raises:
        MissingDependencyError: PyCUDA is not installed.
        BackendError: there is no NVIDIA driver.
    """
    if find_spec("pycuda") is None:
        raise MissingDependencyError("The package pycuda is not installed.", "pip install 'quantkit[tensorrt]'")
    try:
        cuda = import_module("pycuda.driver")
        cuda.init()
    except Exception as error:  # pycuda.driver.Error is only there when the import succeeded
        raise BackendError(f"CUDA cannot be used: {first_line(error)}", "Check the driver with nvidia-smi.") from error
    return cuda


class Device:
    """A GPU and its primary context, which TensorRT and PyCUDA share."""

    def __init__(self, ordinal: int = 0) -> None:
        cuda = driver()
        if ordinal >= cuda.Device.count():
            raise BackendError(f"There is no CUDA device {ordinal}; this machine has {cuda.Device.count()}.")
        self._device = cuda.Device(ordinal)
        self._context = self._device.retain_primary_context()
        self.gpu = Gpu(
            name=str(self._device.name()),
            compute_capability=tuple(self._device.compute_capability()),
            memory_bytes=int(self._device.total_memory()),
            driver=int(cuda.get_driver_version()),
        )

    @contextmanager
    def current(self) -> Iterator[None]:
        """Makes the context this thread's current one inside the block; blocks may be nested."""
        self._context.push()
        try:
            yield
        finally:
            driver().Context.pop()

    def free_bytes(self) -> int:
        """Device memory that is free now."""
        with self.current():
            return int(driver().mem_get_info()[0])


@lru_cache(maxsize=1)
def device() -> Device:
    """The first GPU (CUDA_VISIBLE_DEVICES chooses which that is)."""
    return Device()


def find_gpu() -> Gpu | None:
    """The first GPU's facts, None when there is no GPU or no PyCUDA."""
    try:
        return device().gpu
    except (BackendError, MissingDependencyError):
        return None


class Arena:
    """One block of pinned host memory and one of device memory of the same size; arrays are cut out of both.

    Args:
        nbytes: size of each.
        owner: whose context is current while the arena is made and freed.

    Raises:
        BackendError: there is not that much memory.
    """

    def __init__(self, nbytes: int, owner: Device) -> None:
        cuda = driver()
        self.nbytes = max(1, nbytes)
        self._owner = owner
        with owner.current():
            try:
                self.host: npt.NDArray[np.uint8] = cuda.pagelocked_empty(self.nbytes, np.uint8)
                self.device = cuda.mem_alloc(self.nbytes)
            except cuda.Error as error:
                raise BackendError(
                    f"{self.nbytes / 2**20:.1f} MiB of GPU buffers cannot be allocated: {first_line(error)}",
                    "Free GPU memory, or build with a smaller largest shape.",
                ) from error
        self.address = int(self.device)

    def view(self, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """The host array at `offset` bytes."""
        nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        return self.host[offset : offset + nbytes].view(dtype).reshape(shape)

    def free(self) -> None:
        """Gives both blocks back."""
        with self._owner.current():
            self.device.free()
            memory: Any = self.host.base
            memory.free()

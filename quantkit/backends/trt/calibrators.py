"""TensorRT's own calibrators, fed by our batches through PyCUDA buffers.

TensorRT swallows exceptions of `get_batch`: calibration ends there as if the data were at its end, and the scales of
half the data come out without a word. So the feeder remembers what went wrong, and `finish` raises it after the build.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from quantkit.backends.trt.cuda import Arena, Device
from quantkit.backends.trt.options import CalibratorOptions
from quantkit.errors import CalibrationError, QuantkitError
from quantkit.types import Array, BatchSource, FeedDict

ALIGNMENT = 256
CLASSES = {
    "entropy2": "IInt8EntropyCalibrator2",
    "entropy": "IInt8EntropyCalibrator",
    "minmax": "IInt8MinMaxCalibrator",
    "legacy": "IInt8LegacyCalibrator",
}


class BatchFeeder:
    """Hands batches to TensorRT one by one, each copied into the same device buffers.

    Args:
        batches: the calibration data; walked through once.
        specs: input name -> (shape, dtype) that the calibrated network takes.
        owner: the GPU.
        progress: told after each batch.
    """

    def __init__(
        self,
        batches: BatchSource,
        specs: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]],
        owner: Device,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self._expected = len(batches)
        self._iterator: Iterator[FeedDict] = iter(batches)
        self._specs = dict(specs)
        self._owner = owner
        self._progress = progress
        self._offsets: dict[str, int] = {}
        total = 0
        for name, (shape, dtype) in self._specs.items():
            self._offsets[name] = total
            nbytes = int(np.prod(shape)) * dtype.itemsize
            total += -(-nbytes // ALIGNMENT) * ALIGNMENT
        self._arena = Arena(total, owner)
        self.given = 0
        self.ended = False
        self.error: BaseException | None = None

    @property
    def batch_size(self) -> int:
        """Rows of a batch."""
        return next(iter(self._specs.values()))[0][0]

    def next_batch(self, names: Sequence[str]) -> list[int] | None:
        """Device addresses of the next batch in the order of `names`; None at the end, or after an error.

        Never raises: what goes wrong is kept for `finish`.
        """
        if self.error is not None or self.ended:
            return None
        try:
            feed = next(self._iterator)
        except StopIteration:
            self.ended = True
            return None
        except BaseException as error:  # whatever the user's loader raises
            self.error = error
            return None
        try:
            addresses = self._copied(feed, names)
        except BaseException as error:
            self.error = error
            return None
        self.given += 1
        if self._progress is not None:
            self._progress(self.given, self._expected)
        return addresses

    def finish(self) -> None:
        """Says after the build what went wrong during calibration.

        Raises:
            CalibrationError: a batch was bad, or TensorRT did not take all of them.
        """
        if isinstance(self.error, QuantkitError):
            raise self.error
        if self.error is not None:
            raise CalibrationError(
                f"Calibration batch {self.given} cannot be had: {type(self.error).__name__}: {self.error}.",
                "No scale of this calibration is kept.",
            ) from self.error
        if self.given < self._expected:
            raise CalibrationError(f"TensorRT took {self.given} of {self._expected} calibration batches and stopped.")

    def free(self) -> None:
        """Frees the buffers."""
        self._arena.free()

    def _copied(self, feed: FeedDict, names: Sequence[str]) -> list[int]:
        """Checks a batch and copies it to the device."""
        for name in names:
            if name not in self._specs:
                raise CalibrationError(f"TensorRT asks for {name!r}, which is no input of the network.")
            shape, dtype = self._specs[name]
            self._arena.view(self._offsets[name], shape, dtype)[...] = checked(feed, name, shape, dtype, self.given)
        with self._owner.current():
            from quantkit.backends.trt.cuda import driver

            driver().memcpy_htod(self._arena.device, self._arena.host)
        return [self._arena.address + self._offsets[name] for name in names]


def checked(feed: FeedDict, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], number: int) -> Array:
    """The array of an input in a batch.

    Raises:
        CalibrationError: it is missing, of another shape, of another kind of type, or holds NaN or infinity.
    """
    if name not in feed:
        raise CalibrationError(f"Calibration batch {number} has no {name!r}; it has {', '.join(feed)}.")
    array = np.asarray(feed[name])
    if array.shape != shape:
        raise CalibrationError(
            f"Calibration batch {number} has the shape {array.shape} for {name!r}; expected {shape}.",
            "Use batches of one size: an incomplete last batch must be left out.",
        )
    if array.dtype.kind not in ("iub" if dtype.kind in "iu" else "f"):
        raise CalibrationError(f"Calibration batch {number} has {array.dtype} for {name!r}; expected {dtype}.")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise CalibrationError(f"Calibration batch {number} holds NaN or infinity in {name!r}.")
    if array.dtype.kind in "iu" and array.size and not _fits(array, dtype):
        raise CalibrationError(f"Calibration batch {number} holds values in {name!r} that {dtype} cannot hold.")
    return array


def _fits(array: Array, dtype: np.dtype[Any]) -> bool:
    """Whether whole numbers survive the cast."""
    limits = np.iinfo(dtype)
    return bool(int(array.min()) >= limits.min and int(array.max()) <= limits.max)


def make_calibrator(
    trt: Any,
    options: CalibratorOptions,
    feeder: BatchFeeder,
    on_cache: Callable[[bytes], None],
    on_histograms: Callable[[bytes], None] | None = None,
) -> Any:
    """A calibrator that runs over the feeder's batches; caches are never read, only given to the callbacks.

    Args:
        trt: the tensorrt module.
        options: which algorithm, and Legacy's parameters.
        feeder: the data.
        on_cache: takes the calibration cache.
        on_histograms: takes Legacy's histogram cache.
    """
    base = getattr(trt, CLASSES[options.algorithm])

    class Calibrator(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            base.__init__(self)

        def get_batch_size(self) -> int:
            return feeder.batch_size

        def get_batch(self, names: Sequence[str], *_: Any) -> list[int] | None:
            return feeder.next_batch(names)

        def read_calibration_cache(self, *_: Any) -> None:
            return None

        def write_calibration_cache(self, cache: Any, *_: Any) -> None:
            if feeder.error is None:
                on_cache(bytes(cache))

        # Asked of IInt8LegacyCalibrator only.
        def get_quantile(self) -> float:
            return options.quantile

        def get_regression_cutoff(self) -> float:
            return options.cutoff

        def read_histogram_cache(self, *_: Any) -> None:
            return None

        def write_histogram_cache(self, pointer: Any, length: int) -> None:
            if feeder.error is None and on_histograms is not None:
                on_histograms(bytes_at(pointer, length))

    return Calibrator()


def make_cache_reader(trt: Any, cache: bytes) -> Any:
    """An Entropy2 calibrator that has only a cache; when TensorRT does not accept it there is no data to fall back on.

    The attribute `asked_for_data` tells afterwards whether TensorRT refused the cache.
    """
    base = trt.IInt8EntropyCalibrator2

    class CacheReader(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            base.__init__(self)
            self.asked_for_data = False

        def get_batch_size(self) -> int:
            return 1

        def get_batch(self, names: Sequence[str], *_: Any) -> None:
            self.asked_for_data = True

        def read_calibration_cache(self, *_: Any) -> bytes:
            return cache

        def write_calibration_cache(self, written: Any, *_: Any) -> None:
            return None

    return CacheReader()


def bytes_at(pointer: Any, length: int) -> bytes:
    """The bytes behind what TensorRT passes as a pointer: a PyCapsule, an address, or a buffer."""
    if isinstance(pointer, int):
        return ctypes.string_at(pointer, length)
    if type(pointer).__name__ == "PyCapsule":
        name = ctypes.pythonapi.PyCapsule_GetName
        name.restype, name.argtypes = ctypes.c_char_p, [ctypes.py_object]
        address = ctypes.pythonapi.PyCapsule_GetPointer
        address.restype, address.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        return ctypes.string_at(address(pointer, name(pointer)), length)
    return bytes(pointer)[:length]

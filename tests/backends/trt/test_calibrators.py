"""Feeder and calibrators: the protocol, and what TensorRT would swallow."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from quantkit.backends.trt.calibrators import BatchFeeder, bytes_at, make_cache_reader, make_calibrator
from quantkit.backends.trt.cuda import device
from quantkit.backends.trt.options import CalibratorOptions
from quantkit.errors import CalibrationError, DataError

SPECS = {"x": ((2, 3), np.dtype(np.int32)), "f": ((2, 5), np.dtype(np.float32))}


class Source:
    """Whatever it is told, item by item; exceptions are raised."""

    def __init__(self, *items, count: int | None = None) -> None:
        self.items, self.count = items, len(items) if count is None else count

    def __len__(self) -> int:
        return self.count

    def __iter__(self):
        for item in self.items:
            if isinstance(item, BaseException):
                raise item
            yield item


def good(value: int = 1) -> dict[str, np.ndarray]:
    return {"x": np.full((2, 3), value, np.int64), "f": np.full((2, 5), value / 2, np.float32)}


def feeder(*items, **changes) -> BatchFeeder:
    return BatchFeeder(Source(*items, **changes), SPECS, device())


def test_batches_arrive_on_the_device_in_the_order_that_is_asked_for(fake_trt) -> None:
    import pycuda.driver as cuda

    given = feeder(good(7), good(8))
    for value in (7, 8):
        addresses = given.next_batch(["f", "x"])
        assert addresses is not None
        assert (cuda.locate(addresses[1])[:24].view(np.int32) == value).all()
        assert (cuda.locate(addresses[0])[:40].view(np.float32) == value / 2).all()
    assert given.next_batch(["f", "x"]) is None
    given.finish()
    before = len(cuda.blocks)
    given.free()
    assert len(cuda.blocks) == before - 1


@pytest.mark.parametrize(
    "bad, message",
    [
        ({"x": np.zeros((2, 3), np.int64)}, "batch 1 has no 'f'; it has x"),
        ({**good(), "x": np.zeros((1, 3), np.int64)}, r"the shape \(1, 3\) for 'x'; expected \(2, 3\)"),
        ({**good(), "x": np.zeros((2, 3), np.float32)}, "float32 for 'x'; expected int32"),
        ({**good(), "f": np.zeros((2, 5), np.int64)}, "int64 for 'f'; expected float32"),
        ({**good(), "f": np.full((2, 5), np.nan, np.float32)}, "NaN or infinity in 'f'"),
        ({**good(), "x": np.full((2, 3), 1 << 40)}, "that int32 cannot hold"),
        (RuntimeError("disk gone"), "batch 1 cannot be had: RuntimeError: disk gone"),
    ],
)
def test_a_bad_batch_ends_calibration_and_is_raised_afterwards(fake_trt, bad, message) -> None:
    given = feeder(good(), bad, good())
    assert given.next_batch(["x", "f"]) is not None
    assert given.next_batch(["x", "f"]) is None
    assert given.next_batch(["x", "f"]) is None
    with pytest.raises(CalibrationError, match=message):
        given.finish()


def test_a_loader_s_own_error_comes_through(fake_trt) -> None:
    given = feeder(DataError("row 3 is empty."))
    assert given.next_batch(["x"]) is None
    with pytest.raises(DataError, match="row 3"):
        given.finish()


def test_batches_that_tensorrt_never_took_are_an_error(fake_trt) -> None:
    given = feeder(good(), good(), good())
    given.next_batch(["x", "f"])
    with pytest.raises(CalibrationError, match="took 1 of 3 calibration batches"):
        given.finish()


def test_an_input_that_the_network_does_not_have(fake_trt) -> None:
    given = feeder(good())
    assert given.next_batch(["y"]) is None
    with pytest.raises(CalibrationError, match="asks for 'y'"):
        given.finish()


def test_calibrators_have_the_right_base_and_parameters(fake_trt) -> None:
    import tensorrt

    caches: list[bytes] = []
    for algorithm, base in (
        ("entropy2", tensorrt.IInt8EntropyCalibrator2),
        ("entropy", tensorrt.IInt8EntropyCalibrator),
        ("minmax", tensorrt.IInt8MinMaxCalibrator),
        ("legacy", tensorrt.IInt8LegacyCalibrator),
    ):
        options = CalibratorOptions(algorithm, 0.9, 0.25)
        calibrator = make_calibrator(tensorrt, options, feeder(good()), caches.append)
        assert isinstance(calibrator, base)
        assert calibrator._ready, "the base's constructor was not called"
        assert (calibrator.get_quantile(), calibrator.get_regression_cutoff()) == (0.9, 0.25)
        assert calibrator.get_batch_size() == 2
        assert calibrator.read_calibration_cache() is None
        calibrator.write_calibration_cache(memoryview(b"cache"))
    assert caches == [b"cache"] * 4


def test_a_cache_made_from_half_the_data_is_dropped(fake_trt) -> None:
    import tensorrt

    caches: list[bytes] = []
    calibrator = make_calibrator(tensorrt, CalibratorOptions(), feeder(good(), ValueError("x")), caches.append)
    calibrator.get_batch(["x", "f"])
    assert calibrator.get_batch(["x", "f"]) is None
    calibrator.write_calibration_cache(b"half")
    assert caches == []


def test_the_cache_reader_has_a_cache_and_no_data(fake_trt) -> None:
    import tensorrt

    reader = make_cache_reader(tensorrt, b"TRT-8600-EntropyCalibration2\n")
    assert reader.read_calibration_cache() == b"TRT-8600-EntropyCalibration2\n"
    assert not reader.asked_for_data
    assert reader.get_batch(["x"]) is None
    assert reader.asked_for_data


def test_bytes_behind_a_capsule_an_address_and_a_buffer() -> None:
    buffer = ctypes.create_string_buffer(b"histogram\0more", 14)
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    for name in (None, b"a name"):
        assert bytes_at(new(ctypes.addressof(buffer), name, None), 14) == b"histogram\0more"
    assert bytes_at(ctypes.addressof(buffer), 9) == b"histogram"
    assert bytes_at(memoryview(b"histogram"), 4) == b"hist"

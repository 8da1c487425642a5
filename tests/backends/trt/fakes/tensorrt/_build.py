"""Builder, configuration, calibration and the plan's bytes."""

import json
import os
import signal

import numpy as np
from fakes_version import VERSION

from tensorrt._compute import compute, freeze
from tensorrt._enums import BuilderFlag, ProfilingVerbosity, Severity, Strict, nptype
from tensorrt._network import INetworkDefinition

HEADERS = {
    "ENTROPY_CALIBRATION": "EntropyCalibration",
    "ENTROPY_CALIBRATION_2": "EntropyCalibration2",
    "MINMAX_CALIBRATION": "MinMaxCalibration",
}


class IHostMemory(Strict):
    def __init__(self, data):
        self._data = data

    nbytes = property(lambda self: len(self._data))

    def __buffer__(self, flags):
        return memoryview(self._data)

    def __bytes__(self):
        return self._data


class IOptimizationProfile(Strict):
    def __init__(self):
        self._shapes = {}

    def set_shape(self, input, min, opt, max):
        if not all(a <= b <= c for a, b, c in zip(min, opt, max, strict=True)):
            raise ValueError("Shape provided for min, opt and max are inconsistent")
        self._shapes[input] = [list(min), list(opt), list(max)]


class IBuilderConfig(Strict):
    def __init__(self):
        self._flags, self._pools, self._profiles = {BuilderFlag.TF32}, {}, []
        self._features, self._calibrator = set(), None
        self.profiling_verbosity = ProfilingVerbosity.LAYER_NAMES_ONLY
        self.builder_optimization_level = 3

    int8_calibrator = property(lambda self: self._calibrator, lambda self, v: setattr(self, "_calibrator", v))

    def set_flag(self, flag):
        self._flags.add(flag)

    def clear_flag(self, flag):
        self._flags.discard(flag)

    def set_memory_pool_limit(self, pool, pool_size):
        self._pools[pool] = pool_size

    def set_tactic_sources(self, tactic_sources):
        self._sources = tactic_sources
        return True

    def set_preview_feature(self, feature, enable):
        self._features.add(feature)

    def add_optimization_profile(self, profile):
        self._profiles.append(profile)
        return len(self._profiles) - 1


class Builder(Strict):
    def __init__(self, logger):
        self._logger = logger

    def create_network(self, flags=0):
        if VERSION.startswith("8.") and not flags & 1:
            raise RuntimeError("implicit batch")
        return INetworkDefinition(flags)

    def create_builder_config(self):
        return IBuilderConfig()

    def create_optimization_profile(self):
        return IOptimizationProfile()

    def build_serialized_network(self, network, config):
        self._logger.log(Severity.INFO, "building")
        if os.environ.get("FAKE_BUILD_CRASH"):
            os.kill(os.getpid(), signal.SIGSEGV)
        called = [layer.name for layer in network._layers if not layer.name.startswith("(Unnamed")]
        if network._onnx is None and (repeated := [n for i, n in enumerate(called) if n in called[:i]]):
            self._logger.log(Severity.ERROR, f"Repeated layer name: {repeated[0]} (layers must have distinct names)")
            return None
        frozen = freeze(network)
        frozen["precision"] = sorted(flag.name for flag in config._flags)
        frozen["profiles"] = [profile._shapes for profile in config._profiles]
        frozen["verbosity"] = config.profiling_verbosity.name
        dynamic = any(-1 in shape for _, shape, _ in frozen["inputs"])
        if dynamic and not frozen["profiles"]:
            self._logger.log(Severity.ERROR, "Network has dynamic or shape inputs, but no optimization profile")
            return None
        if os.environ.get("FAKE_OUT_OF_MEMORY"):
            self._logger.log(Severity.ERROR, "[defaultAllocator.cpp] Error Code 1: Cuda Runtime (out of memory)")
            return None
        if BuilderFlag.INT8 in config._flags and config._calibrator is not None:
            self._calibrate(network, frozen, config._calibrator)
        if os.environ.get("FAKE_CRASH_AFTER_CALIBRATION"):
            os.kill(os.getpid(), signal.SIGSEGV)
        return IHostMemory(json.dumps(frozen).encode())

    def _calibrate(self, network, frozen, calibrator):
        """As TensorRT: the cache first, then batches until there is none; exceptions end it without a word."""
        algorithm = calibrator.get_algorithm().name
        number = int(VERSION.replace(".", "") + "0") if VERSION.startswith("8.") else 100300
        header = f"TRT-{number}-{HEADERS.get(algorithm, '')}"
        cache = calibrator.read_calibration_cache()
        names = [layer.get_output(0).name for layer in network._layers if layer.get_output(0).dtype.name == "FLOAT"]
        if cache is not None and bytes(cache).decode().startswith(header):
            known = {line.rpartition(": ")[0] for line in bytes(cache).decode().splitlines()[1:]}
            for name in names:
                if name not in known:
                    text = "expect fall back to non-int8 implementation for any layer consuming or producing it"
                    self._logger.log(Severity.WARNING, f"Missing scale and zero-point for tensor {name}, {text}")
            return
        largest = dict.fromkeys(names, np.float32(0))
        inputs = [n for n, _, _ in frozen["inputs"]]
        while True:
            try:
                addresses = calibrator.get_batch(inputs)
            except Exception as error:
                print(f"[ERROR] Exception caught in get_batch(): {error}")
                break
            if not addresses:
                break
            feed = {}
            for (name, shape, dtype), address in zip(frozen["inputs"], addresses, strict=True):
                from pycuda.driver import locate

                from tensorrt._enums import DataType

                kind = np.dtype(nptype(DataType[dtype]))
                size = int(np.prod(shape)) * kind.itemsize
                feed[name] = locate(address)[:size].view(kind).reshape(shape)
            tensors = compute(frozen, feed, names)
            for name in names:
                largest[name] = max(largest[name], np.float32(np.abs(tensors[name]).max()))
        if algorithm == "LEGACY_CALIBRATION":
            numbers = calibrator.get_regression_cutoff(), calibrator.get_quantile()
            header = " ".join(["0", *(f"{int(np.float64(number).view(np.uint64)):x}" for number in numbers)])
            write_histograms(calibrator, largest)
        lines = [f"{name}: {int(np.float32(v / np.float32(127)).view(np.uint32)):x}" for name, v in largest.items()]
        calibrator.write_calibration_cache("\n".join([header, *lines, ""]).encode())


def write_histograms(calibrator, largest):
    """A histogram cache with one value a tensor, passed as a PyCapsule."""
    import ctypes
    import struct

    calibrator.read_histogram_cache(0)
    data = b""
    for name, amax in largest.items():
        upper = float(amax) or 1.0
        counts = np.zeros(2048, "<u8")
        counts[2047 if amax else 0] = 1
        data += f"{name}\n".encode() + struct.pack("<dddIQ", upper / 2048, upper, float(amax), 2048, 2048)
        data += counts.tobytes()
    buffer = ctypes.create_string_buffer(data, len(data))
    make = ctypes.pythonapi.PyCapsule_New
    make.restype, make.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    calibrator.write_histogram_cache(make(ctypes.addressof(buffer), None, None), len(data))


__all__ = ["Builder", "IBuilderConfig", "IHostMemory", "IOptimizationProfile"]

"""Enumerations of TensorRT 8.6.0, with the members that quantkit may meet."""

import enum
import json
from pathlib import Path

import numpy as np
from fakes_version import VERSION  # noqa: F401 - exported

SURFACE = json.loads((Path(__file__).resolve().parents[2] / "api_8_6_0.json").read_text())["classes"]


class Strict:
    """Refuses attributes that the real class of the same name does not have; underscored ones are the fake's own."""

    def __setattr__(self, name, value):
        known = {n for cls in type(self).__mro__ for n in SURFACE.get(cls.__name__, ())}
        if not name.startswith("_") and name not in known and type(self).__name__ in SURFACE:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        super().__setattr__(name, value)


def _enum(name, members=None):
    return enum.IntEnum(name, {m: i for i, m in enumerate(members or _members(name))})


def _members(name):
    return [m for m in SURFACE[name] if m not in ("name", "value", "itemsize")]


DataType = enum.Enum("DataType", ["FLOAT", "HALF", "INT8", "INT32", "BOOL", "UINT8", "FP8"])
float32, float16, int8, int32 = DataType.FLOAT, DataType.HALF, DataType.INT8, DataType.INT32
BuilderFlag = _enum("BuilderFlag")
NetworkDefinitionCreationFlag = _enum("NetworkDefinitionCreationFlag")
ElementWiseOperation = _enum("ElementWiseOperation")
UnaryOperation = _enum("UnaryOperation")
ActivationType = _enum("ActivationType")
MatrixOperation = _enum("MatrixOperation")
ReduceOperation = _enum("ReduceOperation")
LayerType = _enum("LayerType")
MemoryPoolType = _enum("MemoryPoolType")
PreviewFeature = _enum("PreviewFeature")
ProfilingVerbosity = _enum("ProfilingVerbosity")
LayerInformationFormat = _enum("LayerInformationFormat")
TensorIOMode = _enum("TensorIOMode")
CalibrationAlgoType = _enum("CalibrationAlgoType")
Severity = _enum("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"])
Severity.__str__ = lambda self: f"Severity.{self.name}"

_NUMPY = {"FLOAT": np.float32, "HALF": np.float16, "INT8": np.int8, "INT32": np.int32, "BOOL": np.bool_}


def nptype(dtype):
    return _NUMPY[dtype.name]


def of_numpy(dtype):
    return next(DataType[name] for name, kind in _NUMPY.items() if np.dtype(kind) == dtype)


class ILogger:
    Severity = Severity

    def __init__(self):
        pass


class IProfiler:
    def __init__(self):
        pass


class Weights(Strict):
    def __init__(self, array):
        if not isinstance(array, np.ndarray) or not array.flags.c_contiguous:
            raise TypeError("Weights need a contiguous array")
        self._array = array

    @property
    def size(self):
        return self._array.size

    def numpy(self):
        return self._array


__all__ = [n for n in dir() if not n.startswith("_") and n not in ("enum", "json", "np", "Path")]

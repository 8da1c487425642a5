"""Runtime, engine, context, inspector."""

import json
import os
import weakref

import numpy as np
import pycuda.driver as cuda

from tensorrt._compute import compute
from tensorrt._enums import DataType, Severity, Strict, TensorIOMode, nptype

contexts = []
"""Execution contexts that are alive."""


first_logger = []
"""A weak reference to the logger that the process began with; the real library keeps its bare address."""


class Runtime(Strict):
    def __init__(self, logger):
        self._logger = logger
        first_logger.append(weakref.ref(logger))

    def deserialize_cuda_engine(self, data):
        assert first_logger[0]() is not None, "a segmentation fault: the process's first logger was freed"
        try:
            return ICudaEngine(json.loads(bytes(data)), self._logger)
        except ValueError:
            self._logger.log(Severity.ERROR, "Magic tag does not match")
            return None


class ICudaEngine(Strict):
    def __init__(self, frozen, logger):
        self._frozen, self._logger = frozen, logger
        self._io = {n: (tuple(s), DataType[d], TensorIOMode.INPUT) for n, s, d in frozen["inputs"]}
        self._io |= {n: (tuple(s), DataType[d], TensorIOMode.OUTPUT) for n, s, d in frozen["outputs"]}

    num_io_tensors = property(lambda self: len(self._io))
    num_optimization_profiles = property(lambda self: max(1, len(self._frozen["profiles"])))
    device_memory_size = property(lambda self: 1 << 20)

    def get_tensor_name(self, index):
        return list(self._io)[index]

    def get_tensor_shape(self, name):
        return self._io[name][0]

    def get_tensor_dtype(self, name):
        return self._io[name][1]

    def get_tensor_mode(self, name):
        return self._io[name][2]

    def get_tensor_profile_shape(self, name, profile_index):
        return [tuple(shape) for shape in self._frozen["profiles"][profile_index][name]]

    def create_execution_context(self):
        if os.environ.get("FAKE_NO_CONTEXT"):
            self._logger.log(Severity.ERROR, "Cuda Runtime (out of memory)")
            return None
        return IExecutionContext(self)

    def create_engine_inspector(self):
        return EngineInspector(self)


class IExecutionContext(Strict):
    def __init__(self, engine):
        self._engine, self._shapes, self._addresses, self._profile = engine, {}, {}, 0
        self._profiler, self._emits = None, True

    profiler = property(lambda self: self._profiler, lambda self, v: setattr(self, "_profiler", v))
    enqueue_emits_profile = property(lambda self: self._emits, lambda self, v: setattr(self, "_emits", v))

    def set_optimization_profile_async(self, profile_index, stream_handle):
        self._profile = profile_index
        self._shapes = {}
        return profile_index < self._engine.num_optimization_profiles

    def set_input_shape(self, name, shape):
        own = self._engine._io[name][0]
        if -1 in own:
            low, _, high = self._engine.get_tensor_profile_shape(name, self._profile)
            if not all(a <= n <= b for a, n, b in zip(low, shape, high, strict=True)):
                return False
        elif tuple(shape) != own:
            return False
        self._shapes[name] = tuple(shape)
        return True

    def get_tensor_shape(self, name):
        shape = self._engine._io[name][0]
        if name in self._shapes:
            return self._shapes[name]
        if "starts" in self._shapes:  # packed sentences: one output row each
            return (self._shapes["starts"][0] - 1, *shape[1:])
        first = next(iter(self._shapes.values()))
        changing = iter(first)
        return tuple(next(changing) if n == -1 else n for n in shape)

    def set_tensor_address(self, name, memory):
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle):
        feed, io = {}, self._engine._io
        if set(self._addresses) != set(io):
            self._engine._logger.log(Severity.ERROR, "Address is not set for input tensor")
            return False
        for name, (_, dtype, mode) in io.items():
            if mode == TensorIOMode.INPUT:
                kind = np.dtype(nptype(dtype))
                size = int(np.prod(self._shapes[name])) * kind.itemsize
                feed[name] = cuda.locate(self._addresses[name])[:size].view(kind).reshape(self._shapes[name])
        if os.environ.get("FAKE_IDLE"):  # where only the way of the data matters
            found = {name: np.zeros(self.get_tensor_shape(name)) for name, (*_, mode) in io.items() if name not in feed}
        else:
            found = compute(self._engine._frozen, feed)
        for name, value in found.items():
            data = np.frombuffer(np.ascontiguousarray(value.astype(nptype(io[name][1]))), np.uint8)
            cuda.locate(self._addresses[name])[: data.nbytes] = data
        if self._profiler is not None:
            for layer in layer_names(self._engine._frozen):
                self._profiler.report_layer_time(layer, 0.5)
        return True


def layer_names(frozen):
    return ["{ForeignNode[first...last]}", "Reformatting CopyNode for Input Tensor 0"]


class EngineInspector(Strict):
    def __init__(self, engine):
        self._engine = engine

    def get_engine_information(self, format):
        names = layer_names(self._engine._frozen)
        if self._engine._frozen["verbosity"] != "DETAILED":
            return json.dumps({"Layers": names})
        tensor = {"Name": "logits", "Format/Datatype": "Row major linear FP32"}
        layers = [
            {"Name": names[0], "LayerType": "Myelin", "Inputs": [], "Outputs": [tensor], "TacticName": ""},
            {"Name": names[1], "LayerType": "Reformat", "Inputs": [tensor], "Outputs": [tensor], "TacticName": ""},
        ]
        return json.dumps({"Layers": layers, "Bindings": []})


__all__ = ["EngineInspector", "ICudaEngine", "IExecutionContext", "Runtime"]

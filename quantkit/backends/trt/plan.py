"""A deserialized engine: its tensors, its profiles, its layers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from quantkit.backends.feeds import shape_text
from quantkit.backends.trt import runtime
from quantkit.backends.trt.cuda import Device
from quantkit.errors import BackendError
from quantkit.types import Array

Shape = tuple[int, ...]

MARK = b"Quantkit"
"""In a plan that needs our plugins: every name of one begins so."""
THEIRS = b"PluginDynamic"
"""In a plan that needs TensorRT's plugins for BERT: every name of one ends so."""


@dataclass(frozen=True)
class Tensor:
    """An input or output: name, NumPy type, shape with -1 for what may change."""

    name: str
    dtype: np.dtype[Any]
    shape: Shape


class LoadedPlan:
    """A plan in memory, ready to give execution contexts.

    Args:
        data: the serialized engine.
        owner: the GPU.

    Raises:
        BackendError: TensorRT cannot deserialize it.
    """

    def __init__(self, data: bytes, owner: Device) -> None:
        self.trt = runtime.load()
        self.messages = runtime.Messages()
        self._owner = owner
        if MARK in data:
            from quantkit.backends.trt.plugins import library

            with owner.current():
                library.register()
        with owner.current():
            if THEIRS in data:
                self.trt.init_libnvinfer_plugins(runtime.logger(), "")
            self._runtime = self.trt.Runtime(runtime.logger())
            self._engine = self._runtime.deserialize_cuda_engine(data)
        if self._engine is None:
            raise BackendError(
                f"The engine cannot be loaded: {self.messages.cause()}.", "Build it again on this machine."
            )
        self.size_bytes = len(data)
        tensors = list(self._tensors())
        self.inputs = tuple(t for t, is_input in tensors if is_input)
        self.outputs = tuple(t for t, is_input in tensors if not is_input)
        self.profiles = tuple(self._profile(i) for i in range(int(self._engine.num_optimization_profiles)))

    @property
    def raw(self) -> Any:
        """TensorRT's own ICudaEngine."""
        return self._engine

    @property
    def device_memory_bytes(self) -> int:
        """Scratch memory of each context."""
        return int(getattr(self._engine, "device_memory_size_v2", None) or self._engine.device_memory_size)

    def create_context(self) -> Any:
        """A new execution context.

        Raises:
            BackendError: there is not enough device memory.
        """
        context = self._engine.create_execution_context()
        if context is None:
            raise BackendError(
                f"No execution context of {self.device_memory_bytes / 2**20:.0f} MiB can be made: "
                f"{self.messages.cause()}.",
                "Free GPU memory, or use fewer contexts.",
            )
        return context

    def profile_for(self, shapes: Mapping[str, Shape]) -> int:
        """The first optimization profile that takes the shapes.

        Raises:
            BackendError: none does; the sentence gives the ranges.
        """
        for index, profile in enumerate(self.profiles):
            if all(_inside(shape, *profile[name]) for name, shape in shapes.items()):
                return index
        name, shape = next(
            ((n, s) for n, s in shapes.items() if not any(_inside(s, *p[n]) for p in self.profiles)),
            next(iter(shapes.items())),
        )
        raise BackendError(
            f"The input {name!r} has shape {shape_text(shape)}; {self.range_text(name)}",
            "Build the engine for this shape (--shapes min:opt:max).",
        )

    def range_text(self, name: str = "") -> str:
        """The shapes that the engine takes, as a sentence."""
        name = name or self.inputs[0].name
        ranges = [
            shape_text(low) if low == high else f"{shape_text(low)} to {shape_text(high)}"
            for low, _, high in (profile[name] for profile in self.profiles)
        ]
        return f"the engine takes {' or '.join(ranges)}."

    def largest_shapes(self) -> Iterator[tuple[int, dict[str, Shape]]]:
        """Profile by profile, the largest shape of every input."""
        for index, profile in enumerate(self.profiles):
            yield index, {name: high for name, (_, _, high) in profile.items()}

    def optimal_shapes(self) -> dict[str, Shape]:
        """The shapes for which the first profile's tactics were chosen."""
        return {name: middle for name, (_, middle, _) in self.profiles[0].items()}

    def inspect(self, context: Any = None) -> dict[str, Any]:
        """What the engine inspector says, as a JSON object; {} when it says nothing."""
        with self._owner.current():
            inspector = self._engine.create_engine_inspector()
            if context is not None:
                inspector.execution_context = context
            text = inspector.get_engine_information(self.trt.LayerInformationFormat.JSON)
        try:
            value = json.loads(text)
        except (TypeError, ValueError):
            return {}
        return value if isinstance(value, dict) else {}

    def profile(self, context: Any, stream: Any, runs: int) -> dict[str, float]:
        """Mean milliseconds of each layer over `runs` inferences on what lies in the bound input buffers."""
        profiler = _make_profiler(self.trt)
        context.profiler = profiler
        context.enqueue_emits_profile = True
        for _ in range(runs):
            if not context.execute_async_v3(stream.handle):
                raise BackendError(f"The engine failed: {self.messages.cause()}.")
            stream.synchronize()
        return {name: total / runs for name, total in profiler.total_ms.items()}

    def close(self) -> None:
        """Drops engine and runtime; every context must be closed by then."""
        with self._owner.current():
            self._engine = None
            self._runtime = None

    def _tensors(self) -> Iterator[tuple[Tensor, bool]]:
        """Every input and output, and whether it is an input."""
        engine, trt = self._engine, self.trt
        for i in range(int(engine.num_io_tensors)):
            name = str(engine.get_tensor_name(i))
            dtype = np.dtype(trt.nptype(engine.get_tensor_dtype(name)))
            shape = tuple(int(n) for n in engine.get_tensor_shape(name))
            yield Tensor(name, dtype, shape), engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT

    def _profile(self, index: int) -> dict[str, tuple[Shape, Shape, Shape]]:
        """Input name -> smallest, optimal and largest shape of a profile."""
        found = {}
        for tensor in self.inputs:
            if -1 in tensor.shape:
                low, middle, high = (
                    tuple(int(n) for n in shape) for shape in self._engine.get_tensor_profile_shape(tensor.name, index)
                )
                found[tensor.name] = (low, middle, high)
            else:
                found[tensor.name] = (tensor.shape,) * 3
        return found


def example_feed(plan: LoadedPlan) -> dict[str, Array]:
    """A feed of the shapes that the engine was tuned for: one token everywhere, nothing masked."""
    shapes = plan.optimal_shapes()
    feed: dict[str, Array] = {
        t.name: np.full(shapes[t.name], "mask" in t.name or t.dtype.kind == "f", t.dtype) for t in plan.inputs
    }
    if "starts" in feed:  # packed sentences of equal length
        tokens, sentences = shapes["input_ids"][0], shapes["starts"][0] - 1
        feed["starts"] = np.linspace(0, tokens, sentences + 1).astype(feed["starts"].dtype)
    return feed


def _inside(shape: Shape, low: Shape, _: Shape, high: Shape) -> bool:
    """Whether low <= shape <= high, dimension by dimension."""
    return len(shape) == len(low) and all(a <= n <= b for a, n, b in zip(low, shape, high, strict=True))


def _make_profiler(trt: Any) -> Any:
    """An IProfiler that adds up the milliseconds of each layer, in the order in which they come."""

    class Profiler(trt.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.total_ms: dict[str, float] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.total_ms[layer_name] = self.total_ms.get(layer_name, 0.0) + float(ms)

    return Profiler()

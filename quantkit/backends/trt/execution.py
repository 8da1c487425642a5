"""One execution context with its own stream and buffers: what a thread needs to run an engine."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from quantkit.backends.trt.cuda import Arena, Device, driver
from quantkit.backends.trt.graphs import CudaGraph
from quantkit.backends.trt.plan import LoadedPlan, Tensor
from quantkit.errors import BackendError
from quantkit.types import Array

ALIGNMENT = 256
KEPT_LAYOUTS, KEPT_GRAPHS = 64, 8
"""Shapes whose layout, or whose CUDA graph, is kept; the least recently used one goes first. A graph is bound to the
state of the context that it was captured from, so each has a context, with scratch memory, of its own."""

Shape = tuple[int, ...]
Signature = tuple[Shape, ...]


class Context:
    """An IExecutionContext that remembers what it is set to.

    Raises:
        BackendError: there is not enough device memory.
    """

    def __init__(self, plan: LoadedPlan, stream: Any) -> None:
        self._plan = plan
        self._stream = stream
        self.raw = plan.create_context()
        self._profile = 0
        self.bound: Layout | None = None

    def set_shapes(self, profile: int, shapes: Mapping[str, Shape]) -> None:
        """Chooses the optimization profile and gives TensorRT the input shapes."""
        self.bound = None
        if profile != self._profile:
            if not self.raw.set_optimization_profile_async(profile, self._stream.handle):
                raise BackendError(f"TensorRT cannot switch to the optimization profile {profile}.")
            self._stream.synchronize()
            self._profile = profile
        for name, shape in shapes.items():
            if not self.raw.set_input_shape(name, shape):
                raise BackendError(f"TensorRT refuses the shape {shape} of {name!r}; {self._plan.range_text(name)}")

    def layout(self, profile: int, shapes: Mapping[str, Shape]) -> Layout:
        """Sets the shapes, reads off those of the outputs, and places all tensors."""
        self.set_shapes(profile, shapes)
        inputs, input_bytes = _packed([(t, shapes[t.name]) for t in self._plan.inputs])
        found = [(t, tuple(int(n) for n in self.raw.get_tensor_shape(t.name))) for t in self._plan.outputs]
        if unknown := [tensor.name for tensor, shape in found if any(n < 0 for n in shape)]:
            raise BackendError(f"The shape of the output {unknown[0]!r} depends on the data, which cannot be run.")
        outputs, output_bytes = _packed(found)
        return Layout(self, profile, inputs, outputs, input_bytes, output_bytes)

    def enqueue(self) -> None:
        """Enqueues the computation."""
        if not self.raw.execute_async_v3(self._stream.handle):
            raise BackendError(f"The engine failed: {self._plan.messages.cause()}.")


@dataclass(eq=False)
class Layout:
    """Where every tensor lies for one set of input shapes.

    Attributes:
        context: who runs it; shared by all layouts, but for those with graphs.
        profile: the optimization profile.
        inputs, outputs: tensor name -> (offset in its arena, shape, dtype).
        input_bytes, output_bytes: how much of each arena is used.
        graph: captured computation, once there is one.
        runs: how often this layout ran.
    """

    context: Context
    profile: int
    inputs: dict[str, tuple[int, Shape, np.dtype[Any]]]
    outputs: dict[str, tuple[int, Shape, np.dtype[Any]]]
    input_bytes: int
    output_bytes: int
    graph: CudaGraph | None = None
    runs: int = 0

    @property
    def shapes(self) -> dict[str, Shape]:
        """Shapes of the inputs."""
        return {name: shape for name, (_, shape, _) in self.inputs.items()}

    def free(self) -> None:
        """Frees the graph."""
        if self.graph is not None:
            self.graph.free()
            self.graph = None


@dataclass(frozen=True)
class Phases:
    """Milliseconds of one inference.

    Attributes:
        host: from the arrays to the arrays, by the clock on the wall.
        h2d, compute, d2h: of the GPU, by events.
        enqueue: that the call which starts the computation took on the CPU.
    """

    host: float
    h2d: float
    compute: float
    d2h: float
    enqueue: float


class Execution:
    """Runs an engine for one thread at a time.

    All memory is taken here, for the largest shape that any profile allows; `run` takes none but the arrays it returns.

    Args:
        plan: the deserialized engine.
        owner: the GPU.
        graphs: capture the computation into a CUDA graph a shape, from the second run of the shape on.

    Raises:
        BackendError: there is not enough device memory.
    """

    def __init__(self, plan: LoadedPlan, owner: Device, *, graphs: bool = False) -> None:
        self._plan = plan
        self._owner = owner
        self._graphs = graphs
        self._layouts: OrderedDict[Signature, Layout] = OrderedDict()
        self.graph_refusal = ""
        with owner.current():
            self._stream = driver().Stream()
            self._shared = Context(plan, self._stream)
            self._events = [driver().Event() for _ in range(4)]
            sizes = [self._shared.layout(index, shapes) for index, shapes in plan.largest_shapes()]
        self._in = Arena(max(layout.input_bytes for layout in sizes), owner)
        self._out = Arena(max(layout.output_bytes for layout in sizes), owner)

    @property
    def buffer_bytes(self) -> int:
        """Device memory of the input and output buffers."""
        return self._in.nbytes + self._out.nbytes

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs as fresh arrays; `feed` was checked and has the engine's own types.

        Raises:
            BackendError: no profile takes the shapes, or the engine failed.
        """
        with self._owner.current():
            layout = self._prepare(feed)
            self._copy_in(layout)
            self._ready(layout)()
            self._copy_out(layout)
            self._stream.synchronize()
            return self._results(layout)

    def measure(self, feed: Mapping[str, Array]) -> Phases:
        """Times of one inference by phases; the same work as `run`."""
        clock = time.perf_counter_ns
        with self._owner.current():
            started = clock()
            layout = self._prepare(feed)
            self._events[0].record(self._stream)
            self._copy_in(layout)
            start = self._ready(layout)  # what needs no GPU comes before the event: the GPU would wait for it
            before = clock()
            self._events[1].record(self._stream)
            start()
            enqueue = clock() - before
            self._events[2].record(self._stream)
            self._copy_out(layout)
            self._events[3].record(self._stream)
            self._stream.synchronize()
            self._results(layout)
            host = clock() - started
            marks = zip(self._events, self._events[1:], strict=False)
            h2d, compute, d2h = (float(later.time_since(earlier)) for earlier, later in marks)
        return Phases(host / 1e6, h2d, compute, d2h, enqueue / 1e6)

    def profile_layers(self, feed: Mapping[str, Array], runs: int) -> dict[str, float]:
        """Milliseconds of each layer, by TensorRT's profiler, in engine order: the mean of `runs` inferences."""
        with self._owner.current():
            layout = self._prepare(feed)
            self._copy_in(layout)
            return self._plan.profile(layout.context.raw, self._stream, runs)

    def close(self) -> None:
        """Frees context, stream and buffers."""
        with self._owner.current():
            for layout in self._layouts.values():
                layout.free()
            self._layouts.clear()
            del self._shared
            self._events.clear()
            self._stream = None
        self._in.free()
        self._out.free()

    def _prepare(self, feed: Mapping[str, Array]) -> Layout:
        """Binds the layout of the feed's shapes, and puts the arrays into pinned memory."""
        signature = tuple(feed[tensor.name].shape for tensor in self._plan.inputs)
        layout = self._layouts.get(signature) or self._new_layout(signature)
        self._layouts.move_to_end(signature)
        if layout.context.bound is not layout:
            self._bind(layout)
        for name, (offset, shape, dtype) in layout.inputs.items():
            self._in.view(offset, shape, dtype)[...] = feed[name]
        return layout

    def _new_layout(self, signature: Signature) -> Layout:
        """The layout of shapes that were not met before, or not lately."""
        shapes = dict(zip((tensor.name for tensor in self._plan.inputs), signature, strict=True))
        profile = self._plan.profile_for(shapes)
        if len(self._layouts) >= (KEPT_GRAPHS if self._graphs else KEPT_LAYOUTS):
            _, oldest = self._layouts.popitem(last=False)
            oldest.free()
        context = Context(self._plan, self._stream) if self._graphs else self._shared
        layout = self._layouts[signature] = context.layout(profile, shapes)
        return layout

    def _bind(self, layout: Layout) -> None:
        """Tells TensorRT shapes and addresses."""
        context = layout.context
        context.set_shapes(layout.profile, layout.shapes)
        for arena, places in ((self._in, layout.inputs), (self._out, layout.outputs)):
            for name, (offset, _, _) in places.items():
                if not context.raw.set_tensor_address(name, arena.address + offset):
                    raise BackendError(f"TensorRT refuses the address of {name!r}.")
        context.bound = layout

    def _copy_in(self, layout: Layout) -> None:
        """Enqueues the one copy that takes all inputs to the device."""
        driver().memcpy_htod_async(self._in.device, self._in.host[: layout.input_bytes], self._stream)

    def _copy_out(self, layout: Layout) -> None:
        """Enqueues the one copy that brings all outputs back."""
        driver().memcpy_dtoh_async(self._out.host[: layout.output_bytes], self._out.device, self._stream)

    def _ready(self, layout: Layout) -> Callable[[], None]:
        """What enqueues the computation, or its graph, when it is called."""
        layout.runs += 1
        if self._graphs and layout.graph is None and layout.runs > 1 and not self.graph_refusal:
            self._capture(layout)
        if layout.graph is not None:
            return partial(layout.graph.launch, self._stream.handle)
        return layout.context.enqueue

    def _capture(self, layout: Layout) -> None:
        """Captures the computation; an engine that cannot be captured runs without, and says so."""
        graph = CudaGraph()
        # The run before let TensorRT set up what a capture must not contain; it has to be over.
        self._stream.synchronize()
        try:
            with graph.capture(self._stream.handle):
                layout.context.enqueue()
        except BackendError as error:
            graph.free()
            self.graph_refusal = error.message
        else:
            layout.graph = graph

    def _results(self, layout: Layout) -> dict[str, Array]:
        """Copies of the outputs, float ones as float32."""
        results = {}
        for name, (offset, shape, dtype) in layout.outputs.items():
            view = self._out.view(offset, shape, dtype)
            results[name] = np.array(view, np.float32 if dtype.kind == "f" else dtype)
        return results


def _packed(
    tensors: Sequence[tuple[Tensor, Shape]],
) -> tuple[dict[str, tuple[int, Shape, np.dtype[Any]]], int]:
    """Places tensors one after another, each aligned; and the bytes of all."""
    places, total = {}, 0
    for tensor, shape in tensors:
        places[tensor.name] = (total, shape, tensor.dtype)
        nbytes = int(np.prod(shape, dtype=np.int64)) * tensor.dtype.itemsize
        total += -(-nbytes // ALIGNMENT) * ALIGNMENT
    return places, max(total, 1)

"""Which tile shape of a linear layer is fastest on this GPU: measured before a network is built from plugins."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from quantkit.backends.trt.graphs import CudaGraph
from quantkit.backends.trt.options import ShapeRange
from quantkit.backends.trt.plugins.definition import Product
from quantkit.backends.trt.plugins.library import HALF, Kernels, Linear
from quantkit.errors import BackendError

RUNS, ROUNDS = 20, 3
SMALLEST_ROWS = 64


def row_counts(profiles: Iterable[ShapeRange], batch: int, seq_len: int) -> tuple[int, ...]:
    """Numbers of rows to measure for: of a fixed shape that one, else powers of two up to the largest profile.

    Args:
        profiles: ranges of shapes.
        batch: of a fixed shape, or 0.
        seq_len: likewise.
    """
    if batch and seq_len:
        return (batch * seq_len,)
    ranges = list(profiles)
    least = min((r.min[0] * r.min[1] for r in ranges), default=SMALLEST_ROWS)
    most = max((r.max[0] * r.max[1] for r in ranges), default=SMALLEST_ROWS)
    powers = [1 << i for i in range(6, 31) if max(least, SMALLEST_ROWS) <= 1 << i < most]
    return tuple(sorted({*powers, *(r.opt[0] * r.opt[1] for r in ranges), most}))


@dataclass
class Tuner:
    """Measures every tile shape once for a product and a number of rows.

    Args:
        kernels: the library.
        cuda: the module pycuda.driver; the device's context is current.
        rows: numbers of rows to measure for, rising.

    Attributes:
        found: what was measured: product -> rows -> milliseconds of every tile shape.
    """

    kernels: Kernels
    cuda: Any
    rows: tuple[int, ...]
    found: dict[Product, dict[int, list[float]]] = field(default_factory=dict)

    def __call__(self, product: Product) -> list[tuple[int, int]]:
        """Pairs of a number of rows and the tile shape that is fastest for it."""
        if product not in self.found:
            self.found[product] = {rows: self._measure(product, rows) for rows in self.rows}
        return [(rows, int(np.argmin(times))) for rows, times in self.found[product].items()]

    def _measure(self, product: Product, rows: int) -> list[float]:
        """Milliseconds of every tile shape: the least of ROUNDS means over RUNS launches, shapes in turn.

        The launches are one CUDA graph where that can be: called one by one, a small product takes less time than its
        launch.
        """
        cuda, draw = self.cuda, np.random.default_rng(0)
        out_size = 2 if product.out_type == HALF else 1
        arrays = [_numbers(draw, n * product.inputs, product.type) for n in (rows, product.outputs)]
        blocks = [cuda.mem_alloc(array.nbytes) for array in arrays]
        alpha, out = cuda.mem_alloc(product.outputs * 4), cuda.mem_alloc(rows * product.outputs * out_size)
        for block, array in zip(blocks, arrays, strict=True):
            cuda.memcpy_htod(block, array)
        cuda.memcpy_htod(alpha, np.full(product.outputs, 1e-3, np.float32))
        call = Linear(
            *(int(block) for block in (*blocks, alpha, alpha, out)),
            *(product.type, product.out_type, rows, product.outputs, product.inputs, product.gelu, 1.0, 0.0, 0),
        )
        stream, start, end = cuda.Stream(), cuda.Event(), cuda.Event()
        best = [float("inf")] * len(self.kernels.tiles)
        with ExitStack() as stack:
            launches = [stack.enter_context(self._repeated(call, tile, stream.handle)) for tile in range(len(best))]
            for launch in launches:
                launch()
            for _ in range(ROUNDS):
                for tile, launch in enumerate(launches):
                    start.record(stream)
                    launch()
                    end.record(stream)
                    end.synchronize()
                    best[tile] = min(best[tile], float(end.time_since(start)) / RUNS)
        for block in (*blocks, alpha, out):
            block.free()
        return best

    @contextmanager
    def _repeated(self, call: Linear, tile: int, stream: int) -> Iterator[Callable[[], None]]:
        """What enqueues RUNS launches of a tile shape."""

        def plain(runs: int = RUNS) -> None:
            call.tile = tile
            for _ in range(runs):
                self.kernels.run("linear", call, stream)

        plain(1)  # what is done at a kernel's first launch cannot be captured
        graph = CudaGraph()
        launch: Callable[[], None] = plain
        try:
            with graph.capture(stream):
                plain()
            launch = partial(graph.launch, stream)
        except BackendError:
            pass  # no graphs here: timed with the launches, then
        try:
            yield launch
        finally:
            graph.free()


def _numbers(draw: np.random.Generator, count: int, kind: int) -> np.ndarray[Any, Any]:
    """Random INT8, or FP16 of about their size: zeros would run faster than real data."""
    numbers = draw.integers(-127, 128, count, np.int8)
    return numbers if kind != HALF else (numbers.astype(np.float16) / np.float16(64))

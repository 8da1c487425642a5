"""Attention, in both of its forms, and LayerNorm alone: step `kernels` of plugins.py."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from quantkit.backends.trt.plugins.library import HALF, INT8, Attention, Kernels, Norm

HEADS, HEAD = 12, 64
WIDTH = HEADS * HEAD
RUNS, ROUNDS = 40, 5
PACKED_MEAN = 25
"""Tokens of a packed sentence, on average (SST-2 with its longest at 128)."""
BLOCKER = 1 << 30
FORMS = {"attention": (1, 2, 0), "norm": (0,)}
"""Numbers of forms; 0 is what the library chooses."""


class Bench:
    """Arrays on the device, and launches timed with events.

    Args:
        kernels: the library.
        cuda: the module pycuda.driver; the device's context is current.
    """

    def __init__(self, kernels: Kernels, cuda: Any) -> None:
        self.kernels, self.cuda = kernels, cuda
        self.blocks: list[Any] = []
        self.blocker = cuda.mem_alloc(BLOCKER)
        self.stream, self.start, self.end = cuda.Stream(), cuda.Event(), cuda.Event()

    def put(self, array: np.ndarray) -> int:
        """The array's address on the device."""
        self.blocks.append(self.cuda.mem_alloc(array.nbytes))
        self.cuda.memcpy_htod(self.blocks[-1], np.ascontiguousarray(array))
        return int(self.blocks[-1])

    def free(self) -> None:
        """Frees the arrays."""
        for block in self.blocks:
            block.free()
        self.blocks.clear()

    def time(self, name: str, call: ctypes.Structure, moved: int, out: tuple[int, type, int]) -> dict[str, Any]:
        """Microseconds of a launch in every form: the least of ROUNDS means over RUNS launches, forms in turn.

        Launches wait behind a few passes over the blocker, so that the host's own time does not show.

        Args:
            name: "attention" or "norm".
            call: its arguments.
            moved: bytes that it reads and writes.
            out: address, dtype and number of results, compared with the first form's.
        """
        forms = FORMS[name]
        best: dict[int, float] = dict.fromkeys(forms, float("inf"))
        results: dict[int, np.ndarray] = {}
        waited = True
        for _ in range(ROUNDS):
            for form in forms:
                if isinstance(call, Attention):
                    call.form = form
                self.kernels.run(name, call, self.stream.handle)
                self.stream.synchronize()
                if form not in results:
                    results[form] = np.empty(out[2], out[1])
                    self.cuda.memcpy_dtoh(results[form], out[0])
                for _ in range(4):
                    self.cuda.memset_d32_async(int(self.blocker), 0, BLOCKER // 4, self.stream)
                self.kernels.run(name, call, self.stream.handle)
                self.start.record(self.stream)
                for _ in range(RUNS):
                    self.kernels.run(name, call, self.stream.handle)
                waited = waited and not self.start.query()
                self.end.record(self.stream)
                self.end.synchronize()
                best[form] = min(best[form], 1e3 * float(self.end.time_since(self.start)) / RUNS)
        first = results[forms[0]].astype(np.float32)
        differences = {form: float(np.abs(r.astype(np.float32) - first).max()) for form, r in results.items()}
        return {
            "us": {form: round(us, 2) for form, us in best.items()},
            "gb_s": {form: round(1e-3 * moved / us) for form, us in best.items()},
            "largest_difference": differences,
            "queued_in_time": waited,
        }


def attention(bench: Bench, kind: int, batch: int, sequence: int, lengths: np.ndarray | None, masked: bool) -> Any:
    """One shape; `lengths` are those of packed sentences, or of the tokens before the padding when `masked`."""
    draw = np.random.default_rng(0)
    packed = lengths is not None and not masked
    tokens = int(lengths.sum()) if lengths is not None and packed else batch * sequence
    size = 2 if kind == HALF else 1
    codes = draw.integers(-127, 128, (tokens, 3 * WIDTH), np.int8)
    mask = starts = None
    if lengths is not None and packed:
        starts = bench.put(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    else:
        stands = np.ones((batch, sequence), np.int32)
        if lengths is not None:
            stands = (np.arange(sequence) < lengths[:, None]).astype(np.int32)
        mask = bench.put(stands)
    qkv = bench.put(codes if kind == INT8 else (codes / np.float32(64)).astype(np.float16))
    out = bench.put(np.zeros(tokens * WIDTH * size, np.uint8))
    scales = (2e-4 / 8, 0.01) if kind == INT8 else (0.8 / 8, 1.0)
    call = Attention(qkv, mask, starts, out, kind, kind, batch, sequence, HEADS, HEAD, *scales, 100.0, 0.0)
    try:
        where = (out, np.float16 if kind == HALF else np.int8, tokens * WIDTH)
        return bench.time("attention", call, tokens * WIDTH * 4 * size, where)
    finally:
        bench.free()


def norm(bench: Bench, rows: int, quantize: bool) -> Any:
    """Residual + LayerNorm of BERT-base: FP16 in, FP16 and INT8 out."""
    draw = np.random.default_rng(0)
    x, residual = (bench.put(draw.standard_normal((rows, WIDTH)).astype(np.float16)) for _ in range(2))
    gamma, beta = (bench.put(draw.standard_normal(WIDTH).astype(np.float32)) for _ in range(2))
    out, codes = bench.put(np.zeros(rows * WIDTH * 2, np.uint8)), bench.put(np.zeros(rows * WIDTH, np.uint8))
    given = (x, residual, None, gamma, beta, out, codes if quantize else None, HALF, HALF, HALF)
    call = Norm(*given, rows, WIDTH, 1.0, 1.0, 30.0, 0.0, 1e-12)
    try:
        return bench.time("norm", call, rows * WIDTH * (7 if quantize else 6), (out, np.float16, rows * WIDTH))
    finally:
        bench.free()


def kernels(results: Any) -> None:
    """Step `kernels`: one key for every kernel and shape."""
    from quantkit.backends.trt.cuda import device, driver
    from quantkit.backends.trt.plugins import library

    draw = np.random.default_rng(1)
    with device().current():
        bench = Bench(library.kernels(), driver())
        for kind, word in ((INT8, "int8"), (HALF, "fp16")):
            for batch, sequence in ((1, 128), (8, 128), (32, 128), (128, 128), (32, 512), (32, 64), (32, 32)):
                name = f"attention {word} {batch} x {sequence}"
                results.attempt(name, lambda k=kind, b=batch, s=sequence: attention(bench, k, b, s, None, False))
            for batch in (32, 128):
                lengths = np.clip(draw.gamma(4.0, PACKED_MEAN / 4, batch).round(), 3, 128).astype(np.int32)
                lengths[0] = 128
                for masked in (False, True):
                    name = f"attention {word} {batch} {'padded' if masked else 'packed'}, mean {lengths.mean():.0f}"
                    results.attempt(
                        name, lambda k=kind, b=batch, n=lengths, m=masked: attention(bench, k, b, 128, n, m)
                    )
        for rows in (128, 1024, 4096, 16384):
            for quantize in (True, False):
                name = f"norm {rows} rows{', INT8 too' if quantize else ''}"
                results.attempt(name, lambda r=rows, q=quantize: norm(bench, r, q))
        bench.blocker.free()

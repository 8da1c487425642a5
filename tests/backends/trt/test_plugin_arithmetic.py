"""The plugins' kernels, called without TensorRT, against float64: odd sizes, every type, nothing beyond the end.

They run twice: compiled for the CPU over a machine of the tests' own (emulator/), and on a GPU where there is one. The
machine's memory ends where an array ends, so that a read beyond it ends the test, too.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from scipy.special import erf, softmax

from quantkit.errors import BackendError

GUARD = 64
KINDS = {0: np.float32, 1: np.float16, 2: np.int8}
HALF, INT8 = 1, 2
ULP = 2.0**-11  # relative rounding error of a half
PAGE = mmap.PAGESIZE


class Gpu:
    """Arrays on the device, and the library."""

    def __init__(self, kernels, driver) -> None:
        self.kernels, self.driver = kernels, driver
        self.blocks = []

    def put(self, array: np.ndarray | None) -> int | None:
        if array is None:
            return None
        array = np.ascontiguousarray(array)
        self.blocks.append(self.driver.mem_alloc(max(array.nbytes, 1)))
        self.driver.memcpy_htod(self.blocks[-1], array)
        return int(self.blocks[-1])

    def poisoned(self, shape, dtype) -> tuple[int, tuple]:
        """Room for a result with a guard behind it, every byte 0x7f."""
        nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return self.put(np.full(nbytes + GUARD, 0x7F, np.uint8)), (shape, dtype, nbytes)

    def get(self, address: int, room: tuple) -> np.ndarray:
        shape, dtype, nbytes = room
        raw = self.read(address, nbytes + GUARD)
        assert (raw[nbytes:] == 0x7F).all(), "written beyond the end"
        return raw[:nbytes].view(dtype).reshape(shape)

    def read(self, address: int, nbytes: int) -> np.ndarray:
        raw = np.empty(nbytes, np.uint8)
        self.driver.memcpy_dtoh(raw, address)
        return raw

    def run(self, name: str, call: ctypes.Structure) -> None:
        self.kernels.run(name, call)
        self.wait()

    def wait(self) -> None:
        self.driver.Context.synchronize()

    def free(self) -> None:
        for block in self.blocks:
            block.free()


class Machine(Gpu):
    """Arrays in this process, each at the end of a page that no page follows."""

    def __init__(self, kernels) -> None:
        super().__init__(kernels, None)
        self.protect = ctypes.CDLL(None).mprotect
        self.protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

    def put(self, array: np.ndarray | None) -> int | None:
        if array is None:
            return None
        data = np.ascontiguousarray(array).tobytes()
        room = -(-max(len(data), 1) // 16) * 16  # allocations on a device are aligned, too
        pages = -(-room // PAGE) * PAGE
        block = mmap.mmap(-1, pages + PAGE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(block))
        assert self.protect(start + pages, PAGE, 0) == 0
        self.blocks.append(block)
        ctypes.memmove(start + pages - room, data, len(data))
        return start + pages - room

    def read(self, address: int, nbytes: int) -> np.ndarray:
        return np.frombuffer(ctypes.string_at(address, nbytes), np.uint8)

    def wait(self) -> None:
        pass

    def free(self) -> None:
        self.blocks.clear()


@pytest.fixture(params=["emulated", pytest.param("gpu", marks=pytest.mark.gpu)])
def gpu(request: pytest.FixtureRequest) -> Iterator[Gpu]:
    from quantkit.backends.trt.plugins import library

    if request.param == "emulated":
        made: Gpu = Machine(library.Kernels(request.getfixturevalue("emulated")))
        yield made
        made.free()
        return
    from quantkit.backends.trt.backend import TensorRTBackend
    from quantkit.backends.trt.cuda import device, driver

    if reason := TensorRTBackend().available():
        pytest.skip(reason)
    try:
        kernels = library.kernels()
    except BackendError as error:
        pytest.skip(str(error))
    with device().current():
        made = Gpu(kernels, driver())
        yield made
        made.free()


def gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + erf(x / np.sqrt(2)))


def check(found: np.ndarray, exact: np.ndarray, *, slack: float, relative: float = ULP) -> None:
    """INT8 within half a step of the exact number (and `slack`), half within its rounding."""
    if found.dtype == np.int8:
        assert np.abs(found - np.clip(exact, -127, 127)).max() <= 0.5 + slack
    else:
        assert np.isfinite(found).all()
        assert (np.abs(found.astype(np.float64) - exact) <= slack + relative * 1.01 * np.abs(exact)).all()


SIZES = [(1, 32, 16), (37, 96, 80), (129, 288, 400), (66, 96, 1296), (300, 768, 3072)]
TOO_LARGE = 10**8  # products that the emulated machine is not asked for


@pytest.mark.parametrize("m, n, k", SIZES)
@pytest.mark.parametrize("kind, out_kind", [(INT8, INT8), (INT8, HALF), (HALF, HALF)])
@pytest.mark.parametrize("activated", [False, True])
def test_linear(gpu: Gpu, m: int, n: int, k: int, kind: int, out_kind: int, activated: bool) -> None:
    if m * n * k > TOO_LARGE and isinstance(gpu, Machine):
        pytest.skip("for a GPU only")
    check_linear(gpu, m, n, k, kind, out_kind, activated)


def check_linear(gpu: Gpu, m: int, n: int, k: int, kind: int, out_kind: int, activated: bool) -> None:
    """Every tile shape against float64."""
    from quantkit.backends.trt.plugins.library import Linear

    draw = np.random.default_rng(m + n + k + kind)
    if kind == INT8:
        x, w = draw.integers(-127, 128, (m, k), np.int8), draw.integers(-127, 128, (n, k), np.int8)
    else:
        x, w = (draw.standard_normal(shape).astype(np.float16) for shape in ((m, k), (n, k)))
    product = x.astype(np.float64) @ w.astype(np.float64).T
    alpha = (draw.uniform(0.5, 1.5, n) * 3 / product.std()).astype(np.float32)
    beta = draw.standard_normal(n).astype(np.float32)
    rescale = 20.0
    exact = product * alpha + beta
    exact = gelu(exact) if activated else exact
    if out_kind == INT8:
        exact = exact * rescale + 9
    order = gpu.kernels.row_order(n)
    assert sorted(order) == list(range(n))
    ordered = np.empty_like(w)
    ordered[order] = w
    inputs = [gpu.put(array) for array in (x, ordered, alpha, beta)]
    for tile in range(-1, len(gpu.kernels.tiles)):
        out, room = gpu.poisoned((m, n), KINDS[out_kind])
        gpu.run("linear", Linear(*inputs, out, kind, out_kind, m, n, k, activated, rescale, 9.0, tile))
        # float32 sums of half products, and GELU by a polynomial or an instruction, are this far from exact ones.
        slack = (1.5e-3 * rescale if out_kind == INT8 else 1e-4) * activated + 2e-3
        check(gpu.get(out, room), exact, slack=slack)


@pytest.mark.parametrize(
    "kind, out_kind, sizes",
    [
        *((INT8, INT8, (66, 96, 1296)), (HALF, HALF, (66, 96, 1296))),
        *((HALF, HALF, (129, 288, 400)), (INT8, HALF, (300, 416, 912))),
    ],
)
def test_linear_when_copies_and_products_come_late(emulated: Path, kind: int, out_kind: int, sizes) -> None:
    """What is read before it was waited for, or overwritten while it is read, shows."""
    from quantkit.backends.trt.plugins import library

    machine = Machine(library.Kernels(emulated))
    machine.kernels.raw.machine_be_late(1)
    try:
        check_linear(machine, *sizes, kind, out_kind, False)
    finally:
        machine.kernels.raw.machine_be_late(0)
        machine.free()


def test_linear_refuses_what_it_does_not_take(gpu: Gpu) -> None:
    from quantkit.backends.trt.plugins.library import Linear

    for m, n, k, tile in ((0, 32, 16, -1), (1, 31, 16, -1), (1, 32, 15, -1), (1, 32, 16, 99)):
        with pytest.raises(BackendError, match="linear cannot run"):
            gpu.run("linear", Linear(None, None, None, None, None, INT8, INT8, m, n, k, False, 1.0, 0.0, tile))
    with pytest.raises(BackendError, match="linear cannot run"):
        gpu.run("linear", Linear(None, None, None, None, None, HALF, INT8, 1, 32, 16, False, 1.0, 0.0, -1))


def attention_reference(qkv, heads: int, head: int, bias, score_scale: float, value_scale: float) -> np.ndarray:
    """One sentence: qkv (tokens, 3 * heads * head), bias (tokens,)."""
    parts = qkv.astype(np.float64).reshape(len(qkv), 3, heads, head).transpose(1, 2, 0, 3)
    scores = parts[0] @ parts[1].transpose(0, 2, 1) * score_scale + bias
    context = softmax(scores, axis=-1) @ parts[2] * value_scale
    return context.transpose(1, 0, 2).reshape(len(qkv), heads * head)


@pytest.mark.parametrize("head, heads", [(32, 12), (64, 3)])
@pytest.mark.parametrize("kind, out_kind", [(INT8, INT8), (INT8, HALF), (HALF, HALF), (HALF, INT8)])
@pytest.mark.parametrize("form", [1, 2])
@pytest.mark.parametrize("batch, sequence", [(3, 1), (2, 7), (4, 64), (3, 65), (2, 128), (2, 200), (1, 512)])
def test_attention_of_padded_sentences(gpu, head, heads, kind, out_kind, form, batch, sequence) -> None:
    check_attention(gpu, head, heads, kind, out_kind, batch, sequence, form)


def check_attention(gpu, head, heads, kind, out_kind, batch, sequence, form) -> None:
    draw = np.random.default_rng(sequence + head + kind)
    mask = (np.arange(sequence) < draw.integers(1, sequence + 1, (batch, 1))).astype(np.int32)
    if sequence > 7:
        mask[0] = draw.integers(0, 2, sequence)  # holes, too
        mask[-1, :] = 0  # nothing but padding: as if nothing were padding
    check_masked(gpu, head, heads, kind, out_kind, mask, form)


def check_masked(gpu, head, heads, kind, out_kind, mask, form) -> None:
    from quantkit.backends.trt.plugins.library import Attention

    batch, sequence = mask.shape
    draw = np.random.default_rng(sequence + head + kind)
    shape = (batch, sequence, 3 * heads * head)
    qkv = draw.integers(-127, 128, shape, np.int8) if kind == INT8 else draw.standard_normal(shape).astype(np.float16)
    score_scale, value_scale = (4e-3 * head**-0.5, 0.01) if kind == INT8 else (head**-0.5, 1.0)
    rescale = 100.0
    exact = np.stack(
        [
            attention_reference(row, heads, head, (m - 1) * 10000.0, score_scale, value_scale)
            for row, m in zip(qkv, mask.astype(np.float64), strict=True)
        ]
    )
    out, room = gpu.poisoned((batch, sequence, heads * head), KINDS[out_kind])
    sizes = (kind, out_kind, batch, sequence, heads, head)
    call = Attention(gpu.put(qkv), gpu.put(mask), None, out, *sizes, score_scale, value_scale, rescale, -7.0, form)
    gpu.run("attention", call)
    # Probabilities are halves, summed up with a relative error of half an ulp each.
    slack = 1e-3
    found = gpu.get(out, room)
    check(found, exact * rescale - 7 if out_kind == INT8 else exact, slack=slack * (rescale if out_kind == INT8 else 1))


@pytest.mark.parametrize("form", [1, 2])
@pytest.mark.parametrize("kind", [INT8, HALF])
@pytest.mark.parametrize("sequence", [100, 128, 300])
def test_attention_where_whole_groups_of_keys_are_padding(gpu, kind, sequence, form) -> None:
    mask = np.zeros((4, sequence), np.int32)
    mask[0, 40:45] = mask[0, sequence - 9 : sequence - 3] = 1
    mask[1, -1] = mask[2, 0] = 1
    mask[3, 64:80] = 7
    check_masked(gpu, 64, 2, kind, HALF, mask, form)


def test_attention_refuses_what_it_does_not_take(gpu: Gpu) -> None:
    from quantkit.backends.trt.plugins.library import Attention

    for batch, sequence, head, scale in ((0, 8, 64, 0.1), (1, 0, 64, 0.1), (1, 8, 48, 0.1), (1, 8, 64, 0.0)):
        call = Attention(None, None, None, None, INT8, INT8, batch, sequence, 3, head, scale, 1.0, 1.0, 0.0)
        with pytest.raises(BackendError, match="attention cannot run"):
            gpu.run("attention", call)


@pytest.mark.parametrize("form", [1, 2])
@pytest.mark.parametrize("kind, sequence", [(INT8, 64), (HALF, 128), (INT8, 200), (HALF, 200)])
def test_attention_when_copies_come_late(emulated: Path, form: int, kind: int, sequence: int) -> None:
    """As for linear layers: what is read too early, or overwritten while it is read, shows."""
    from quantkit.backends.trt.plugins import library

    machine = Machine(library.Kernels(emulated))
    machine.kernels.raw.machine_be_late(1)
    try:
        check_attention(machine, 64, 3, kind, HALF, 2, sequence, form)
    finally:
        machine.kernels.raw.machine_be_late(0)
        machine.free()


@pytest.mark.parametrize("form", [1, 2])
@pytest.mark.parametrize("head, heads", [(32, 12), (64, 3)])
@pytest.mark.parametrize("kind", [INT8, HALF])
def test_attention_of_packed_sentences_is_that_of_each_alone(
    gpu: Gpu, head: int, heads: int, kind: int, form: int
) -> None:
    from quantkit.backends.trt.plugins.library import Attention

    draw = np.random.default_rng(head)
    lengths = [5, 1, 64, 130, 33]
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    shape = (int(starts[-1]) + 3, 3 * heads * head)  # three tokens of filling
    qkv = draw.integers(-127, 128, shape, np.int8) if kind == INT8 else draw.standard_normal(shape).astype(np.float16)
    score_scale, value_scale = (4e-3 * head**-0.5, 0.01) if kind == INT8 else (head**-0.5, 1.0)
    out, room = gpu.poisoned((shape[0], heads * head), np.float16)
    sizes = (kind, HALF, len(lengths), 200, heads, head)
    address = gpu.put(qkv)
    gpu.run(
        "attention", Attention(address, None, gpu.put(starts), out, *sizes, score_scale, value_scale, 1.0, 0.0, form)
    )
    found = gpu.get(out, room)
    for start, end in pairwise(starts):
        exact = attention_reference(qkv[start:end], heads, head, 0.0, score_scale, value_scale)
        check(found[start:end], exact, slack=1e-3)
        alone, room_alone = gpu.poisoned((end - start, heads * head), np.float16)
        part = gpu.put(qkv[start:end])
        sizes = (kind, HALF, 1, int(end - start), heads, head)
        gpu.run("attention", Attention(part, None, None, alone, *sizes, score_scale, value_scale, 1.0, 0.0, 3 - form))
        np.testing.assert_array_equal(gpu.get(alone, room_alone), found[start:end])
    assert (found[starts[-1] :].view(np.uint8) == 0x7F).all()


def numbers(draw, shape, kind: int) -> np.ndarray:
    if kind == INT8:
        return draw.integers(-127, 128, shape, np.int8)
    return draw.standard_normal(shape).astype(KINDS[kind])


ROWS = [(1, 8), (5, 384), (3, 770), (129, 768), (2, 3), (7, 1024), (2, 2048), (1030, 256), (5, 512)]


@pytest.mark.parametrize("rows, width", ROWS)
@pytest.mark.parametrize("kind", [0, HALF, INT8])
@pytest.mark.parametrize("residual_kind", [None, 0, HALF, INT8])
def test_norm(gpu: Gpu, rows: int, width: int, kind: int, residual_kind: int | None) -> None:
    from quantkit.backends.trt.plugins.library import Norm

    draw = np.random.default_rng(width + kind)
    x = numbers(draw, (rows, width), kind)
    residual = None if residual_kind is None else numbers(draw, (rows, width), residual_kind)
    bias, gamma, beta = (draw.standard_normal(width).astype(np.float32) for _ in range(3))
    bias = None if rows % 2 else bias
    scales = 0.02, 0.03
    total = x.astype(np.float64) * (scales[0] if kind == INT8 else 1)
    if residual is not None:
        total = total + residual.astype(np.float64) * (scales[1] if residual_kind == INT8 else 1)
    if bias is not None:
        total = total + bias
    centred = total - total.mean(axis=1, keepdims=True)
    exact = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-12) * gamma + beta
    inputs = [gpu.put(array) for array in (x, residual, bias, gamma, beta)]
    for out_kind, quantize in ((HALF, True), (HALF, False), (0, False), (None, True)):
        out, room = gpu.poisoned((rows, width), KINDS[out_kind or 0]) if out_kind is not None else (None, None)
        small, small_room = gpu.poisoned((rows, width), np.int8) if quantize else (None, None)
        types = (kind, residual_kind or 0, out_kind or 0)
        gpu.run("norm", Norm(*inputs, out, small, *types, rows, width, *scales, 30.0, 5.0, 1e-12))
        if out is not None:
            check(gpu.get(out, room), exact, slack=2e-5, relative=ULP if out_kind == HALF else 1e-5)
        if small is not None:
            check(gpu.get(small, small_room), exact * 30 + 5, slack=1e-3)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("width", [64, 384, 768])
def test_embedding(gpu: Gpu, packed: bool, width: int) -> None:
    from quantkit.backends.trt.plugins.library import Embedding

    draw = np.random.default_rng(width)
    batch, sequence, words, positions = 5, 37, 211, 40
    word, position, segment = (draw.standard_normal((rows, width)).astype(np.float16) for rows in (words, positions, 2))
    gamma, beta = (draw.standard_normal(width).astype(np.float32) for _ in range(2))
    lengths = [37, 1, 12, 30, 9] if packed else [sequence] * batch
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    count = int(starts[-1])
    tokens, kinds = (draw.integers(0, most, count).astype(np.int32) for most in (words, 2))
    place = np.concatenate([np.arange(n) for n in lengths])
    total = sum(t.astype(np.float64) for t in (word[tokens], position[place], segment[kinds]))
    centred = total - total.mean(axis=1, keepdims=True)
    exact = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-12) * gamma + beta
    out, room = gpu.poisoned((count, width), np.float16)
    small, small_room = gpu.poisoned((count, width), np.int8)
    arrays = (tokens, kinds, starts if packed else None, word, position, segment, gamma, beta)
    sizes = (count, batch, sequence, width, words, positions, 2)
    gpu.run("embedding", Embedding(*(gpu.put(a) for a in arrays), out, small, *sizes, 30.0, 5.0, 1e-12))
    check(gpu.get(out, room), exact, slack=1e-5)
    check(gpu.get(small, small_room), exact * 30 + 5, slack=1e-3)


@pytest.mark.parametrize("rows, width", [(1, 8), (3, 5), (129, 1536)])
@pytest.mark.parametrize("kind", [0, HALF, INT8])
@pytest.mark.parametrize("out_kind", [0, HALF, INT8])
def test_bias_gelu(gpu: Gpu, rows: int, width: int, kind: int, out_kind: int) -> None:
    from quantkit.backends.trt.plugins.library import BiasGelu

    draw = np.random.default_rng(width)
    x, bias = numbers(draw, (rows, width), kind), draw.standard_normal(width).astype(np.float32)
    exact = gelu(x.astype(np.float64) * (0.02 if kind == INT8 else 1) + bias)
    out, room = gpu.poisoned((rows, width), KINDS[out_kind])
    gpu.run("bias_gelu", BiasGelu(gpu.put(x), gpu.put(bias), out, kind, out_kind, rows, width, 0.02, 30.0, -3.0))
    check(
        gpu.get(out, room),
        exact * 30 - 3 if out_kind == INT8 else exact,
        slack=1e-3 if out_kind == INT8 else 1e-6,
        relative=ULP if out_kind == HALF else 1e-5,
    )


def test_first_tokens(gpu: Gpu) -> None:
    draw = np.random.default_rng(0)
    x = draw.standard_normal((21, 770)).astype(np.float16)
    starts = np.array([0, 4, 5, 21], np.int32)
    address = gpu.put(x)
    for given, batch, sequence, rows in ((gpu.put(starts), 3, 0, [0, 4, 5]), (None, 3, 7, [0, 7, 14])):
        out, room = gpu.poisoned((3, 770), np.float16)
        gpu.kernels.first_tokens(address, given or 0, out, (batch, sequence, 770))
        gpu.wait()
        np.testing.assert_array_equal(gpu.get(out, room), x[rows])

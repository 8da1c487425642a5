"""The compiled kernel equals the NumPy reference, count for count."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from quantkit.collect import histogram, kernels
from quantkit.collect.histogram import MASK_LOGITS, Histogram, HistogramAccumulator
from quantkit.collect.runs import Runs

SPECIAL = np.array(
    [np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0, 2.0, 0.5, -1e4, -3.4e38, 3.4e38, 1e-45, -1e-40, 1.18e-38],
    np.float32,
)
SIZES = [0, 1, 15, 16, 17, 511, 512, 513, 1024, 5000, 70001]
MODES = st.sampled_from(["tensorrt", "pow2"])
MASKS = st.sampled_from([None, MASK_LOGITS, -1.0, -1e-42])


def sample(draw: np.random.Generator, kind: int, size: int) -> np.ndarray:
    """Arrays of very different kinds, chosen by number."""
    with np.errstate(all="ignore"):
        if kind == 0:
            return draw.integers(0, 1 << 32, size, dtype=np.uint32).view(np.float32)
        if kind == 1:
            return (draw.standard_normal(size) * 10.0 ** draw.integers(-44, 38)).astype(np.float32)
        if kind == 2:
            return draw.choice(SPECIAL, size)
        if kind == 3:
            return np.ldexp(draw.choice([-1.0, 0.0, 1.0], size), draw.integers(-149, 128, size)).astype(np.float32)
        if kind == 4:
            return np.tanh(10 * draw.standard_normal(size)).astype(np.float32)
        if kind == 5:
            return np.full(size, -0.0 if size % 2 else 3.0, np.float32)
        return np.where(draw.random(size) < 1e-3, draw.choice(SPECIAL, size), draw.standard_normal(size)).astype(
            np.float32
        )


def view_of(values: np.ndarray, shape: int) -> np.ndarray:
    """The same values, or some of them, behind another layout."""
    rows = values[: len(values) // 4 * 4].reshape(-1, 4)
    return [values, rows.T, rows[:, :3], values[::-3], rows[:, 1], np.broadcast_to(rows, (2, *rows.shape))][shape]


def both(mode: str, mask: float | None, batches: list[np.ndarray]) -> tuple[Histogram, Histogram]:
    """What kernel and reference make of the same batches."""
    compiled = HistogramAccumulator(mode, mask_logits=mask)
    plain = Histogram.empty(mode, mask)
    for batch in batches:
        compiled.update(batch)
        plain = plain.updated(batch)
    return compiled.snapshot(), plain


@given(
    MODES,
    MASKS,
    st.lists(st.tuples(st.integers(0, 6), st.sampled_from(SIZES), st.integers(0, 5)), max_size=4),
    st.integers(0, 1 << 30),
)
@settings(deadline=None, max_examples=150)
def test_kernel_equals_reference(mode: str, mask: float | None, plan: list[tuple[int, int, int]], seed: int):
    draw = np.random.default_rng(seed)
    compiled, plain = both(mode, mask, [view_of(sample(draw, kind, size), layout) for kind, size, layout in plan])
    assert compiled == plain


@given(MODES, MASKS, st.lists(hnp.arrays(np.float32, st.integers(0, 40), elements=st.floats(width=32)), max_size=4))
@settings(deadline=None)
def test_kernel_equals_reference_on_any_floats(mode: str, mask: float | None, batches: list[np.ndarray]):
    compiled, plain = both(mode, mask, batches)
    assert compiled == plain


@pytest.mark.parametrize("value", [3.0, 0.0, -2.0])
def test_counters_of_16_bits_do_not_overflow(value: float):
    compiled, plain = both("pow2", None, [np.full(1_000_003, value, np.float32)])
    assert compiled == plain and compiled.counts.max() == 1_000_003


def test_a_range_that_grows_within_a_batch():
    for mode in ("tensorrt", "pow2"):
        ramp = np.linspace(-1, 1, 20_001, dtype=np.float32)
        ramp[0] = 0.25
        batches = [
            ramp[9000:11000],
            ramp,
            ramp * np.float32(64),
            np.float32(2.0) ** np.arange(-20, 40, dtype=np.float32),
        ]
        compiled, plain = both(mode, None, batches)
        assert compiled == plain


def test_a_value_on_the_edge_before_the_range_grows_within_a_batch():
    # In mode tensorrt the 3.0 of the first batch is in bin 2047, the one of the second batch was never there.
    batch = np.zeros(4096, np.float32)
    batch[[0, 4000]] = 3.0, 5.0
    for mode in ("tensorrt", "pow2"):
        compiled, plain = both(mode, None, [np.full(3, 3.0, np.float32), batch])
        assert compiled == plain
    assert both("tensorrt", None, [np.full(3, 3.0, np.float32), batch])[0].counts[[1023, 1024]].tolist() == [3, 1]


def test_read_only_and_unaligned_memory():
    values = sample(np.random.default_rng(1), 6, 3000)
    frozen = values.copy()
    frozen.setflags(write=False)
    unaligned = np.frombuffer(b"x" + values.tobytes(), np.uint8)[1:].view(np.float32)
    assert not unaligned.flags.aligned
    assert (
        both("pow2", None, [frozen])[0] == both("pow2", None, [unaligned])[0] == Histogram.empty("pow2").updated(values)
    )


@given(st.lists(st.tuples(st.integers(0, 3000), st.integers(1, 1500)), max_size=30), MODES, MASKS)
@settings(deadline=None)
def test_runs_are_counted_and_nothing_else(parts: list[tuple[int, int]], mode: str, mask: float | None):
    values = sample(np.random.default_rng(2), 6, 4500)
    runs = Runs(np.array([a for a, _ in parts], np.int64), np.array([n for _, n in parts], np.int64))
    accumulator = HistogramAccumulator(mode, mask_logits=mask)
    accumulator.update(values, runs)
    assert accumulator.snapshot() == Histogram.empty(mode, mask).updated(runs.gather(values))
    assert runs.total == runs.gather(values).size


def test_an_accumulator_continues_from_a_histogram():
    draw = np.random.default_rng(4)
    batches = [sample(draw, 6, 2000) for _ in range(4)]
    for mode, mask in (("tensorrt", None), ("pow2", -1.0)):
        whole, _ = both(mode, mask, batches)
        half, _ = both(mode, mask, batches[:2])
        rest = HistogramAccumulator(start=half)
        for batch in batches[2:]:
            rest.update(batch)
        assert rest.snapshot() == whole and half == both(mode, mask, batches[:2])[0]


def test_without_numba_the_reference_counts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(histogram, "_kernel", lambda: None)
    values = sample(np.random.default_rng(5), 6, 999)
    accumulator = HistogramAccumulator("pow2")
    accumulator.update(values)
    assert accumulator.snapshot() == Histogram.empty("pow2").updated(values)


def test_numba_switched_off_is_an_import_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kernels, "_loaded", [])
    monkeypatch.setattr(kernels.numba.config, "DISABLE_JIT", 1)
    with pytest.raises(ImportError, match="NUMBA_DISABLE_JIT"):
        kernels.load()


def test_a_cache_that_cannot_be_written_is_done_without(monkeypatch: pytest.MonkeyPatch):
    asked = []

    def compiled(cache: bool) -> str:
        asked.append(cache)
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return "kernel"

    monkeypatch.setattr(kernels, "_loaded", [])
    monkeypatch.setattr(kernels, "_compiled", compiled)
    assert kernels.load() == kernels.load() == "kernel" and asked == [True, False]


def test_a_kernel_that_cannot_be_compiled_is_done_without(monkeypatch: pytest.MonkeyPatch):
    def compiled(cache: bool) -> None:
        raise ValueError("LLVM is unhappy\nsecond line")

    monkeypatch.setattr(kernels, "_loaded", [])
    monkeypatch.setattr(kernels, "_compiled", compiled)
    with pytest.warns(UserWarning, match=r"counted with NumPy.*\(LLVM is unhappy\)"), pytest.raises(ImportError):
        kernels.load()

"""How TensorRT's histogram range grows when a later batch is wider: ratios from three starts, recorded on an H100."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from quantkit.collect.histogram import NUM_BINS, Histogram, HistogramAccumulator

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "trt860"
SIZE = 4 * 8192
STARTS = (1.0, 3.0, 0.7123)
RATIOS = (
    *(1.0000001, 1.5, 2, 2.0000002, 3, 4, 4.5, 8, 9, 100, 500, 512.5, 1000, 1023, 1023.5, 1024, 1024.5, 1025),
    *(1500, 2000, 2047, 2047.5, 2048, 2048.25, 2048.5, 2049, 2867.2, 3000, 4095, 4096, 4096.5, 4097, 5000, 8192),
    *(8192.5, 1e4, 32768.5, 65535, 65536, 65537, 1e5, 1e6, 16777216, 2e7, 1e9, 2147483520, 2147483648, 2147483904),
    *(3e9, 4294967040, 4294967296, 5e9, 1e10, 1e15, 9.2e18),
)
"""9.3e18 and above overflow the int64 of TensorRT's factor, and its range stays: see docs/tensorrt-calibrators.md."""


def batches(start: float, ratio: float) -> list[np.ndarray]:
    """An even batch over [0, start], one that reaches ratio * start, one that reaches 2.5 times that."""
    even = ((np.arange(SIZE) % NUM_BINS) + 0.5) / NUM_BINS * start
    first, second, third = even.copy(), even.copy(), even.copy()
    first[-1] = start
    big = np.float32(np.float32(start) * np.float64(ratio))
    second[:40] = big * 2.0 ** -np.arange(40)
    second[40:80] = big * np.linspace(0, 1, 40)
    third[0] = big * 2.5
    return [np.ascontiguousarray(x.reshape(4, 8192), dtype=np.float32) for x in (first, second, third)]


def read(path: Path) -> dict[str, tuple[float, float, np.ndarray]]:
    """Tensor -> range, largest |x|, counts; without the checks of the package's own reader."""
    data, found, place = gzip.decompress(path.read_bytes()), {}, 0
    while place < len(data):
        end = data.index(b"\n", place)
        _, upper, amax, _, _ = struct.unpack_from("<dddIQ", data, end + 1)
        start = end + 1 + struct.calcsize("<dddIQ")
        found[data[place:end].decode()] = (upper, amax, np.frombuffer(data, "<u8", NUM_BINS, start))
        place = start + 8 * NUM_BINS
    return found


RECORDED = {count: read(GOLDEN / f"growth_nb{count}.hist.gz") for count in (1, 2, 3)}


@pytest.mark.parametrize("compiled", [True, False], ids=["kernel", "numpy"])
@pytest.mark.parametrize("start", STARTS)
def test_every_recorded_growth_is_reproduced(start, compiled):
    for ratio in RATIOS:
        accumulator = HistogramAccumulator(compiled=compiled)
        for count, batch in enumerate(batches(start, ratio), 1):
            accumulator.update(batch)
            ours = accumulator.snapshot()
            upper, amax, counts = RECORDED[count][f"x_g{start}_{ratio!r}"]
            assert (ours.upper, ours.amax) == (upper, amax), (start, ratio, count)
            assert np.array_equal(ours.counts, counts), (start, ratio, count)


def test_a_batch_that_widens_twice_grows_once():
    """The kernel meets 1500 times the range first and 3000 times later; TensorRT sees the batch as a whole."""
    batch = np.full(4096, 0.5, np.float32)
    batch[1000], batch[3000] = 1500.0, 3000.0
    start = Histogram.empty().updated(np.ones(10, np.float32))
    accumulator = HistogramAccumulator(start=start)
    accumulator.update(batch)
    assert accumulator.snapshot() == start.updated(batch)
    assert accumulator.snapshot().upper == 3000.0

"""The histograms that TensorRT 8.6.0's Legacy calibrator wrote are reproduced count for count."""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path

import numpy as np
import pytest

from quantkit.collect.collector import Collector
from quantkit.collect.histogram import Histogram
from quantkit.collect.store import dump_trt_histogram_cache, load_trt_histogram_cache

pytestmark = pytest.mark.shared


@pytest.fixture(scope="module")
def synthetic(shared_dir: Path) -> Path:
    return shared_dir / "golden" / "synthetic"


@pytest.fixture(scope="module")
def batches(synthetic: Path) -> list[dict[str, np.ndarray]]:
    """Tensor name -> array, for each of the six batches that were recorded."""
    spec = importlib.util.spec_from_file_location("recorded_activations", synthetic / "activations.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    families = module.batches()
    return [
        {f"x_{name}": arrays[b] for name, arrays in families.items()}
        | {f"relu_{name}": np.maximum(arrays[b], 0) for name, arrays in families.items()}
        for b in range(6)
    ]


@pytest.mark.parametrize("number", [1, 6])
def test_all_recorded_histograms_are_reproduced(synthetic: Path, batches: list[dict[str, np.ndarray]], number: int):
    recorded_bytes = gzip.decompress((synthetic / f"legacy_nb{number}.hist.gz").read_bytes())
    recorded = load_trt_histogram_cache(recorded_bytes)
    assert len(recorded) == 150 and dump_trt_histogram_cache(recorded) == recorded_bytes
    with Collector(recorded) as collector:
        for tensors in batches[:number]:
            collector.update(tensors)
        found = collector.histograms()
    for name, expected in recorded.items():
        assert np.array_equal(found[name].counts, expected.counts), name
        ours = (found[name].bin_width, found[name].upper, found[name].amax)
        assert ours == (expected.bin_width, expected.upper, expected.amax), name
    assert dump_trt_histogram_cache(found) == recorded_bytes


@pytest.mark.parametrize("number", [1, 6])
def test_the_numpy_reference_reproduces_them_too(synthetic: Path, batches: list[dict[str, np.ndarray]], number: int):
    recorded = load_trt_histogram_cache(gzip.decompress((synthetic / f"legacy_nb{number}.hist.gz").read_bytes()))
    for name, expected in recorded.items():
        h = Histogram.empty()
        for tensors in batches[:number]:
            h = h.updated(tensors[name])
        assert np.array_equal(h.counts, expected.counts) and (h.upper, h.amax) == (expected.upper, expected.amax), name


def test_a_first_batch_of_zeros_leaves_the_range_to_the_next(batches: list[dict[str, np.ndarray]]):
    h = Histogram.empty()
    for tensors in batches:
        h = h.updated(tensors["x_firstzero"])
    second = float(np.abs(batches[1]["x_firstzero"]).max())
    assert h.upper == 2 * second and h.zero_count >= batches[0]["x_firstzero"].size


def test_over_powers_of_two_the_order_of_the_batches_does_not_matter(batches: list[dict[str, np.ndarray]]):
    names = ["x_late", "x_huge", "relu_tiny", "x_onehot", "x_firstzero", "x_softmax3"]
    with Collector(names, mode="pow2") as forward, Collector(names, mode="pow2") as backward:
        for tensors in batches:
            forward.update(tensors)
        for tensors in reversed(batches):
            backward.update(tensors)
        assert forward.histograms() == backward.histograms()

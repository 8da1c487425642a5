"""TensorRT's own recordings, and histograms to try things on."""

from __future__ import annotations

import importlib.util
import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from quantkit.collect.histogram import Histogram


def parse_cache(text: str) -> dict[str, np.float32]:
    """Tensor -> scale of a TensorRT cache, header line dropped; written out here so that no room leans on another."""
    scales = {}
    for line in text.splitlines()[1:]:
        name, _, digits = line.rpartition(": ")
        scales[name] = np.float32(struct.unpack(">f", bytes.fromhex(digits.zfill(8)))[0])
    return scales


@pytest.fixture(scope="session")
def recorded_scales(shared_dir: Path) -> dict[str, dict[str, np.float32]]:
    """Run -> tensor -> scale that TensorRT 8.6 wrote."""
    caches = json.loads((shared_dir / "golden/synthetic/caches.json").read_text())["caches"]
    return {run: parse_cache(text) for run, text in caches.items()}


@pytest.fixture(scope="session")
def recorded_histograms(shared_dir: Path) -> dict[int, dict[str, Histogram]]:
    """Number of batches -> tensor -> histogram of the activations behind the recordings."""
    spec = importlib.util.spec_from_file_location("activations", shared_dir / "golden/synthetic/activations.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    after: dict[int, dict[str, Histogram]] = {1: {}, 2: {}, 6: {}}
    for name, arrays in module.batches().items():
        x = relu = Histogram.empty("tensorrt")
        for step, array in enumerate(arrays, start=1):
            x, relu = x.updated(array), relu.updated(np.maximum(array, 0))
            if step in after:
                after[step][f"x_{name}"], after[step][f"relu_{name}"] = x, relu
    return after


def draw(kind: str, seed: int, n: int = 20_000) -> np.ndarray:
    """A seeded float32 sample of one kind of activation."""
    r = np.random.default_rng(seed)
    values = {
        "gauss": lambda: r.standard_normal(n),
        "relu": lambda: np.maximum(r.standard_normal(n), 0),
        "laplace": lambda: r.laplace(size=n),
        "student": lambda: r.standard_t(3, n),
        "outliers": lambda: np.where(r.random(n) < 1e-3, 40.0, 1.0) * r.standard_normal(n),
        "softmax": lambda: np.exp(3 * r.standard_normal(n)) / 500,
        "away": lambda: r.choice([-1, 1], n) * r.uniform(2, 2.5, n),
        "levels": lambda: np.round(4 * r.standard_normal(n)) / 4,
    }
    return values[kind]().astype(np.float32)


KINDS = ("gauss", "relu", "laplace", "student", "outliers", "softmax", "away", "levels")


@pytest.fixture(params=KINDS)
def sample(request: pytest.FixtureRequest) -> np.ndarray:
    """float32 values of one kind of activation."""
    return draw(request.param, seed=3)


@pytest.fixture
def histogram(sample: np.ndarray) -> Histogram:
    """The histogram of `sample`, taken in two batches of which the second may be wider."""
    return Histogram.empty("tensorrt").updated(sample[:5_000]).updated(sample[5_000:])


@pytest.fixture(scope="session")
def from_counts() -> Callable[..., Histogram]:
    """Builds a histogram from bin -> count, range 2048, so that bin j has width 1."""

    def build(counts: dict[int, int], amax: float = 2048.0) -> Histogram:
        array = np.zeros(2048, np.int64)
        for index, count in counts.items():
            array[index] = count
        return Histogram(array, 2048.0, amax, -amax, amax, 0, 0, 0, "tensorrt")

    return build

"""Tests that run TensorRT itself; elsewhere they are skipped with the reason."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def _needs_gpu() -> None:
    from quantkit.backends.trt.backend import TensorRTBackend

    if reason := TensorRTBackend().available():
        pytest.skip(reason)


@pytest.fixture(scope="session")
def network(tiny_bert_dir):
    """The tiny BERT."""
    from quantkit.network.model import load_model

    return load_model(tiny_bert_dir)


def make_feed(batch: int, seq_len: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Random tokens; rows differ in length."""
    draw = np.random.default_rng(seed)
    mask = np.zeros((batch, seq_len), np.int64)
    for row in mask:
        row[: draw.integers(2, seq_len + 1)] = 1
    ids = draw.integers(5, 100, (batch, seq_len)) * mask
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


@pytest.fixture
def feed():
    """Makes feeds: feed(batch, seq_len, seed)."""
    return make_feed


@pytest.fixture(scope="session")
def reference(network):
    """CPU logits of a feed."""
    from quantkit.backends import get_backend

    def run(given: dict[str, np.ndarray]) -> np.ndarray:
        with get_backend("onnxruntime").compile(network.fixed(*given["input_ids"].shape), "fp32") as engine:
            return engine.infer(given)["logits"]

    return run


@pytest.fixture(scope="session")
def on_the_cpu():
    """Gives, for a model folder, what computes a feed's FP32 logits and a table of min-max ranges."""
    import quantkit
    from quantkit.backends import get_backend
    from quantkit.network.model import load_model

    def of(folder):
        network = load_model(folder)

        def run(feed: dict[str, np.ndarray]):
            shape = feed["input_ids"].shape
            with get_backend("onnxruntime").compile(network.fixed(*shape), "fp32") as engine:
                logits = engine.infer(feed)["logits"]
            with get_backend("onnxruntime").tap(network.fixed(*shape), network.activations()) as tap:
                batch = {name: array.copy() for name, array in tap.infer(feed).items()}
            return logits, quantkit.calibrate_arrays([batch], method="minmax")

        return run

    return of


@pytest.fixture(scope="session")
def plans_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One plan cache for the whole session, so that no engine is built twice."""
    return str(tmp_path_factory.mktemp("plans"))


@pytest.fixture
def backend(plans_dir: str, monkeypatch: pytest.MonkeyPatch):
    """The backend, with the session's plan cache."""
    from quantkit.backends.trt.backend import TensorRTBackend

    monkeypatch.setenv("QUANTKIT_CACHE", plans_dir)
    return TensorRTBackend(level=0)

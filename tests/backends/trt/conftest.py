"""The stand-in for TensorRT and PyCUDA, in this process and in the building one."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

FAKES = Path(__file__).resolve().parent / "fakes"
NAMES = ("tensorrt", "pycuda", "fakes_version")


def _forget() -> None:
    from quantkit.backends.trt import cuda, runtime

    for cached in (runtime.load, cuda.driver, cuda.device):
        cached.cache_clear()
    for name in list(sys.modules):
        if name.partition(".")[0] in NAMES:
            del sys.modules[name]


@pytest.fixture
def fake_trt(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """TensorRT 8.6.0 on an H100, as far as names and protocols go."""
    _forget()
    monkeypatch.syspath_prepend(str(FAKES))
    inherited = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(FAKES), inherited] if inherited else [str(FAKES)]))
    yield
    _forget()


@pytest.fixture
def network(tiny_bert_dir: Path):
    """The tiny BERT as a Network."""
    from quantkit.network.model import load_model

    return load_model(tiny_bert_dir)


@pytest.fixture
def make_feed():
    """Makes feeds: make_feed(batch, seq_len, seed), rows of different lengths."""
    import numpy as np

    def make(batch: int, seq_len: int, seed: int = 0) -> dict[str, np.ndarray]:
        draw = np.random.default_rng(seed)
        mask = np.zeros((batch, seq_len), np.int64)
        for row in mask:
            row[: draw.integers(2, seq_len + 1)] = 1
        ids = draw.integers(5, 100, (batch, seq_len)) * mask
        return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}

    return make

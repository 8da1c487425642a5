"""Many inferences, changing shapes, several threads on one engine: memory stays, answers stay. benchmarks/soak.py runs
10,000."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from quantkit.backends import get_backend
from quantkit.network.model import load_model

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "soak.py"
SHAPES = ((1, 8), (2, 8), (3, 13), (4, 24))
INFERENCES = 480
ALLOWED = 3.0
"""MiB after warm-up; the planted leak below takes 15 times as much."""


@pytest.fixture(scope="module")
def soak():
    """The benchmark as a module."""
    spec = importlib.util.spec_from_file_location("soak", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["soak"] = module
    spec.loader.exec_module(module)
    return module


class Leaking:
    """An engine that keeps something of every call."""

    def __init__(self, engine, kilobytes):
        self.engine, self.kept, self.bytes = engine, [], kilobytes << 10

    def infer(self, feed):
        self.kept.append(np.ones(self.bytes, np.uint8))
        return self.engine.infer(feed)


def steady(found):
    """The readings after warm-up."""
    return [reading for reading in found["readings"] if reading[0] >= INFERENCES // 4]


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="memory is read from /proc")
@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_memory_and_answers_stay(soak, tiny_bert_dir, backend):
    pytest.importorskip(backend)
    with get_backend(backend).compile(load_model(tiny_bert_dir).proto, "fp32", threads=2) as engine:
        feeds = soak.feeds_of(90, SHAPES)
        found = soak.soak([engine], feeds, INFERENCES, threads=3, every=20)
        assert found["errors"] == []
        assert found["other_answers"] == 0
        assert soak.is_flat(steady(found), ALLOWED), found["readings"]
        if backend == "onnxruntime":
            found = soak.soak([Leaking(engine, 128)], feeds, INFERENCES, threads=3, every=20)
            assert not soak.is_flat(steady(found), ALLOWED), "a leak of 128 KiB a call is not seen"


def test_growth_is_the_lines_and_the_quarters(soak):
    flat = [(100 * i, 500.0 + i % 2) for i in range(40)]
    rising = [(100 * i, 500.0 + 0.2 * i) for i in range(40)]
    assert soak.is_flat(flat, 1.0)
    assert soak.growth(rising) == {"rise_mib": 7.8, "drift_mib": 6.0}
    assert not soak.is_flat(rising, 5.0)


def test_a_wrong_answer_and_an_error_are_told(soak, tiny_bert_dir):
    class Wrong:
        calls = 0

        def infer(self, feed):
            self.calls += 1
            if self.calls == 40:
                raise RuntimeError("broken")
            return {"logits": np.full(2, 1.0 if self.calls != 30 else 2.0)}

    found = soak.soak([Wrong()], soak.feeds_of(90, SHAPES), 60, threads=2, every=20)
    assert found["other_answers"] == 1
    assert found["errors"] == ["RuntimeError('broken')"]

"""Timing in turn: what is run, in which order, and what the figures are made of. The clock is a fake one."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from quantkit.errors import BackendError, InputError
from quantkit.evaluate import latency
from quantkit.evaluate.latency import Latency, time_engines
from quantkit.types import TensorSpec


class Clock:
    def __init__(self):
        self.now = 0

    def perf_counter_ns(self):
        return self.now


class SlowEngine:
    """Takes `ms(batch's first value)` of the fake clock and writes itself down in `log`."""

    outputs = ()

    def __init__(self, clock, name, ms, log, inputs=("input_ids",)):
        self.clock, self.name, self.ms, self.log = clock, name, ms, log
        self.inputs = tuple(TensorSpec(i, np.dtype(np.int64), (-1, -1)) for i in inputs)

    def infer(self, feed):
        assert set(feed) == {spec.name for spec in self.inputs}
        first = int(feed["input_ids"][0, 0])
        self.log.append((self.name, first))
        self.clock.now += int(self.ms(first) * 1e6)
        return {}

    def close(self):
        pass


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(latency, "time", clock)
    return clock


def feeds(*sizes):
    return [
        {"input_ids": np.full((n, 3), index), "attention_mask": np.ones((n, 3), np.int64)}
        for index, n in enumerate(sizes)
    ]


def test_engines_run_the_same_batches_in_rotating_order(clock):
    log = []
    engines = [SlowEngine(clock, name, lambda _: 1, log) for name in "abc"]
    time_engines(engines, feeds(1, 1), warmup=2, rounds=4)
    warm, timed = log[:6], log[6:]
    assert warm == [(name, index) for name in "abc" for index in (0, 1)]
    assert timed[0::2] == timed[1::2]  # one settling call before each timed one
    rounds = [timed[0::2][i : i + 3] for i in range(0, 12, 3)]
    assert [{index for _, index in one} for one in rounds] == [{0}, {1}, {0}, {1}]
    assert ["".join(name for name, _ in one) for one in rounds] == ["abc", "bca", "bca", "cab"]


@pytest.mark.parametrize("names", ["ab", "abc"])
@pytest.mark.parametrize("batches", [1, 2, 3, 4])
def test_every_engine_goes_first_on_every_batch(clock, names, batches):
    log, rounds = [], batches * len(names)
    engines = [SlowEngine(clock, name, lambda _: 1, log) for name in names]
    time_engines(engines, feeds(*[1] * batches), warmup=0, rounds=rounds)
    starts = log[0 :: 2 * len(names)]
    assert sorted(starts) == [(name, index) for name in names for index in range(batches)]


def test_figures(clock):
    engine = SlowEngine(clock, "a", lambda index: (10, 20, 30, 40)[index], [])
    (result,) = time_engines([engine], feeds(8, 8, 8, 4), warmup=0, rounds=8)
    assert result.samples_ms == (10, 20, 30, 40) * 2
    assert result.median_ms == 25
    assert result.p90_ms == pytest.approx(np.percentile([10, 20, 30, 40] * 2, 90))
    assert result.p99_ms == pytest.approx(np.percentile([10, 20, 30, 40] * 2, 99))
    assert result.throughput_per_s == pytest.approx(2 * 28 / 0.2)
    assert result.as_json() == {"median": 25, "p90": result.p90_ms, "p99": result.p99_ms}


def test_ratio_is_immune_to_drift(clock):
    """The machine gets slower and slower; one engine is always twice as fast."""
    drift = [1.0]

    def slowing(factor):
        def ms(_):
            drift[0] *= 1.02
            return factor * drift[0]

        return ms

    slow, fast = time_engines(
        [SlowEngine(clock, "slow", slowing(2), []), SlowEngine(clock, "fast", slowing(1), [])], feeds(1), rounds=40
    )
    assert slow.samples_ms[-1] > 10 * slow.samples_ms[0]
    assert fast.ratio_to(slow) == pytest.approx(2.0, rel=0.03)
    assert slow.ratio_to(fast) == pytest.approx(0.5, rel=0.03)
    assert slow.ratio_to(slow) == 1.0


def test_ratio_needs_the_same_rounds():
    with pytest.raises(InputError, match="1 and 2 rounds"):
        Latency(1, 1, 1, 1, (1.0,)).ratio_to(Latency(1, 1, 1, 1, (1.0, 1.0)))


def test_progress_and_garbage_collection(clock):
    states = []
    engine = SlowEngine(clock, "a", lambda _: 1, [])
    engine.infer = lambda feed: states.append(gc.isenabled())
    with pytest.raises(BackendError):
        time_engines([engine, BrokenEngine()], feeds(1), warmup=0, rounds=1)
    assert states == [False, False]
    assert gc.isenabled()
    calls = []
    time_engines([engine], feeds(1), warmup=0, rounds=2, progress=lambda *state: calls.append(state))
    assert calls == [(1, 2), (2, 2)]


class BrokenEngine:
    inputs = outputs = ()

    def infer(self, feed):
        raise BackendError("out of memory")


@pytest.mark.parametrize(
    ("engines", "batches", "options"),
    [
        (0, feeds(1), {}),
        (1, [], {}),
        (1, feeds(1, 0), {}),
        (1, [{}], {}),
        (1, feeds(1), {"rounds": 0}),
        (1, feeds(1), {"warmup": -1}),
    ],
)
def test_what_cannot_be_timed(clock, engines, batches, options):
    with pytest.raises(InputError, match="Timing needs"):
        time_engines([SlowEngine(clock, "a", lambda _: 1, [])] * engines, batches, **options)


def test_the_real_clock_runs():
    engine = SlowEngine(Clock(), "a", lambda _: 0, [])
    (result,) = time_engines([engine], feeds(2), rounds=3)
    assert len(result.samples_ms) == 3
    assert 0 < result.median_ms <= result.p90_ms <= result.p99_ms < 1000

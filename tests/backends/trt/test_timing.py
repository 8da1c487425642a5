"""Latency by phases: how long, in which order, and the figures."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from quantkit.backends.trt.execution import Phases
from quantkit.backends.trt.timing import Timing, TimingOptions, ratio, statistics, time_phases
from quantkit.errors import InputError

FEEDS = [{"x": np.zeros((4, 2))}, {"x": np.zeros((3, 2))}]


class Engine:
    """Counts calls; each measured inference takes one millisecond longer."""

    def __init__(self, name: str, calls: list[str], compute: float = 1.0) -> None:
        self.name, self.calls, self.compute = name, calls, compute
        self.warm = 0

    def infer(self, feed):
        self.warm += 1

    def measure(self, feed) -> Phases:
        self.calls.append(self.name)
        return Phases(2 * self.compute, 0.1, self.compute, 0.2, 0.05)


def test_every_engine_meets_every_round_and_the_order_moves_on() -> None:
    calls: list[str] = []
    engines = [Engine("a", calls), Engine("b", calls, 2.0)]
    told: list[int] = []
    options = TimingOptions(0, 4, 0)
    timings = time_phases(engines, FEEDS, options, lambda done, total: told.append(done))
    assert calls == ["a", "b", "b", "a", "a", "b", "b", "a"]
    assert [len(timing.samples) for timing in timings] == [4, 4]
    assert timings[0].rows == 4 + 3 + 4 + 3
    assert told == [1, 2, 3, 4]
    assert ratio(timings[1], timings[0]) == 0.5
    assert ratio(timings[1], timings[0], "host") == 0.5


def test_iterations_and_duration_are_both_least_values() -> None:
    engine = Engine("a", [])
    (many,) = time_phases([engine], FEEDS, TimingOptions(0, 3, 0.05))
    assert len(many.samples) > 3
    (few,) = time_phases([engine], FEEDS, TimingOptions(0, 3, 0))
    assert len(few.samples) == 3


def test_warm_up_runs_every_batch_twice_and_lasts() -> None:
    engine = Engine("a", [])
    time_phases([engine], FEEDS, TimingOptions(0, 1, 0))
    assert engine.warm == 4
    engine = Engine("a", [])
    time_phases([engine], FEEDS, TimingOptions(20, 1, 0))
    assert engine.warm > 4


def test_figures() -> None:
    samples = tuple(Phases(2.0 + i, 0.1, 1.0 + i, 0.2, 0.05) for i in range(4))
    found = Timing(samples, 40).as_json()
    assert found["iterations"] == 4
    assert found["compute_ms"]["median"] == 2.5
    assert found["compute_ms"]["min"] == 1.0
    assert found["compute_ms"]["max"] == 4.0
    assert found["host_ms"]["mean"] == 3.5
    assert found["throughput_qps"] == pytest.approx(4 / 0.014, abs=0.01)
    assert found["throughput_per_s"] == pytest.approx(40 / 0.014, abs=0.1)
    assert set(found) == {
        *("iterations", "host_ms", "h2d_ms", "compute_ms", "d2h_ms", "enqueue_ms"),
        *("throughput_qps", "throughput_per_s"),
    }


def test_percentiles_are_numpy_s() -> None:
    values = np.arange(101, dtype=float)
    assert statistics(values) == {
        "mean": 50.0,
        "min": 0.0,
        "median": 50.0,
        "p90": 90.0,
        "p95": 95.0,
        "p99": 99.0,
        "max": 100.0,
    }


@pytest.mark.parametrize("options", [(-1.0, 10, 1.0), (0.0, 0, 1.0), (0.0, 1, -1.0)])
def test_bad_options_are_errors(options) -> None:
    with pytest.raises(InputError):
        TimingOptions(*options)


def test_nothing_to_time_is_an_error() -> None:
    for engines, feeds in itertools.product(([], [Engine("a", [])]), ([], FEEDS)):
        if not engines or not feeds:
            with pytest.raises(InputError):
                time_phases(engines, feeds, TimingOptions(0, 1, 0))

"""Latency by phases, with trtexec's habits: warm-up, a least number of iterations, a least duration, percentiles."""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from quantkit.backends.trt.engine import TrtEngine
from quantkit.backends.trt.execution import Phases
from quantkit.errors import InputError
from quantkit.types import FeedDict, Progress

PHASES = ("host", "h2d", "compute", "d2h", "enqueue")
QUANTILES = {"min": 0.0, "median": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0, "max": 100.0}


@dataclass(frozen=True)
class TimingOptions:
    """How long to measure; trtexec's defaults.

    Args:
        warmup_ms: how long every engine runs before anything counts.
        iterations: least number of inferences of each engine.
        duration_s: least time of measuring, all engines together.

    Raises:
        InputError: a negative number, or no iteration.
    """

    warmup_ms: float = 200.0
    iterations: int = 10
    duration_s: float = 3.0

    def __post_init__(self) -> None:
        if self.warmup_ms < 0 or self.duration_s < 0 or self.iterations < 1:
            raise InputError(
                f"Timing needs at least 1 iteration and no negative time; came {self.iterations} iterations, "
                f"{self.warmup_ms} ms of warm-up and {self.duration_s} s."
            )


@dataclass(frozen=True)
class Timing:
    """What was measured of one engine.

    Attributes:
        samples: one entry an inference, in order.
        rows: sequences in all inferences together.
    """

    samples: tuple[Phases, ...]
    rows: int

    def values(self, phase: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Milliseconds of a phase, one an inference."""
        return np.array([getattr(sample, phase) for sample in self.samples])

    def as_json(self) -> dict[str, Any]:
        """Statistics by phase in milliseconds, and throughput."""
        host_s = float(self.values("host").sum()) / 1e3
        phases = {f"{phase}_ms": statistics(self.values(phase)) for phase in PHASES}
        return {
            "iterations": len(self.samples),
            **phases,
            "throughput_qps": round(len(self.samples) / host_s, 2),
            "throughput_per_s": round(self.rows / host_s, 1),
        }


def statistics(values: np.ndarray[Any, np.dtype[np.float64]]) -> dict[str, float]:
    """Mean and quantiles, rounded to a tenth of a microsecond."""
    quantiles = np.percentile(values, list(QUANTILES.values()))
    named = dict(zip(QUANTILES, (round(float(q), 4) for q in quantiles), strict=True))
    return {"mean": round(float(values.mean()), 4), **named}


def time_phases(
    engines: Sequence[TrtEngine],
    feeds: Sequence[FeedDict],
    options: TimingOptions,
    progress: Progress | None = None,
) -> list[Timing]:
    """Times the engines in turn on the same batches: what slows the machine down meets all of them.

    Each round runs one batch through every engine, in an order that moves on from round to round.

    Raises:
        InputError: no engine or no batch.
        BackendError: an engine failed.
    """
    if not engines or not feeds:
        raise InputError(f"Timing needs engines and batches; came {len(engines)} and {len(feeds)}.")
    for engine in engines:
        warm_up(engine, feeds, options.warmup_ms)
    samples: list[list[Phases]] = [[] for _ in engines]
    rows = 0
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    started = time.perf_counter()
    try:
        index = 0
        while index < options.iterations or time.perf_counter() - started < options.duration_s:
            feed = feeds[index % len(feeds)]
            rows += len(next(iter(feed.values())))
            for place in range(len(engines)):
                which = (place + index) % len(engines)
                samples[which].append(engines[which].measure(feed))
            index += 1
            if progress is not None:
                progress(min(index, options.iterations), options.iterations)
    finally:
        if was_on:
            gc.enable()
    return [Timing(tuple(own), rows) for own in samples]


def warm_up(engine: TrtEngine, feeds: Sequence[FeedDict], milliseconds: float) -> None:
    """Runs every batch twice (graphs are captured on the second run), then on until the time is over."""
    until = time.perf_counter() + milliseconds / 1e3
    for feed in (*feeds, *feeds):
        engine.infer(feed)
    index = 0
    while time.perf_counter() < until:
        engine.infer(feeds[index % len(feeds)])
        index += 1


def ratio(timing: Timing, reference: Timing, phase: str = "compute") -> float:
    """How many times faster `timing` is: the median over rounds of reference / own."""
    return float(np.median(reference.values(phase) / timing.values(phase)))

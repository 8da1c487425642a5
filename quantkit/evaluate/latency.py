"""How fast engines are: the same batches for all, in turn, so that a busy or hot machine hits all alike."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from quantkit.errors import InputError
from quantkit.evaluate.accuracy import inputs_for
from quantkit.types import FeedDict, Progress, Runner

SETTLE = 1
"""Untimed calls before each timed one. The engine before has filled the caches with its own weights, and some
(onnxruntime) leave threads spinning for a while; a served engine meets neither."""


@dataclass(frozen=True)
class Latency:
    """Time of one batch, from arrays in to arrays out.

    Args:
        median_ms, p90_ms, p99_ms: quantiles of the samples (linear interpolation), in milliseconds.
        throughput_per_s: sequences a second over all samples, rows that fill up a batch included.
        samples_ms: one sample a round, in the order of the rounds.
    """

    median_ms: float
    p90_ms: float
    p99_ms: float
    throughput_per_s: float
    samples_ms: tuple[float, ...]

    def ratio_to(self, reference: Latency) -> float:
        """How many times faster this is than `reference`: median over rounds of reference time / own time.

        Both must come from one `time_engines` call: a round's two samples are of the same batch and moment, so what
        slows a round down cancels.

        Raises:
            InputError: different numbers of rounds.
        """
        if len(self.samples_ms) != len(reference.samples_ms):
            raise InputError(
                f"Latencies of {len(self.samples_ms)} and {len(reference.samples_ms)} rounds cannot be compared.",
                "Time both engines in one call.",
            )
        return float(np.median(np.asarray(reference.samples_ms) / np.asarray(self.samples_ms)))

    def as_json(self) -> dict[str, float]:
        """Quantiles in milliseconds for a record."""
        return {"median": self.median_ms, "p90": self.p90_ms, "p99": self.p99_ms}


def time_engines(
    engines: Sequence[Runner],
    feeds: Sequence[FeedDict],
    *,
    warmup: int = 3,
    rounds: int = 30,
    progress: Progress | None = None,
) -> list[Latency]:
    """Latency of each engine, in the order given.

    In a round every engine runs the same batch, one after another; rounds walk through `feeds` again and again. Who
    goes first changes from round to round, so that every batch meets every order. Python's garbage collector rests
    meanwhile.

    Args:
        engines: at least one.
        feeds: at least one batch; arrays that an engine does not take are left out.
        warmup: untimed calls of each engine before the first round.
        rounds: samples an engine.
        progress: told after each round.

    Raises:
        InputError: no engine, no batch, an empty batch, fewer than 1 round or a negative warm-up.
        BackendError: an engine failed.
    """
    sizes = [len(next(iter(feed.values()), ())) for feed in feeds]
    if not engines or not sizes or min(sizes) == 0:
        message = f"Timing needs engines and batches with rows, came {len(engines)} engines and batches of {sizes}."
        raise InputError(message)
    if rounds < 1 or warmup < 0:
        raise InputError(f"Timing needs at least 1 round and no negative warm-up, came {rounds} and {warmup}.")
    inputs = [[inputs_for(engine, feed) for feed in feeds] for engine in engines]
    for engine, own in zip(engines, inputs, strict=True):
        for call in range(warmup):
            engine.infer(own[call % len(own)])
    samples: list[list[float]] = [[] for _ in engines]
    with _no_garbage_collection():
        for index in range(rounds):
            feed = index % len(feeds)
            # Moves on from batch to batch, and for each batch from one of its turns to the next.
            shift = feed + index // len(feeds)
            for place in range(len(engines)):
                which = (place + shift) % len(engines)
                samples[which].append(_sample_ms(engines[which], inputs[which][feed]))
            if progress is not None:
                progress(index + 1, rounds)
    rows = sum(sizes[index % len(feeds)] for index in range(rounds))
    return [_latency(own, rows) for own in samples]


def _sample_ms(engine: Runner, feed: FeedDict) -> float:
    """Milliseconds of one call, after SETTLE calls of the same."""
    for _ in range(SETTLE):
        engine.infer(feed)
    started = time.perf_counter_ns()
    engine.infer(feed)
    return max(1, time.perf_counter_ns() - started) / 1e6  # a clock of coarse ticks must not give 0


def _latency(samples: list[float], rows: int) -> Latency:
    """The summary of one engine's samples over `rows` sequences."""
    median, p90, p99 = (float(q) for q in np.percentile(samples, (50, 90, 99)))
    return Latency(median, p90, p99, rows / (sum(samples) / 1e3), tuple(samples))


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Collects once, then not until the block ends."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()

"""Shards of a job: how batches are cut into them, and what a worker does with one.

A worker has the FP32 network, the table and the refinement as contents (quantkit/distributed/worker.py) and makes of
them what the shard asks for: a tap, or an engine of any plan. The same code on the same bytes gives the same graph as
it does on the client.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any

import numpy as np

from quantkit.backends import get_backend
from quantkit.collect.store import pack
from quantkit.distributed.worker import Held, made
from quantkit.evaluate.accuracy import inputs_for, logits_name
from quantkit.files import sha256_json
from quantkit.network.plan_file import plan_from_json
from quantkit.pipeline.collection import collectors_for, count
from quantkit.types import Array, BatchSource, FeedDict

if TYPE_CHECKING:
    from onnx import ModelProto

    from quantkit.backends.base import CheckedRunner, Engine
    from quantkit.network.graph import Network

LEAST_SHARDS, MOST_BATCHES = 64, 64
"""A job has at least so many shards, and a shard at most so many batches; neither depends on the workers."""
NETWORK, TABLE, REFINEMENT = "network", "table", "refinement"
"""Names of the contents that a worker needs."""


def shard_size(batches: int) -> int:
    """Batches a shard, whatever the number of workers: an interrupted job goes on with more or fewer of them."""
    return min(MOST_BATCHES, max(1, batches // LEAST_SHARDS))


def cut(batches: BatchSource, size: int, first: int = 0) -> Iterator[list[FeedDict]]:
    """The batches from number `first` on, `size` at a time."""
    feeds = islice(batches, first, None)
    while shard := list(islice(feeds, size)):
        yield shard


def collect_shard(held: Held, spec: dict[str, Any], feeds: Sequence[FeedDict]) -> dict[str, Any]:
    """On a worker: packed histograms of every activation over some batches, power-of-two ranges.

    Args:
        held: the network.
        spec: backend, threads, masked (names of masked logits), ignore_padding.
        feeds: token batches.

    Raises:
        QuantkitError: see `Collector.update` and `Backend.tap`.
    """
    network = network_of(held)
    collectors = collectors_for(network, spec["masked"], "pow2", spec["ignore_padding"], spec["threads"])
    names = [name for collector in collectors for name in collector.collected]
    with ExitStack() as stack:
        for collector in collectors:
            stack.enter_context(collector)
        for shape, group in groupby(feeds, key=lambda feed: feed["input_ids"].shape):
            runner = tap_of(held, spec["backend"], spec["threads"], names, shape)
            for feed in group:
                count(runner, feed, collectors)
        return pack({name: histogram for collector in collectors for name, histogram in collector.state().items()})


def answer_shard(held: Held, spec: dict[str, Any], feeds: Sequence[FeedDict]) -> list[Array]:
    """On a worker: an engine's logits, float32 (rows, outputs), of each of some batches.

    Args:
        held: the network; with a plan the table too, and the refinement where there is one.
        spec: backend, threads, precision, shape ([batch, sequence], or None for free ones), plan (JSON or None).
        feeds: token batches.

    Raises:
        QuantkitError: the engine cannot be built or run.
    """
    engine: Engine = made(("engine", sha256_json([held.keys, spec])), lambda: engine_of(held, spec))
    name = logits_name(engine)
    return [np.array(engine.infer(inputs_for(engine, feed))[name], np.float32) for feed in feeds]


def network_of(held: Held) -> Network:
    """The FP32 network that the worker holds."""

    def parsed() -> Network:
        import onnx

        from quantkit.network.graph import Network

        return Network(onnx.load_model_from_string(held[NETWORK]))

    network: Network = made(("network", held.keys[NETWORK]), parsed)
    return network


def tap_of(held: Held, backend: str, threads: int, names: Sequence[str], shape: tuple[int, ...]) -> CheckedRunner:
    """A tap of the FP32 network for batches of one shape."""
    network = network_of(held)
    key = ("tap", held.keys[NETWORK], backend, threads, shape, sha256_json(list(names)))
    runner: CheckedRunner = made(key, lambda: get_backend(backend).tap(network.fixed(*shape), names, threads=threads))
    return runner


def engine_of(held: Held, spec: dict[str, Any]) -> Engine:
    """The engine that a shard asks for."""
    network = network_of(held)
    graph = network.proto if spec["shape"] is None else network.fixed(*spec["shape"])
    if spec["plan"] is not None:
        graph = quantized(held, graph, spec["plan"])
    return get_backend(spec["backend"]).compile(graph, spec["precision"], threads=spec["threads"])


def quantized(held: Held, graph: ModelProto, plan: dict[str, Any]) -> ModelProto:
    """The graph with Q/DQ pairs, as `candidates.build_candidate` makes it on the client."""
    from quantkit.network.qdq import insert_qdq
    from quantkit.network.refinement_file import parse_refinement
    from quantkit.tables.json_text import loads

    refinement = parse_refinement(held[REFINEMENT], "The refinement")[0] if REFINEMENT in held else None
    return insert_qdq(graph, loads(held[TABLE]), plan_from_json(plan), refinement).proto

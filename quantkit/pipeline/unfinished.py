"""What an interrupted job leaves behind, so that the same command goes on where it stopped.

Everything lies in CACHE/unfinished under a hash of all that decides it, is written whole or not at all, carries a
SHA-256 of itself, and is deleted when the job ends well: a job that was finished is measured anew when it is asked
for again. Three things are kept:

- the histograms of a collecting pass and how many batches they have seen (TensorRT's ranges depend on the order of the
  batches, so a pass goes on with the very next one);
- the logits of an evaluation, engine by engine, batch by batch;
- the latencies of engines that were timed together. A timing that was interrupted is not continued: engines are
  compared within one session.

docs/interruption.md says what that means for each command.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quantkit.collect.collector import Collector
from quantkit.collect.histogram import Histogram
from quantkit.collect.store import HistogramFile, load_histograms, save_histograms
from quantkit.errors import InputError, QuantkitError
from quantkit.evaluate.accuracy import logits_name
from quantkit.evaluate.latency import Latency
from quantkit.files import cache_dir, read_sealed, sha256_json, write_sealed
from quantkit.pipeline.settings import Settings, answering_threads, threads_of
from quantkit.report.record import cpu_name, versions
from quantkit.types import Array, FeedDict, Runner, TensorSpec

if TYPE_CHECKING:
    from onnx import ModelProto

    from quantkit.tables.table import CalibrationTable

RULES = 2
"""Part of every key; raised when the same question comes to have another answer."""
SECONDS = 10.0
"""A job that is killed loses at most this much work, more only where writing takes long."""
SHARE = 20
"""A checkpoint that took t seconds to write is followed by at least this many t of work."""

_FOREIGN = (KeyError, TypeError, ValueError, AttributeError, OverflowError, MemoryError)
"""What comes of a file that has a right hash and is none of ours."""


def folder() -> Path:
    """Where unfinished work is kept."""
    return cache_dir() / "unfinished"


class Pace:
    """When the next checkpoint is due."""

    def __init__(self) -> None:
        self._cost, self._last = 0.0, time.perf_counter()

    def due(self) -> bool:
        """Whether enough work would be lost now."""
        return time.perf_counter() - self._last >= max(SECONDS, SHARE * self._cost)

    def written(self, started: float) -> None:
        """Notes a checkpoint whose writing began at `started` (time.perf_counter)."""
        self._last = time.perf_counter()
        self._cost = self._last - started


class _Checkpoint:
    """What a collecting pass leaves on disk.

    Args:
        key: hash of everything that decides the pass; see `calibration.key_of`.
        threads: with how many the model runs; its rounding may depend on it.
    """

    suffix = ""

    def __init__(self, key: str, threads: int) -> None:
        self.path = folder() / f"{key}{self.suffix}.npz"
        self.seconds = 0.0
        self._setup = {"threads": threads, "versions": versions()}
        self._pace, self._begun = Pace(), time.perf_counter()

    def _fitting(self, setup: dict[str, Any]) -> HistogramFile | None:
        """The checkpoint, when there is one of this setup and it is whole."""
        try:
            stored = load_histograms(self.path) if self.path.is_file() else None
        except QuantkitError:
            return None
        if stored is None or stored.meta.get("setup") != setup:
            return None
        return stored if isinstance(stored.meta.get("seconds"), int | float) else None

    def _write(self, state: Mapping[str, Histogram], meta: dict[str, Any], started: float) -> None:
        """Writes histograms and what is to be known of them; `started` is when that was begun."""
        save_histograms(self.path, state, {"seconds": self.seconds + started - self._begun} | meta)
        self._pace.written(started)

    def discard(self) -> None:
        """Deletes the checkpoint: the pass is done."""
        discard([self.path])


class PassCheckpoint(_Checkpoint):
    """A collecting pass: what was counted, and how many batches were seen."""

    def resume(self, collectors: Sequence[Collector], batches: int) -> int:
        """Puts what was counted into new collectors; returns the number of batches they have then seen.

        Nothing happens when there is no checkpoint, or none that fits: it is damaged, of other packages, of another
        number of threads, or of other tensors.
        """
        stored = self._fitting(self._setup)
        seen = 0 if stored is None else stored.meta.get("batches")
        if stored is None or not isinstance(seen, int) or not 0 < seen <= batches:
            return 0
        try:
            for collector in collectors:
                collector.check_state(stored.histograms)
        except InputError:
            return 0
        for collector in collectors:
            collector.resume(stored.histograms, seen)
        self.seconds = float(stored.meta["seconds"])
        return seen

    def offer(self, collectors: Sequence[Collector], batches: int) -> None:
        """Writes the state after `batches` batches, if it is time to.

        Raises:
            StorageError: it cannot be written. A full disk is better known now than when the pass is done.
        """
        if not self._pace.due():
            return
        started = time.perf_counter()
        state = {name: histogram for collector in collectors for name, histogram in collector.state().items()}
        self._write(state, {"batches": batches, "setup": self._setup}, started)


class ShardCheckpoint(_Checkpoint):
    """A collecting pass in shards: the histograms of those that are done, merged, and which ones they are."""

    suffix = "-shards"

    def resume(self, size: int, batches: int) -> tuple[dict[str, Histogram], set[int]]:
        """What is done: merged histograms, and the numbers of their shards; nothing when no checkpoint fits.

        Args:
            size: batches a shard.
            batches: of the whole pass.
        """
        stored = self._fitting(self._cut(size, batches))
        done = None if stored is None else stored.meta.get("done")
        possible = range(-(-batches // size))
        if stored is None or not isinstance(done, list) or not done:
            return {}, set()
        if len(set(map(repr, done))) < len(done) or any(type(n) is not int or n not in possible for n in done):
            return {}, set()
        self.seconds = float(stored.meta["seconds"])
        return stored.histograms, set(done)

    def offer(self, merged: Mapping[str, Histogram], done: set[int], size: int, batches: int) -> None:
        """Writes what is done, if it is time to; arguments as for `resume`.

        Raises:
            StorageError: it cannot be written.
        """
        if not self._pace.due():
            return
        self._write(merged, {"done": sorted(done), "setup": self._cut(size, batches)}, time.perf_counter())

    def _cut(self, size: int, batches: int) -> dict[str, Any]:
        """What must be the same for shards to be the same."""
        return self._setup | {"size": size, "batches": batches}


class KeptAnswers:
    """An engine whose logits are kept; those that an interrupted evaluation has already are not computed again.

    It is asked the same batches in the same order as before.

    Args:
        engine: the engine itself.
        path: where the logits are kept.
        elsewhere: gives the engine's logits from a batch number on, where not the engine itself computes them.
    """

    def __init__(self, engine: Runner, path: Path, elsewhere: Callable[[int], Iterator[Array]] | None = None) -> None:
        self._engine, self._path = engine, path
        self._elsewhere = elsewhere
        self._coming: Iterator[Array] | None = None
        self._name = logits_name(engine)
        self._answers = _read_answers(path)
        self._asked, self._pace = 0, Pace()
        self.precision = getattr(engine, "precision", "")

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Of the engine."""
        return self._engine.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Of the engine."""
        return self._engine.outputs

    def infer(self, feed: FeedDict) -> dict[str, Array]:
        """The logits of the next batch.

        Raises:
            BackendError: the engine failed.
            StorageError: there is no space to keep them.
        """
        self._asked += 1
        if self._asked <= len(self._answers):
            return {self._name: self._answers[self._asked - 1]}
        self._answers.append(np.array(self._compute(feed), np.float32))
        if self._pace.due():
            self.keep()
        return {self._name: self._answers[-1]}

    def _compute(self, feed: FeedDict) -> Array:
        """The logits of a batch that are not kept."""
        if self._elsewhere is None:
            return self._engine.infer(feed)[self._name]
        if self._coming is None:
            self._coming = self._elsewhere(len(self._answers))
        return next(self._coming)

    def keep(self) -> None:
        """Writes all logits so far."""
        started = time.perf_counter()
        shapes = [list(answer.shape) for answer in self._answers]
        data = b"".join(answer.astype("<f4").tobytes() for answer in self._answers).hex()
        write_sealed(self._path, {"shapes": shapes, "logits": data})
        self._pace.written(started)

    def close(self) -> None:
        """Waits for no more answers from elsewhere; the engine itself stays its owner's."""
        if (end := getattr(self._coming, "close", None)) is not None:
            end()


def _read_answers(path: Path) -> list[Array]:
    """The kept logits, batch by batch; none when there is no such file, or it is damaged."""
    try:
        value = read_sealed(path) or {"logits": "", "shapes": []}
        data, answers, start = np.frombuffer(bytes.fromhex(value["logits"]), "<f4"), [], 0
        for rows, outputs in value["shapes"]:
            answers.append(data[start : start + rows * outputs].reshape(rows, outputs).astype(np.float32))
            start += rows * outputs
    except _FOREIGN:
        return []
    return answers


def graph_sha256(proto: ModelProto) -> str:
    """Hash of a graph that is compiled, scales and weights in it."""
    return hashlib.sha256(proto.SerializeToString(deterministic=True)).hexdigest()


def engine_key(graph: str, precision: str, table: CalibrationTable | None, settings: Settings) -> str:
    """Hash of everything that decides what an engine answers.

    Args:
        graph: hash of the graph that is compiled.
        precision: of the engine.
        table: ranges that the backend places by itself.
        settings: backend with its options, and threads.
    """
    return sha256_json(
        {
            "rules": RULES,
            "graph": graph,
            "precision": precision,
            "ranges": None if table is None else {name: float(scale) for name, scale in table.scales.items()},
            "backend": [settings.backend, {name: str(value) for name, value in settings.engine.items()}],
            "threads": [threads_of(settings), answering_threads(settings)],
            "cpu": cpu_name(),
            "versions": versions(),
        }
    )


def answers_path(engine: str, data_sha256: str) -> Path:
    """Where the logits of an engine over some batches are kept."""
    return folder() / f"{sha256_json(['answers', engine, data_sha256])[:32]}.json"


def latencies_path(engines: Sequence[str], data_sha256: str, rounds: int) -> Path:
    """Where the latencies of engines that were timed together are kept."""
    return folder() / f"{sha256_json(['latencies', *engines, data_sha256, rounds])[:32]}.json"


def keep_latencies(path: Path, latencies: Sequence[Latency]) -> None:
    """Keeps the latencies of engines that were timed together."""
    rows = [asdict(latency) | {"samples_ms": list(latency.samples_ms)} for latency in latencies]
    write_sealed(path, {"latencies": rows})


def kept_latencies(path: Path) -> list[Latency] | None:
    """The latencies that an interrupted run has measured; None when it has not."""
    try:
        rows = (read_sealed(path) or {})["latencies"]
        return [Latency(**{**row, "samples_ms": tuple(row["samples_ms"])}) for row in rows] or None
    except _FOREIGN:
        return None


def discard(paths: Sequence[Path]) -> None:
    """Deletes files of a job that is done; one that cannot be deleted does no harm."""
    for path in paths:
        with suppress(OSError):
            path.unlink(missing_ok=True)

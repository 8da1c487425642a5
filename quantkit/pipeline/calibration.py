"""From sentences to a table: collect once, keep the histograms, reuse what fits."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.calibrate import CALIBRATORS, calibrate_histograms, make_calibrator
from quantkit.calibrate.base import Calibrator
from quantkit.collect.histogram import Histogram
from quantkit.collect.store import HistogramFile, load_histograms, save_histograms
from quantkit.data.batches import TokenBatches
from quantkit.errors import InputError, QuantkitError, TableError
from quantkit.files import cache_dir, read_bytes, sha256_file, sha256_json, write_text
from quantkit.pipeline.collection import batches_of, collect_batches, kinds_of
from quantkit.pipeline.locks import alone_in, exclusive
from quantkit.pipeline.memory import tell_peak
from quantkit.pipeline.settings import Settings, answering_threads, threads_of
from quantkit.pipeline.sharing import cluster_for, collect_shared
from quantkit.pipeline.tables import parameters_of, table_from
from quantkit.pipeline.unfinished import PassCheckpoint, ShardCheckpoint
from quantkit.pipeline.workspace import Workspace
from quantkit.report.record import versions
from quantkit.tables.formats import read_table
from quantkit.tables.provenance import Provenance
from quantkit.tables.table import CalibrationTable, load_table
from quantkit.types import Watcher

if TYPE_CHECKING:
    from quantkit.distributed.cluster import Cluster
    from quantkit.network.refinement import Refinement

RULES = 2
"""Part of every key in the cache; raised when the same settings come to give other histograms or tables."""
# Settings that decide which calibrator is used; a table that is given brings its own.
CALIBRATOR_FIELDS = ("method", "parameters")


@dataclass(frozen=True)
class Collected:
    """Histograms of every activation, and how they came about.

    Args:
        histograms: tensor name -> histogram.
        provenance: of the data and the model, without a method; None where nobody wrote it down.
        seconds: time of the pass over the data (of the original pass when reused).
        reused: whether they were found in the cache.
        path: where they are kept.
        kinds: tensor name -> what it is ("softmax", ...), see quantkit/network/kinds.py.
        unmasked: masked logits -> the scores before the mask.
        parts: hashes of the data of the shards, where several were merged.
    """

    histograms: Mapping[str, Histogram]
    provenance: Provenance | None
    seconds: float
    reused: bool
    path: Path
    kinds: Mapping[str, str] = field(default_factory=dict)
    unmasked: Mapping[str, str] = field(default_factory=dict)
    parts: tuple[str, ...] = ()

    def save(self, path: Path) -> Path:
        """Writes the histograms with all that a later `calibrate --from` needs."""
        meta = {
            "seconds": self.seconds,
            "provenance": None if self.provenance is None else self.provenance.to_dict(),
            "kinds": dict(self.kinds),
            "unmasked": dict(self.unmasked),
        }
        return save_histograms(path, self.histograms, meta | ({"parts": list(self.parts)} if self.parts else {}))


@dataclass(frozen=True)
class Calibrated:
    """A table and how it came about; `record` and `files` are its parts of the run's record.

    `refinement` is what the INT8 graph takes beside the table; None where nothing was refined.
    """

    table: CalibrationTable
    record: dict[str, Any]
    files: Mapping[str, Any] = field(default_factory=dict)
    refinement: Refinement | None = None


def provenance_of(workspace: Workspace, batches: TokenBatches) -> Provenance:
    """What decides the histograms; the method is filled in by `with_method`."""
    settings = workspace.settings
    return Provenance(
        model_sha256=workspace.network.sha256,
        data_sha256=batches.sha256,
        samples=batches.examples,
        seed=settings.seed,
        batch=settings.batch,
        seq_len=settings.seq_len,
        method="",
        parameters={},
        range_mode=settings.range_mode,
        ignore_padding=settings.ignore_padding,
        collector=workspace.backend.name,
        versions=versions(),
    )


def key_of(provenance: Provenance) -> str:
    """Name under which the cache keeps what has this provenance; versions of packages do not enter."""
    return sha256_json({"rules": RULES, **{k: v for k, v in provenance.to_dict().items() if k != "versions"}})[:24]


def collect(workspace: Workspace) -> Collected:
    """Histograms of every activation over the calibration sample, from the cache when it has them.

    A pass that was interrupted goes on from its last checkpoint. Of several processes that want the same histograms
    one collects and the others wait for it.

    Raises:
        CalibrationError: NaN or Inf in an activation; nothing to collect.
    """
    batches = batches_of(workspace)
    provenance = provenance_of(workspace, batches)
    kinds = kinds_of(workspace)
    path = histograms_path(provenance)
    alone = PassCheckpoint(path.stem, threads_of(workspace.settings))
    shared = ShardCheckpoint(path.stem, answering_threads(workspace.settings))
    workers = helpers_of(workspace)
    checkpoint: PassCheckpoint | ShardCheckpoint = alone if workers is None else shared
    with exclusive(f"histograms {path.stem}", workspace.watcher, "Another process collects the same; waiting for it."):
        if (stored := cached_histograms(workspace, path)) is not None:
            alone.discard()
            shared.discard()
            seconds = float(stored.meta["seconds"])
            return Collected(stored.histograms, provenance, seconds, True, path, kinds.kinds, kinds.unmasked)
        started = time.perf_counter()
        if workers is None:
            histograms = collect_batches(workspace, batches, alone)
        else:
            histograms = collect_shared(workspace, workers, batches, shared)
        seconds = checkpoint.seconds + time.perf_counter() - started
        collected = Collected(histograms, provenance, seconds, False, path, kinds.kinds, kinds.unmasked)
        collected.save(path)
        alone.discard()
        shared.discard()
        return collected


def helpers_of(workspace: Workspace) -> Cluster | None:
    """The workers that share the collecting pass; None where nobody does, or where it cannot be shared."""
    if workspace.helpers is None or workspace.settings.order_free:
        return workspace.helpers
    workspace.watcher.say(
        "TensorRT's ranges depend on the order of the batches, so the activations are collected by this process; with "
        "--order-free the workers share that."
    )
    return None


def cached_histograms(workspace: Workspace, path: Path) -> HistogramFile | None:
    """The histograms that the cache keeps at `path`; None when there are none, or none that can be used."""
    if not path.is_file():
        return None
    try:
        stored = load_histograms(path)
        float(stored.meta["seconds"])
    except (TableError, KeyError, TypeError, ValueError) as error:
        workspace.watcher.say(f"The cached histograms are not used: {getattr(error, 'message', error)}")
        return None
    return stored


def histograms_path(provenance: Provenance) -> Path:
    """Where the cache keeps the histograms of this provenance."""
    return cache_dir() / "histograms" / f"{key_of(provenance)}.npz"


def calibrated_table(collected: Collected, calibrator: Calibrator) -> CalibrationTable:
    """The table that a calibrator makes of what was collected."""
    thresholds = calibrate_histograms(
        collected.histograms, calibrator, kinds=collected.kinds, unmasked=collected.unmasked
    )
    return table_from(collected.histograms, calibrator, thresholds, collected.provenance)


def calibrate(workspace: Workspace) -> Calibrated:
    """The table for INT8: the one that was given, one that fits, or a new one.

    Raises:
        TableError: the given table does not fit, and `force` was not asked for.
    """
    settings = workspace.settings
    if settings.table is not None:
        return given_table(workspace, settings.table)
    calibrator = make_calibrator(settings.method, **settings.parameters)
    expected = replace(
        provenance_of(workspace, batches_of(workspace)), method=calibrator.name, parameters=parameters_of(calibrator)
    )
    kept = cache_dir() / "tables" / f"{key_of(expected)}.json"
    places = [kept] if settings.out is None else [settings.out / f"{calibrator.name}.json", kept]
    if kept.is_file() and not unchanged(kept):
        workspace.watcher.say(f"{kept} is not the table that was kept there, and is not used.")
        places.remove(kept)
    for path in places:
        if (found := fitting_table(workspace, path, expected)) is not None:
            # Named where a run without an interruption names it, too: in --out, wherever it was found.
            return Calibrated(found, summary_of(found, save_table(settings, found) or path, 0.0, reused=True))
    collected = collect(workspace)
    started = time.perf_counter()
    table = calibrated_table(collected, calibrator)
    seconds = (0.0 if collected.reused else collected.seconds) + time.perf_counter() - started
    table.save(kept)
    write_text(digest_file(kept), sha256_file(kept) + "\n")
    return Calibrated(table, summary_of(table, save_table(settings, table) or kept, seconds, reused=False))


def digest_file(path: Path) -> Path:
    """Where the SHA-256 of a table in the cache stands; a table itself may be edited by hand, one in the cache not."""
    return path.with_suffix(".sha256")


def unchanged(path: Path) -> bool:
    """Whether a table in the cache is the one that was put there."""
    digest = digest_file(path)
    return digest.is_file() and bytes(read_bytes(digest)).strip() == sha256_file(path).encode()


def fitting_table(workspace: Workspace, path: Path, expected: Provenance) -> CalibrationTable | None:
    """The table at `path` when it is exactly what this run would compute; what differs is said."""
    if not path.is_file():
        return None
    try:
        table = load_table(path)
    except QuantkitError as error:
        workspace.watcher.say(f"{path} is not reused: {error.message}")
        return None
    reasons = ["it has no provenance"] if table.provenance is None else table.provenance.mismatches(expected)
    if reasons and not workspace.settings.force:
        workspace.watcher.say(f"{path} is not reused ({'; '.join(reasons)}); calibrating again.")
        return None
    workspace.watcher.say(f"Reusing {path}.")
    return table


def save_table(settings: Settings, table: CalibrationTable) -> Path | None:
    """Writes METHOD.json and METHOD.cache into --out, if there is one; returns the JSON's path."""
    if settings.out is None:
        return None
    table.save(settings.out / f"{table.algorithm}.cache", "tensorrt")
    return table.save(settings.out / f"{table.algorithm}.json")


def given_table(workspace: Workspace, path: Path) -> Calibrated:
    """The table that the user named, checked against this model and this calibration data."""
    loaded = read_table(path)
    table = loaded.table
    if table.provenance is not None and not workspace.settings.force:
        expected = provenance_of(workspace, batches_of(workspace))
        # Which backend ran the model is no reason to refuse: their activations differ by rounding only.
        given = replace(table.provenance, method="", parameters={}, collector=expected.collector)
        if reasons := given.mismatches(expected):
            raise TableError(
                f"{path} does not fit this run: {'; '.join(reasons)}.",
                "Use the settings it was made with, another table, or --force.",
            )
    known = set(workspace.network.activations())
    if not known.intersection(table.names) and not workspace.settings.force:
        raise TableError(
            f"{path} is the table of another model: none of its {len(table)} tensors is in this one.",
            "Calibrate this model, or give the model that the table belongs to.",
        )
    workspace.watcher.say(f"Reusing {path}.")
    for note in loaded.notes:
        workspace.watcher.say(note)
    return Calibrated(table, summary_of(table, path, 0.0, reused=True))


def summary_of(table: CalibrationTable, path: Path, seconds: float, *, reused: bool) -> dict[str, Any]:
    """The record's part on calibration."""
    provenance = table.provenance
    return {
        "method": table.algorithm,
        "parameters": table.parameters,
        "samples": provenance.samples if provenance else None,
        "seconds": round(seconds, 3),
        "tensors": len(table),
        "table": str(path),
        "reused": reused,
        "range_mode": provenance.range_mode if provenance else None,
        "padding": None if provenance is None else "ignored" if provenance.ignore_padding else "counted",
        "collector": provenance.collector if provenance else None,
    }


def write_tables(settings: Settings, watcher: Watcher) -> dict[str, Any]:
    """`quantkit calibrate`: histograms once, then a table and a cache file for every method asked for.

    Returns:
        JSON value with the folder, the histograms' path and one row a method.
    """
    calibrators = calibrators_for(settings)
    if settings.shared and not settings.order_free:
        raise InputError(
            "TensorRT's ranges depend on the order of the batches, so that their pass cannot be shared by workers.",
            "Add --order-free, or leave out --workers and --scheduler.",
        )
    folder = settings.out or Path("quantkit-out")
    with alone_in(folder, watcher), cluster_for(settings) as workers:
        workspace = Workspace(settings, watcher, workers)
        collected = collect(workspace)
        tell_peak(settings.memory, watcher)
        return {
            "out": str(folder),
            "histograms": str(collected.save(folder / "histograms.npz")),
            "samples": None if collected.provenance is None else collected.provenance.samples,
            "refused_samples": workspace.sample.refused,
            "seconds": round(collected.seconds, 3),
            "reused": collected.reused,
            "tables": write_methods(collected, calibrators, folder),
        }


def write_methods(collected: Collected, calibrators: Sequence[Calibrator], folder: Path) -> list[dict[str, Any]]:
    """METHOD.json and METHOD.cache for every calibrator; returns a summary of each."""
    rows = []
    for calibrator in calibrators:
        started = time.perf_counter()
        table = calibrated_table(collected, calibrator)
        seconds = time.perf_counter() - started
        path = table.save(folder / f"{calibrator.name}.json")
        table.save(folder / f"{calibrator.name}.cache", "tensorrt")
        rows.append(summary_of(table, path, seconds, reused=False))
    return rows


def calibrators_for(settings: Settings) -> list[Calibrator]:
    """A calibrator for every method asked for, each with those of the parameters that it has."""
    methods = tuple(CALIBRATORS) if settings.methods == ("all",) else settings.methods
    return [make_calibrator(name, **own_parameters(name, settings.parameters)) for name in methods]


def own_parameters(method: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the parameters that a method has; with one method only, a foreign one is an error of its own."""
    known = {field.name for field in fields(CALIBRATORS[method])}
    return {name: value for name, value in parameters.items() if name in known}

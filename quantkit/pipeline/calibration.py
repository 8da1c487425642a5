"""From sentences to a table: collect once, keep the histograms, reuse what fits."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from quantkit.calibrate import CALIBRATORS, calibrate_histograms, make_calibrator
from quantkit.calibrate.base import Calibrator, check_histogram
from quantkit.collect.collector import Collector
from quantkit.collect.histogram import Histogram
from quantkit.collect.store import load_histograms, save_histograms
from quantkit.data.batches import TokenBatches
from quantkit.data.tokenize import encode
from quantkit.errors import QuantkitError, TableError
from quantkit.evaluate.accuracy import inputs_for
from quantkit.files import cache_dir, sha256_json
from quantkit.pipeline.settings import Settings, threads_of
from quantkit.pipeline.tables import parameters_of, table_from
from quantkit.pipeline.workspace import Workspace
from quantkit.report.record import versions
from quantkit.tables.provenance import Provenance
from quantkit.tables.table import CalibrationTable, load_table
from quantkit.types import Watcher

# Settings that decide which calibrator is used; a table that is given brings its own.
CALIBRATOR_FIELDS = ("method", "parameters")


@dataclass(frozen=True)
class Collected:
    """Histograms of every activation, and how they came about.

    Args:
        histograms: tensor name -> histogram.
        provenance: of the data and the model; without a method.
        seconds: time of the pass over the data (of the original pass when reused).
        reused: whether they were found in the cache.
        path: where they are kept.
    """

    histograms: Mapping[str, Histogram]
    provenance: Provenance
    seconds: float
    reused: bool
    path: Path


@dataclass(frozen=True)
class Calibrated:
    """A table and how it came about; `record` is its part of the run's record."""

    table: CalibrationTable
    record: dict[str, Any]


def batches_of(workspace: Workspace) -> TokenBatches:
    """The calibration sample as token batches of the fixed shape."""
    settings = workspace.settings
    encoded = encode(workspace.tokenizer, workspace.sample.examples.texts, settings.seq_len)
    return TokenBatches(encoded, settings.batch, settings.seq_len, fill="short")


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
    return sha256_json({k: v for k, v in provenance.to_dict().items() if k != "versions"})[:24]


def collect(workspace: Workspace) -> Collected:
    """Histograms of every activation over the calibration sample, from the cache when it has them.

    Raises:
        CalibrationError: NaN or Inf in an activation; nothing to collect.
    """
    batches = batches_of(workspace)
    provenance = provenance_of(workspace, batches)
    path = cache_dir() / "histograms" / f"{key_of(provenance)}.npz"
    if path.is_file():
        try:
            stored = load_histograms(path)
        except TableError as error:
            workspace.watcher.say(f"The cached histograms are not used: {error.message}")
        else:
            return Collected(stored.histograms, provenance, float(stored.meta["seconds"]), True, path)
    started = time.perf_counter()
    histograms = collect_batches(workspace, batches)
    seconds = time.perf_counter() - started
    for name, histogram in histograms.items():
        check_histogram(histogram, name)
    save_histograms(path, histograms, {"seconds": seconds, "provenance": provenance.to_dict()})
    return Collected(histograms, provenance, seconds, False, path)


def collect_batches(workspace: Workspace, batches: TokenBatches) -> dict[str, Histogram]:
    """One pass: every activation of every batch into its histogram; memory does not grow with the data."""
    settings, network = workspace.settings, workspace.network
    with Collector(
        network.activations(),
        mode=settings.range_mode,
        aliases=network.aliases(),
        axes=network.axes(),
        ignore_padding=settings.ignore_padding,
        threads=threads_of(settings),
    ) as collector:
        with workspace.watcher.stage("collect activations") as progress:
            for shape, feeds in groupby(batches, key=lambda feed: feed["input_ids"].shape):
                proto = network.fixed(*shape)
                with workspace.backend.tap(proto, collector.collected, threads=threads_of(settings)) as runner:
                    for feed in feeds:
                        collector.update(runner.infer(inputs_for(runner, feed)), feed["attention_mask"])
                        progress(collector.batches, len(batches))
        return collector.histograms()


def calibrated_table(collected: Collected, calibrator: Calibrator) -> CalibrationTable:
    """The table that a calibrator makes of what was collected."""
    thresholds = calibrate_histograms(collected.histograms, calibrator)
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
    for path in places:
        if (found := fitting_table(workspace, path, expected)) is not None:
            save_table(settings, found)
            return Calibrated(found, summary_of(found, path, 0.0, reused=True))
    collected = collect(workspace)
    started = time.perf_counter()
    table = calibrated_table(collected, calibrator)
    seconds = (0.0 if collected.reused else collected.seconds) + time.perf_counter() - started
    table.save(kept)
    return Calibrated(table, summary_of(table, save_table(settings, table) or kept, seconds, reused=False))


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
    table = load_table(path)
    if table.provenance is not None and not workspace.settings.force:
        expected = provenance_of(workspace, batches_of(workspace))
        given = replace(table.provenance, method="", parameters={})
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
    methods = tuple(CALIBRATORS) if settings.methods == ("all",) else settings.methods
    calibrators = [make_calibrator(name, **own_parameters(name, settings.parameters)) for name in methods]
    workspace = Workspace(settings, watcher)
    collected = collect(workspace)
    folder = settings.out or Path("quantkit-out")
    histograms = save_histograms(
        folder / "histograms.npz",
        collected.histograms,
        {"seconds": collected.seconds, "provenance": collected.provenance.to_dict()},
    )
    rows = []
    for calibrator in calibrators:
        started = time.perf_counter()
        table = calibrated_table(collected, calibrator)
        seconds = time.perf_counter() - started
        path = table.save(folder / f"{calibrator.name}.json")
        table.save(folder / f"{calibrator.name}.cache", "tensorrt")
        rows.append(summary_of(table, path, seconds, reused=False))
    return {
        "out": str(folder),
        "histograms": str(histograms),
        "samples": collected.provenance.samples,
        "refused_samples": workspace.sample.refused,
        "seconds": round(collected.seconds, 3),
        "reused": collected.reused,
        "tables": rows,
    }


def own_parameters(method: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the parameters that a method has; with one method only, a foreign one is an error of its own."""
    known = getattr(CALIBRATORS[method], "__dataclass_fields__", {})
    return {name: value for name, value in parameters.items() if name in known}

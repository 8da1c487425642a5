"""`quantkit repeat`: runs what a record says once more, in a new folder and with an empty cache, and compares.

Compared are bits: the table, the graphs of the engines, their answers, metrics and what a search has measured of
accuracy. Times are told and decide nothing.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from quantkit.environment import variable
from quantkit.errors import InputError
from quantkit.files import check_writable, read_bytes, write_json
from quantkit.pipeline.collection import batches_of
from quantkit.pipeline.compare import compare_all, settings_for
from quantkit.pipeline.manifest import dependencies, differences, labels_sha256
from quantkit.pipeline.recorded import Facts, exact_facts, search_notes, times_of
from quantkit.pipeline.run import evaluation_batches, run_settings
from quantkit.pipeline.search import batches_over, run_sensitivity
from quantkit.pipeline.settings import Settings, settings_from_json
from quantkit.pipeline.tune import Goal, tune
from quantkit.pipeline.workspace import Workspace
from quantkit.report.record import SCHEMA, machine, versions
from quantkit.types import Watcher

FILES = ("record.json", "sensitivity.json")
JOBS = ("run", "eval", "bench", "build", "tune", "sensitivity", "compare")
HASHES: dict[str, Callable[[Workspace], str | None]] = {
    "model": lambda workspace: workspace.network.sha256,
    "evaluation rows": lambda workspace: evaluation_batches(workspace).sha256,
    "labels": lambda workspace: labels_sha256(workspace.evaluation.labels),
    "calibration rows": lambda workspace: batches_of(workspace).sha256,
    "tuning rows": lambda workspace: batches_over(workspace, workspace.tuning)[1].sha256,
    "tuning labels": lambda workspace: labels_sha256(batches_over(workspace, workspace.tuning)[0].labels),
}
"""What a job is given -> its hash, as the record has it."""
CACHE = "cache"
"""Folder in --out that stands for the cache, until the job is done."""


@dataclass(frozen=True)
class Repeated:
    """What came of it.

    Attributes:
        out: folder of the new results.
        rows: what was compared: "what", "before", "after" and "same".
        times: what is only told: "what", "before", "after".
        notes: what is different around the job, one sentence each.
    """

    out: Path
    rows: list[dict[str, Any]]
    times: list[dict[str, Any]]
    notes: list[str]

    @property
    def same(self) -> bool:
        """Whether everything that was compared is the same."""
        return all(row["same"] for row in self.rows)

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        return {"out": str(self.out), "same": self.same, "rows": self.rows, "times": self.times, "notes": self.notes}


def repeat(path: Path, out: Path, given: Mapping[str, Any], watcher: Watcher, *, anyway: bool = False) -> Repeated:
    """Runs a record's job again and compares; repeat.json in `out` has what was found.

    Args:
        path: a record, or its folder.
        out: folder for the new results; not the record's own.
        given: settings that replace those of the record: where model and data lie now, threads, workers.
        watcher: who is told how it goes.
        anyway: go on where model or data are not those of the record.

    Raises:
        InputError: no record that can be repeated; another model or other data; `out` is the record's folder.
        QuantkitError: of the job itself.
    """
    before, place = read_record(path)
    facts, times = told_by(before, place)
    if out.resolve() == place.parent.resolve():
        raise InputError(f"{out} holds the record itself.", "Name another folder with --out.")
    settings = replace(settings_of(before, str(place), given), out=out)
    check_writable(out)
    notes = [*setting_notes(before, given), *changed_around(before)]
    # What is repeated is computed again: nothing of earlier jobs is found.
    with variable("QUANTKIT_CACHE", str((out / CACHE).resolve())):
        wrong = changed_inputs(before, settings, watcher)
        if wrong and not anyway:
            raise InputError(f"It cannot be the same again: {'; '.join(wrong)}.", "Name the right files, or --anyway.")
        notes += [f"Not the same: {what}." for what in wrong]
        for note in notes:
            watcher.say(note)
        after = run_again(before, settings, watcher)
    shutil.rmtree(out / CACHE, ignore_errors=True)
    rows = compared(facts, exact_facts(after), common=bool(before.get("search")))
    found = Repeated(out, rows, told(times, times_of(after)), notes + search_notes(before, after))
    write_json(out / "repeat.json", {"record": str(place), **found.as_json()})
    return found


def read_record(path: Path) -> tuple[dict[str, Any], Path]:
    """A record with a manifest, and the file that it stands in.

    Raises:
        InputError: it is none, or was written before there were manifests.
        StorageError: it cannot be read.
    """
    place = next((path / name for name in FILES if (path / name).is_file()), path) if path.is_dir() else path
    try:
        data = read_bytes(place, json.loads)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place} is not JSON: {error}.", "Give the record.json of a run.") from error
    if not isinstance(data, dict) or data.get("schema") != SCHEMA or not isinstance(data.get("context"), dict):
        raise InputError(f"{place} is not a record of schema {SCHEMA}.", "Give the record.json of a run.")
    manifest = data.get("manifest")
    if not isinstance(manifest, dict) or manifest.get("job") not in JOBS:
        raise InputError(
            f"{place} has no manifest, so there is nothing to compare with.", "Run its command again with this version."
        )
    return data, place


def told_by(record: Mapping[str, Any], place: Path) -> tuple[Facts, Facts]:
    """What a record tells, and its times; reads all of it that is read later.

    Raises:
        InputError: a part of the record is not what it should be.
    """
    try:
        if record["manifest"]["job"] == "compare" and not all(
            isinstance(name, str) for part in ("tasks", "backends", "methods") for name in record[part]
        ):
            raise TypeError("a task, backend or method that is no text")
        _ = wanted_inputs(record), search_notes(record, record), goal_of(record), changed_around(record)
        return exact_facts(record), {what: float(value) for what, value in times_of(record).items()}
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{place} is no whole record: {error!r}.", "Give the record.json of a run.") from error


def goal_of(record: Mapping[str, Any]) -> Goal | None:
    """What a search was to find; None where there was none."""
    search = record.get("search")
    return Goal(search["goal"].get("max_drop"), search["goal"].get("min_speedup")) if search else None


def settings_of(record: Mapping[str, Any], where: str, given: Mapping[str, Any]) -> Settings:
    """The settings of a record, some of them replaced; the threads are those that were used.

    Raises:
        InputError: a setting is missing or of a wrong type.
    """
    values = record["context"].get("settings")
    if not isinstance(values, dict):
        raise InputError(f"{where} has no settings.", "Give the record.json of a run.")
    values = dict(values)
    for name in ("task", "backend"):  # a comparison has several
        if isinstance(values.get(name), list):
            values[name] = next(iter(values[name]), "")
    settings = settings_from_json(values, where)
    threads = (record["manifest"].get("threads") or {}).get("here")
    if not settings.threads and not settings.shared and isinstance(threads, int) and threads > 0:
        settings = replace(settings, threads=threads)
    if settings.scheduler and not {"scheduler", "workers"} & given.keys():
        settings = replace(settings, scheduler="", workers=1)
    elif {"scheduler", "workers"} & given.keys():
        settings = replace(settings, scheduler="", workers=0)
    return replace(settings, **given)


def setting_notes(record: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """What is done in another way than the record's command did it."""
    notes = [f"--{name.replace('_', '-')} is {value} this time." for name, value in given.items()]
    scheduler = record["context"]["settings"].get("scheduler")
    if scheduler and not {"scheduler", "workers"} & given.keys():
        notes.append(f"The workers of {scheduler} are replaced by one process here; --scheduler names others.")
    return notes


def changed_around(record: Mapping[str, Any]) -> list[str]:
    """Packages, processor and cores that are not those of the record."""
    context = record["context"]
    packages = differences(context.get("versions") or {}, versions())
    packages += differences(record["manifest"].get("dependencies") or {}, dependencies())
    notes = [f"Other packages: {', '.join(packages)}."] if packages else []
    then = context.get("machine") or {}
    return notes + [
        f"Other {name}: {then.get(name)} -> {value}." for name, value in machine().items() if then.get(name) != value
    ]


def changed_inputs(record: Mapping[str, Any], settings: Settings, watcher: Watcher) -> list[str]:
    """What of model and data is not what it was, in words."""
    wrong = []
    for task, wanted in wanted_inputs(record).items():
        own = settings_for(settings, task, settings.backend) if task else settings
        workspace = Workspace(own, watcher)
        for name, value in wanted.items():
            if HASHES[name](workspace) != value:
                of = f" of {task}" if task else ""
                wrong.append(f"the {name}{of} have changed" if name[-1] == "s" else f"the {name}{of} is another one")
    return wrong


def wanted_inputs(record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Task ("" where there is one alone) -> what of its inputs has which hash."""
    manifest = record["manifest"]
    if manifest["job"] == "compare":
        return {
            task: {
                "model": (source.get("model") or {}).get("sha256"),
                "evaluation rows": source.get("data_sha256"),
                "labels": source.get("labels_sha256"),
            }
            for task, source in (record.get("sources") or {}).items()
        }
    wanted = {"model": (record.get("model") or {}).get("sha256")}
    if rows := manifest.get("evaluation"):
        wanted |= {"evaluation rows": rows.get("rows_sha256"), "labels": rows.get("labels_sha256")}
    if rows := manifest.get("tuning"):
        wanted |= {"tuning rows": rows.get("rows_sha256"), "tuning labels": rows.get("labels_sha256")}
    given = (record["context"].get("settings") or {}).get("table")
    if not given and (sample := (manifest.get("calibration") or {}).get("rows_sha256")):
        wanted["calibration rows"] = sample
    return {"": wanted}


def run_again(record: Mapping[str, Any], settings: Settings, watcher: Watcher) -> dict[str, Any]:
    """The record of the same job, done now."""
    job = record["manifest"]["job"]
    if job == "compare":
        return compare_all(settings, list(record["tasks"]), list(record["backends"]), watcher).data
    if job == "tune" and (goal := goal_of(record)) is not None:
        return tune(settings, goal, watcher).data
    if job == "sensitivity":
        return run_sensitivity(settings, watcher)
    return run_settings(settings, watcher, metrics=job in ("run", "eval"), latency=job in ("run", "bench")).data


def compared(before: Facts, after: Facts, *, common: bool = False) -> list[dict[str, Any]]:
    """One row for everything that either record tells; with `common` only for what both tell.

    Searches judge other plans when other ones are fast, so only those that both judged can be compared.
    """
    names = [what for what in dict.fromkeys((*before, *after)) if not common or (what in before and what in after)]
    return [
        {
            "what": what,
            "before": before.get(what),
            "after": after.get(what),
            "same": before.get(what) == after.get(what),
        }
        for what in names
    ]


def told(before: Facts, after: Facts) -> list[dict[str, Any]]:
    """One row for every time that both records tell."""
    return [{"what": what, "before": value, "after": after[what]} for what, value in before.items() if what in after]

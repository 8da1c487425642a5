"""What two records of the same job are compared by: facts that must be equal to the bit, and times."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

Facts = dict[str, Any]
"""What, in words -> value."""


def exact_facts(record: Mapping[str, Any]) -> Facts:
    """Everything of a record that the same job gives again, bit for bit.

    Which plans a search judges and chooses depends on times too; what is told of a plan has the plan in its words.
    """
    return dict(_exact(record))


def _exact(record: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    manifest = record["manifest"]
    if table := (manifest.get("calibration") or {}).get("table_sha256"):
        yield "table", table
    if rows := (manifest.get("calibration") or {}).get("rows_sha256"):
        yield "calibration rows", rows
    chosen = chosen_of(record)
    for row in record.get("engines") or ():
        name = row["precision"]
        hashes = (manifest.get("engines") or {}).get(name) or {}
        of = f" by {_plan(chosen)}" if chosen and name.startswith("int8") else ""
        yield from _engine(name + of, row, hashes)
    for cell in record.get("cells") or ():
        name = " ".join(part for part in (cell["task"], cell["backend"], cell["method"] or "fp32") if part)
        yield from _engine(name, cell, cell.get("hashes") or {})
        if cell.get("change"):
            yield f"{name}: change", cell["change"]
    for candidate in (record.get("search") or {}).get("candidates") or ():
        if candidate.get("judged") is not None:
            yield f"judged {_plan(candidate['plan'])}", candidate["judged"]
    found = record.get("sensitivity") or (record.get("search") or {}).get("sensitivity")
    if found:
        yield "all parts in INT8", found["whole"]
        for unit in found["units"]:
            yield f"{unit['name']} alone in INT8", unit["alone"]


def _engine(name: str, row: Mapping[str, Any], hashes: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    """One engine: state, graph, metrics, answers."""
    yield f"{name}: status", row["status"]
    for key, words in (("table_sha256", "table"), ("graph_sha256", "graph")):
        if key in hashes:
            yield f"{name}: {words}", hashes[key]
    for metric, score in (row.get("metrics") or {}).items():
        yield f"{name}: {metric}", [score.get("value"), score.get("stderr")]
    for key, words in (("predictions_sha256", "answers"), ("logits_sha256", "logits")):
        if key in hashes:
            yield f"{name}: {words}", hashes[key]


def times_of(record: Mapping[str, Any]) -> Facts:
    """Median milliseconds of a batch, speed-ups, and seconds of calibration."""
    found: Facts = {}
    if seconds := (record.get("calibration") or {}).get("seconds"):
        found["calibration, s"] = seconds
    rows = [(row["precision"], row) for row in record.get("engines") or ()]
    rows += [
        (f"{cell['task']} {cell['backend']} {cell['method'] or 'fp32'}", cell) for cell in record.get("cells") or ()
    ]
    for name, row in rows:
        if median := (row.get("latency_ms") or {}).get("median"):
            found[f"{name}: ms a batch"] = median
        if row.get("speedup"):
            found[f"{name}: times FP32's speed"] = row["speedup"]
    return found


def chosen_of(record: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The plan that a search chose; None where there was no search, or nothing chosen."""
    chosen = (record.get("search") or {}).get("chosen")
    return chosen["plan"] if chosen else None


def search_notes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What a search chose this time; it decides by times too, so another choice is no difference of bits."""
    if not before.get("search"):
        return []
    old, new = (_plan(plan) if (plan := chosen_of(record)) else "no plan" for record in (before, after))
    same = "The search chose the same plan" if old == new else f"The search chose {new} this time"
    return [f"{same}, {old}." if old == new else f"{same}, and {old} before: it decides by measured times too."]


def _plan(plan: Mapping[str, Any]) -> str:
    """A plan in a word."""
    skipped = plan.get("skip") or []
    return f"{plan.get('mode')}{' without ' + json.dumps(skipped) if skipped else ''}"

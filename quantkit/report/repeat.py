"""The part of a page that says everything needed to repeat what it shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def repeat(data: Mapping[str, Any]) -> dict[str, Any]:
    """Command, settings, model, data, calibration, machine and versions of a record, as pairs of text."""
    context = data["context"]
    files = data.get("files") or {}
    groups = [
        ("Settings", context["settings"]),
        ("Model", data.get("model") or {}),
        ("Task and data", data.get("task") or {}),
        ("Calibration", _calibration(data.get("calibration") or {})),
        ("Machine", {**context["machine"], "time": context["time"]}),
        ("Versions", context["versions"]),
        ("Workers", context.get("workers") or {}),
        ("Hashes", data.get("manifest") or {}),
        ("Files", {entry["path"]: f"SHA-256 {entry['sha256']}" for entry in files.values()}),
    ]
    pairs = [(name, [(key, shown(value)) for key, value in values.items()]) for name, values in groups]
    told = [(name, [(key, text) for key, text in facts if text]) for name, facts in pairs]
    return {"command": context.get("command", ""), "groups": told}


def _calibration(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts on calibration, of the refinement its steps only; the rest of it is a line an activation."""
    return {**facts, "refinement": (facts.get("refinement") or {}).get("steps")}


def shown(value: Any) -> str:
    """A JSON value in one line; empty for what was left open."""
    if value is None or value == "" or value == [] or value == {}:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {shown(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(shown(item) for item in value)
    return str(value)

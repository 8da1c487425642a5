"""The part of a page that says everything needed to repeat what it shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

HASH = "_sha256"


def repeat(data: Mapping[str, Any]) -> dict[str, Any]:
    """Command, settings, model, data, calibration, machine, versions and hashes of a record, as pairs of text."""
    context = data["context"]
    files, manifest = data.get("files") or {}, data.get("manifest") or {}
    hashes = dict(leaves(manifest))
    groups = [
        ("Settings", context["settings"]),
        ("Model", data.get("model") or {}),
        ("Task and data", data.get("task") or {}),
        ("Calibration", _calibration(data.get("calibration") or {})),
        ("Machine", {**context["machine"], "time": context["time"]}),
        ("Versions", context["versions"]),
        ("Workers", context.get("workers") or {}),
        ("Job", {key: value for key, value in manifest.items() if not any(leaves({key: value}))}),
    ]
    hashes |= {entry["path"]: entry["sha256"] for entry in files.values()}
    pairs = [(name, [(key, shown(value)) for key, value in values.items()]) for name, values in groups]
    told = [(name, [(key, text) for key, text in facts if text]) for name, facts in pairs]
    return {"command": context.get("command", ""), "groups": told, "hashes": list(hashes.items())}


def leaves(values: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Every SHA-256 in a manifest, with where it stands: "engines int8 logits" for the one of the INT8 logits."""
    for key, value in values.items():
        here = (*path, key)
        if isinstance(value, Mapping):
            inside = here if not key.endswith(HASH) else (*path, key.removesuffix(HASH))
            yield from leaves({f"{k}{HASH}" if key.endswith(HASH) else k: v for k, v in value.items()}, inside)
        elif key.endswith(HASH) and isinstance(value, str):
            yield " ".join((*path, key.removesuffix(HASH))), value


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

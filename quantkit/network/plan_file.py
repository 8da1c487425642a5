"""The plan file: a precision plan as JSON, with why each part of it is as it is (format in docs/formats.md)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from quantkit.errors import InputError
from quantkit.files import read_bytes, write_json
from quantkit.network.index import GraphIndex
from quantkit.network.precision import PrecisionPlan

TYPE, VERSION = "quantkit.PrecisionPlan", 1


@dataclass(frozen=True)
class PlanFile:
    """A plan, the model it was found for, and what was found.

    Attributes:
        plan: what becomes INT8.
        model_sha256: hash of the model it was found for; empty when it was written by hand.
        reasons: part that stays in higher precision -> why, in words.
        found: how the plan was found, JSON values; {} when it was written by hand.
    """

    plan: PrecisionPlan
    model_sha256: str = ""
    reasons: Mapping[str, str] = field(default_factory=dict)
    found: Mapping[str, Any] = field(default_factory=dict)

    def save(self, path: Path) -> Path:
        """Writes the file atomically and returns the path."""
        value = {
            "_type": TYPE,
            "_version": VERSION,
            "plan": plan_to_json(self.plan),
            "model_sha256": self.model_sha256,
            "reasons": dict(self.reasons),
            "found": dict(self.found),
        }
        return write_json(path, value)


def plan_to_json(plan: PrecisionPlan) -> dict[str, Any]:
    """Every field of a plan as a JSON value; sets become sorted lists."""
    values = {f.name: getattr(plan, f.name) for f in fields(plan)}
    return {name: sorted(value) if isinstance(value, frozenset) else value for name, value in values.items()}


def plan_from_json(value: Any, where: str = "The plan") -> PrecisionPlan:
    """The plan that `plan_to_json` gave; fields that are left out have their defaults.

    Raises:
        InputError: not an object, a field that a plan has not, or a value of the wrong type.
        UnknownNameError: there is no such mode.
    """
    if not isinstance(value, dict):
        raise InputError(f"{where} is no JSON object.", "docs/formats.md shows a plan file.")
    defaults = plan_to_json(PrecisionPlan())
    for name, given in value.items():
        if name not in defaults:
            raise InputError(f"{where} has the unknown field {name!r}; known: {', '.join(defaults)}.")
        if type(given) is not type(defaults[name]) or (
            isinstance(given, list) and not all(isinstance(part, str) for part in given)
        ):
            kind = {list: "a list of texts", bool: "true or false", str: "a text"}.get(
                type(defaults[name]), type(defaults[name]).__name__
            )
            raise InputError(f"{where}: {name} is {given!r}; expected {kind}.")
    given_fields: dict[str, Any] = {n: frozenset(v) if isinstance(v, list) else v for n, v in value.items()}
    return PrecisionPlan(**given_fields)


def load_plan(path: Path) -> PlanFile:
    """Reads a plan file.

    Raises:
        InputError: it is not JSON, not a plan file, of a version this quantkit does not know, or a field is wrong.
        UnknownNameError: there is no such mode.
        StorageError: it cannot be read.
    """
    try:
        data = read_bytes(path, json.loads)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}.", "Give the plan.json that `quantkit tune` wrote.") from error
    if not isinstance(data, dict) or data.get("_type") != TYPE or data.get("_version") != VERSION:
        raise InputError(f"{path} is no plan file of version {VERSION}.", "Give the plan.json of `quantkit tune`.")
    for name, kind, words in (
        ("model_sha256", str, "a text"),
        ("reasons", dict, "an object"),
        ("found", dict, "an object"),
    ):
        if not isinstance(data.get(name, kind()), kind):
            raise InputError(f"{path}: {name} is {data[name]!r}; expected {words}.")
    reasons = {str(part): str(why) for part, why in data.get("reasons", {}).items()}
    plan = plan_from_json(data.get("plan"), f"The plan in {path}")
    return PlanFile(plan, data.get("model_sha256", ""), reasons, data.get("found", {}))


def idle_patterns(plan: PrecisionPlan, index: GraphIndex) -> list[str]:
    """Patterns of `skip` that name no node, tensor or layer of a graph, so that they would silently do nothing."""
    from quantkit.network.structure import find_encoder

    layers = find_encoder(index).num_layers
    names = [name for node in index.graph.node for name in (node.name, *node.input, *node.output) if name]
    return [
        pattern
        for pattern in sorted(plan.skip)
        if not (pattern.isdecimal() and int(pattern) < layers)
        and not any(PrecisionPlan(skip=frozenset({pattern})).skipped_by(name) for name in names)
    ]

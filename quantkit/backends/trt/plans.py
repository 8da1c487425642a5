"""Engines on disk: found again by what they were built from, refused when damaged or foreign.

A plan `NAME.plan` has a sidecar `NAME.json` that says what it is: SHA-256, size, GPU, TensorRT version, what it was
built from, what was missing. Loading a plan runs machine code that is in it, so only plans built here are loaded: the
sidecar carries an HMAC over itself, with a key that this user's cache folder alone holds. Others need `trust`.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from quantkit.backends.trt.capabilities import Gpu
from quantkit.backends.trt.rules import Rules
from quantkit.backends.trt.versions import Version
from quantkit.errors import BackendError, StorageError
from quantkit.files import atomic_file, cache_dir, read_bytes, sha256_file, sha256_json, write_bytes

TYPE, VERSION = "quantkit.plan", 1
KEY_BYTES = 32


@dataclass(frozen=True)
class PlanInfo:
    """What a sidecar says.

    Attributes:
        sha256, size: of the plan.
        gpu: name and compute capability, "NVIDIA H100 80GB HBM3 (9.0)".
        tensorrt: version.
        key: what the plan was built from, as JSON values: hashes of graph and table, options.
        outcome: what the build found out; see `Outcome`.
        symbols: input name -> names of its changing dimensions.
        rows: input name -> rows of the table that its values are looked up in.
    """

    sha256: str
    size: int
    gpu: str
    tensorrt: str
    key: dict[str, Any] = field(default_factory=dict)
    outcome: dict[str, Any] = field(default_factory=dict)
    symbols: dict[str, list[str | None]] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The sidecar without its HMAC."""
        return {"_type": TYPE, "_version": VERSION, **asdict(self)}

    @property
    def rules(self) -> Rules:
        """What a feed must obey."""
        return Rules({name: tuple(dims) for name, dims in self.symbols.items()}, self.rows)

    @classmethod
    def from_json(cls, value: Mapping[str, Any], path: Path) -> PlanInfo:
        """The inverse of `to_json`.

        Raises:
            StorageError: not a sidecar, or of another version.
        """
        names = {f.name for f in fields(cls)}
        if value.get("_type") != TYPE or value.get("_version") != VERSION or not names <= set(value):
            raise StorageError(f"{path} is not a sidecar of a plan.", "Delete it and its plan, and build again.")
        texts = all(isinstance(value[name], str) for name in ("sha256", "gpu", "tensorrt"))
        objects = all(isinstance(value[name], dict) for name in ("key", "outcome", "symbols", "rows"))
        if not texts or not objects or type(value["size"]) is not int or not _are_rules(value):
            raise StorageError(f"{path} is a damaged sidecar.", "Delete it and its plan, and build again.")
        return cls(**{name: value[name] for name in names})


def _are_rules(value: Mapping[str, Any]) -> bool:
    """Whether a sidecar's symbols are lists of names or None, and its rows whole numbers."""
    lists = all(isinstance(dims, list) for dims in value["symbols"].values())
    names = lists and all(d is None or isinstance(d, str) for dims in value["symbols"].values() for d in dims)
    return names and all(type(rows) is int for rows in value["rows"].values())


def gpu_text(gpu: Gpu) -> str:
    """How a sidecar names a GPU: plans of another model or compute capability do not run."""
    return f"{gpu.name} ({'.'.join(map(str, gpu.compute_capability))})"


def folder() -> Path:
    """Where plans are kept."""
    return cache_dir() / "plans"


def plan_path(key: Mapping[str, Any]) -> Path:
    """Where the plan of this key is kept."""
    return folder() / f"{sha256_json(dict(key))[:32]}.plan"


def sidecar(path: Path) -> Path:
    """The sidecar of a plan."""
    return path.with_suffix(".json")


def inspection_file(path: Path) -> Path:
    """Where what was found out about a plan stands."""
    return path.with_suffix(".inspection.json")


def store(path: Path, plan: bytes, info: PlanInfo, inspection: Mapping[str, Any] | None = None) -> Path:
    """Writes plan, sidecar and what was found out about it; returns the plan's path."""
    write_bytes(path, plan)
    if inspection is not None:
        write_bytes(inspection_file(path), json.dumps(dict(inspection)).encode())
    value = info.to_json()
    write_bytes(sidecar(path), json.dumps({**value, "hmac": _hmac(value)}, indent=2).encode() + b"\n")
    return path


def info_of(path: Path) -> PlanInfo | None:
    """What the sidecar of a plan says; None when there is none."""
    side = sidecar(path)
    return PlanInfo.from_json(_read(side), side) if side.is_file() else None


def check(path: Path, version: Version, gpu: Gpu, *, trust: bool = False) -> PlanInfo | None:
    """Makes sure that a plan is whole, ours and fit to run here; what its sidecar says, None for a trusted stranger.

    Raises:
        StorageError: there is no such plan, or it is damaged.
        BackendError: it was built elsewhere and is not trusted, or for another GPU or TensorRT version.
    """
    if not path.is_file():
        raise StorageError(f"There is no engine {path}.", "Check the path.")
    side = sidecar(path)
    value = _read(side) if side.is_file() else None
    if not trust and (value is None or not hmac.compare_digest(str(value.get("hmac", "")), _hmac(value))):
        raise BackendError(
            f"{path} was not built by this user on this machine; loading an engine runs code that is in it.",
            "If you know where it comes from, load it with --trust.",
        )
    if value is None:
        return None
    info = PlanInfo.from_json(value, side)
    if path.stat().st_size != info.size or sha256_file(path) != info.sha256:
        raise StorageError(f"{path} is damaged: it is not the file that its sidecar describes.", "Build it again.")
    if reasons := misfits(info, version, gpu):
        raise BackendError(f"{path} does not run here: {'; '.join(reasons)}.", "Build it again on this machine.")
    return info


def misfits(info: PlanInfo, version: Version, gpu: Gpu) -> list[str]:
    """Why a plan does not run with this TensorRT on this GPU; empty when it does."""
    reasons = []
    if info.tensorrt != str(version):
        reasons.append(f"it was built with TensorRT {info.tensorrt}, this is {version}")
    if info.gpu != gpu_text(gpu):
        reasons.append(f"it was built for {info.gpu}, this is {gpu_text(gpu)}")
    return reasons


def info_for(
    plan: bytes,
    version: Version,
    gpu: Gpu,
    *,
    key: Mapping[str, Any],
    outcome: Mapping[str, Any],
    rules: Rules,
) -> PlanInfo:
    """The sidecar of a plan just built."""
    return PlanInfo(
        sha256=hashlib.sha256(plan).hexdigest(),
        size=len(plan),
        gpu=gpu_text(gpu),
        tensorrt=str(version),
        key=dict(key),
        outcome=dict(outcome),
        symbols={name: list(dims) for name, dims in rules.symbols.items()},
        rows=dict(rules.rows),
    )


def _read(path: Path) -> dict[str, Any]:
    """A sidecar's JSON object; StorageError when it is none."""
    try:
        value = read_bytes(path, json.loads)
    except (ValueError, RecursionError) as error:
        raise StorageError(f"{path} is damaged: {error}.", "Delete it and its plan, and build again.") from error
    if not isinstance(value, dict):
        raise StorageError(f"{path} is not a sidecar of a plan.", "Delete it and its plan, and build again.")
    return value


def _hmac(value: Mapping[str, Any]) -> str:
    """HMAC-SHA-256 of a sidecar's JSON value, its own "hmac" left out."""
    text = json.dumps({k: v for k, v in value.items() if k != "hmac"}, sort_keys=True, separators=(",", ":"))
    return hmac.new(_secret(), text.encode(), hashlib.sha256).hexdigest()


def _secret() -> bytes:
    """The key of this cache folder, made on first use and readable by its owner only."""
    path = folder() / "origin.key"
    if path.is_file():
        return bytes(read_bytes(path))
    made = path.with_name(f".{secrets.token_hex(8)}.key")
    with atomic_file(made) as file:
        file.write(secrets.token_bytes(KEY_BYTES))
    made.chmod(0o600)
    # Of two processes that get here at once one key stays: a link does not replace what is there, as a rename would.
    with suppress(FileExistsError):
        os.link(made, path)
    made.unlink(missing_ok=True)
    return bytes(read_bytes(path))

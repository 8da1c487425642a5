"""What a record says of itself so that it can be repeated: hashes of what went in, and of what came out bit for bit.

Model, machine, versions that can change a figure, command and settings stand elsewhere in the record already; nothing
is said twice. `quantkit repeat` compares by these hashes (quantkit/pipeline/repeat.py).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quantkit.files import sha256_array, sha256_file, sha256_json
from quantkit.pipeline.settings import Settings, answering_threads, threads_of
from quantkit.pipeline.workspace import Workspace
from quantkit.report.record import versions
from quantkit.tables.table import CalibrationTable

if TYPE_CHECKING:
    from quantkit.evaluate.accuracy import EvalResult

MOST_FILE_BYTES = 1 << 30
"""Files of an adapter beyond this are not hashed; its merged weights are in the model's hash anyway."""


def manifest(workspace: Workspace, job: str, table: CalibrationTable | None = None, **more: Any) -> dict[str, Any]:
    """The part that every record has.

    Args:
        workspace: model, settings.
        job: the command that repeats it, "run" for example.
        table: the calibration table, where there is one.
        more: what this kind of record has beside it.
    """
    settings = workspace.settings
    return {
        "job": job,
        "threads": threads_json(settings),
        "dependencies": dependencies(),
        "adapter_sha256": adapter_sha256(workspace.adapter_path),
        **({} if table is None else {"calibration": calibration(table)}),
        **more,
    }


def threads_json(settings: Settings) -> dict[str, int]:
    """With how many threads engines ran here, and with how many shards of calibration and evaluation were computed."""
    return {"here": threads_of(settings), "shards": answering_threads(settings)}


def calibration(table: CalibrationTable) -> dict[str, Any]:
    """Hashes of a table's ranges and of the rows that it was made with (null where the table does not say)."""
    return {
        "table_sha256": table_sha256(table),
        "rows_sha256": None if table.provenance is None else table.provenance.data_sha256,
    }


def table_sha256(table: CalibrationTable) -> str:
    """Hash of names, scales and extremes: what becomes of a model, whoever computed it when."""
    return sha256_json(
        {name: [float(entry.scale), entry.minimum, entry.maximum] for name, entry in table.entries.items()}
    )


def answers(result: EvalResult) -> dict[str, str]:
    """Hashes of an engine's answers: the classes or scores, and the logits behind them."""
    found = {}
    for name, array in (("predictions", result.predictions), ("logits", result.logits)):
        if np.size(array):
            digest = hashlib.sha256()
            sha256_array(digest, np.asarray(array))
            found[f"{name}_sha256"] = digest.hexdigest()
    return found


def labels_sha256(labels: Any) -> str | None:
    """Hash of the labels; None where there are none."""
    return None if labels is None else sha256_json(np.asarray(labels).tolist())


def adapter_sha256(folder: Path | None) -> dict[str, str] | None:
    """Name -> SHA-256 of an adapter's files; None without an adapter."""
    if folder is None or not folder.is_dir():
        return None
    files = (path for path in sorted(folder.iterdir()) if re.fullmatch(r"adapter_(config|model)\.\w+", path.name))
    return {path.name: sha256_file(path) for path in files if path.stat().st_size <= MOST_FILE_BYTES}


def dependencies() -> dict[str, str]:
    """Installed version of every package that quantkit names as its own, beside those of `versions`.

    Empty where quantkit runs from its sources without being installed: what it names stands in the metadata alone.
    """
    known = versions()
    try:
        required = metadata.requires("quantkit") or []
    except metadata.PackageNotFoundError:
        return {}
    wanted = [line for line in required if not re.search(r"extra == .dev\b", line)]
    names = {re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in wanted}
    found = {}
    for name in sorted(names - known.keys()):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Names of the packages whose versions differ between two of `versions` or `dependencies`, with both numbers."""
    names = sorted(before.keys() | after.keys())
    return [f"{n} {before.get(n, 'none')} -> {after.get(n, 'none')}" for n in names if before.get(n) != after.get(n)]

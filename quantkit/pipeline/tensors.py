"""What a report shows of every tensor: ranges by all methods, their signal to noise ratios, and the loss curves.

Everything is computed here, once, from the histograms of the run, and kept beside the record (tensors.json): a report
only draws it. docs/report.md describes the file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.calibrate import CALIBRATORS, Curve, Threshold, calibrate_histograms, make_calibrator
from quantkit.calibrate.auto import histogram_sqnr_db
from quantkit.collect.histogram import Histogram
from quantkit.collect.store import load_histograms
from quantkit.errors import CalibrationError, ModelError, TableError
from quantkit.files import read_bytes, sha256_file, write_bytes, write_text
from quantkit.network.precision import PrecisionPlan
from quantkit.pipeline.calibration import histograms_path
from quantkit.pipeline.collection import kinds_of
from quantkit.pipeline.workspace import Workspace
from quantkit.report.files import HISTOGRAMS, TENSORS, TENSORS_TYPE, TENSORS_VERSION
from quantkit.tables.table import CalibrationTable
from quantkit.types import Progress

CURVE_POINTS = 200
"""Candidates of a search that are kept for the drawing of one tensor, at most."""
ALL_POINTS = 60_000
"""Candidates that are kept for all tensors together, so that a report of a large network stays below 10 MB."""


def write_tensors(
    workspace: Workspace, table: CalibrationTable, plan: PrecisionPlan, folder: Path, progress: Progress | None = None
) -> dict[str, Any]:
    """Writes tensors.json and, where the histograms of the table are at hand, histograms.npz.

    Args:
        workspace: the model, for the kinds of its tensors.
        table: the ranges that the run uses.
        plan: which tensors are to be INT8.
        folder: where the record lies.
        progress: told after each method.

    Returns:
        The record's part on files: name -> {"path": ..., "sha256": ...}.
    """
    source = histograms_file(table)
    histograms = None if source is None else load_histograms(source).histograms
    value = {
        "_type": TENSORS_TYPE,
        "_version": TENSORS_VERSION,
        "method": table.algorithm,
        "tensors": rows_of(workspace, table, histograms or {}, quantized_by(workspace, plan), progress),
    }
    text = json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    paths = {TENSORS: write_text(folder / f"{TENSORS}.json", text + "\n")}
    if source is not None:
        paths[HISTOGRAMS] = write_bytes(folder / f"{HISTOGRAMS}.npz", read_bytes(source))
    return {name: {"path": path.name, "sha256": sha256_file(path)} for name, path in paths.items()}


def histograms_file(table: CalibrationTable) -> Path | None:
    """Where the cache keeps the histograms that the table was made of; None when it does not."""
    if table.provenance is None:
        return None
    path = histograms_path(replace(table.provenance, method="", parameters={}))
    try:
        return path if path.is_file() and load_histograms(path) else None
    except TableError:
        return None


def quantized_by(workspace: Workspace, plan: PrecisionPlan) -> frozenset[str] | None:
    """The tensors whose ranges the INT8 graph asks for; None where the backend chooses them itself."""
    from quantkit.network.qdq import required_tensors

    if workspace.backend.places_int8:
        return None
    try:
        return frozenset(required_tensors(workspace.network.proto, plan))
    except ModelError:
        return None


def rows_of(
    workspace: Workspace,
    table: CalibrationTable,
    histograms: Mapping[str, Histogram],
    quantized: Collection[str] | None,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """One JSON object a tensor, in the table's order."""
    kinds, aliases = kinds_of(workspace), workspace.network.aliases()
    own = {name: histograms[name] for name in table.names if name in histograms and aliases.get(name) not in histograms}
    thresholds = thresholds_of(own, kinds.kinds, kinds.unmasked, progress)
    rows = []
    for name in table.names:
        entry, source = table[name], aliases.get(name)
        row = {
            "name": name,
            "kind": kinds.kinds.get(name, ""),
            "method": entry.method,
            "reason": entry.reason,
            "amax": entry.amax if math.isfinite(entry.amax) else None,
            "minimum": entry.minimum,
            "maximum": entry.maximum,
            "quantized": None if quantized is None else name in quantized,
        }
        if source in own:
            row["same_as"] = source
        elif name in own:
            of_tensor = {method: found[name] for method, found in thresholds.items()}
            row |= searched(own[name], entry.amax, of_tensor, points_for(len(own)))
        rows.append(row)
    return rows


def thresholds_of(
    histograms: Mapping[str, Histogram],
    kinds: Mapping[str, str],
    unmasked: Mapping[str, str],
    progress: Progress | None = None,
) -> dict[str, dict[str, Threshold]]:
    """Method -> tensor -> threshold, by every method with its default parameters; a method that fails is left out."""
    found = {}
    for done, method in enumerate(CALIBRATORS):
        if progress is not None:
            progress(done, len(CALIBRATORS))
        try:
            found[method] = calibrate_histograms(
                histograms, make_calibrator(method), kinds=kinds, unmasked=unmasked, curve=True
            )
        except CalibrationError:
            continue
    return found


def searched(
    histogram: Histogram, amax: float, thresholds: Mapping[str, Threshold], points: int = CURVE_POINTS
) -> dict[str, Any]:
    """What the histogram of one tensor tells: counts, and range, signal to noise ratio and curve of every method."""
    curves = {t.curve.kind: thinned(t.curve, points) for t in thresholds.values() if t.curve is not None}
    return {
        "values": histogram.total,
        "zeros": histogram.zero_count,
        "masked": histogram.masked_count,
        "sqnr_db": sqnr_of(histogram, amax),
        "ranges": {method: threshold.amax for method, threshold in thresholds.items()},
        "sqnr_by_method": {method: sqnr_of(histogram, t.amax) for method, t in thresholds.items()},
        "curves": curves,
    }


def sqnr_of(histogram: Histogram, amax: float) -> float | None:
    """Estimated dB of the symmetric INT8 round trip; None where there is no signal, no range or no noise."""
    if amax <= 0 or histogram.amax == 0:
        return None
    # 127 times the scale of float32's largest number is beyond float32.
    ratio = histogram_sqnr_db(histogram, amax if math.isfinite(amax) else histogram.amax)
    return round(ratio, 2) if math.isfinite(ratio) else None


def points_for(tensors: int) -> int:
    """How many candidates a tensor's curve may keep when there are so many tensors."""
    return max(20, min(CURVE_POINTS, ALL_POINTS // max(tensors, 1)))


def thinned(curve: Curve, points: int = CURVE_POINTS) -> dict[str, Any]:
    """Of every group of neighbouring candidates the best one, `points` groups; None for a loss that is ruled out.

    What is drawn is thus the lower edge of the curve, and the least loss of all is on it.
    """
    groups = np.array_split(np.arange(curve.candidates.size), min(points, curve.candidates.size))
    keep = [int(group[np.argmin(curve.losses[group])]) for group in groups]
    at = [float(f"{x:.6g}") for x in curve.candidates[keep]]
    return {"at": at, "loss": [float(f"{x:.5g}") if math.isfinite(x) else None for x in curve.losses[keep]]}

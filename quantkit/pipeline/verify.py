"""Proof of a cache: every threshold computed again from the histograms, and compared bit for bit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.calibrate import CALIBRATORS, Calibrator, calibrate_histograms, make_calibrator
from quantkit.collect.histogram import Histogram
from quantkit.errors import InputError, TableError
from quantkit.pipeline.from_histograms import read_collected
from quantkit.qparams import amax_from_scale
from quantkit.tables.formats import read_table
from quantkit.tables.table import CalibrationTable


@dataclass(frozen=True)
class Row:
    """One tensor: the scale in the cache, the one computed here, and how far they are apart.

    Args:
        name: of the tensor.
        theirs: float32 scale in the cache.
        ours: float32 scale computed from the histogram; None when there is no histogram.
        bins: distance of the thresholds in bins of the histogram; 0 when the scales are equal bit for bit.
    """

    name: str
    theirs: np.float32
    ours: np.float32 | None
    bins: float

    @property
    def verdict(self) -> str:
        """One of "equal", "differs", "no histogram", and "infinite" where TensorRT wrote no finite scale."""
        if not np.isfinite(self.theirs):
            return "infinite"
        if self.ours is None:
            return "no histogram"
        return "equal" if self.ours == self.theirs else "differs"

    def as_json(self) -> dict[str, Any]:
        """The row with scales as numbers."""
        ours = None if self.ours is None else float(self.ours)
        bins = self.bins if math.isfinite(self.bins) else None
        theirs = float(self.theirs) if np.isfinite(self.theirs) else None
        return {"tensor": self.name, "theirs": theirs, "ours": ours, "verdict": self.verdict, "bins": bins}


def verify(cache: Path, histograms: Path, method: str = "", parameters: Mapping[str, Any] | None = None) -> list[Row]:
    """Compares every tensor of a table with what the histograms give.

    Args:
        cache: a TensorRT calibration cache, or quantkit's own table.
        histograms: a file of TensorRT's write_histogram_cache, or of quantkit.
        method: the calibrator; empty takes the one that the cache names.
        parameters: its parameters; those that the cache names are the default.

    Raises:
        TableError: a file cannot be read, or they have no tensor in common.
        InputError: the cache does not say by which method it was made.
    """
    loaded = read_table(cache)
    table = loaded.table
    collected = read_collected(histograms)
    found = collected.histograms
    calibrator = calibrator_of(table, method, parameters or {})
    if not any(name in found for name in table.names):
        raise TableError(
            f"{histograms} has none of the {len(table)} tensors of {cache}.", "Give the histograms of the same network."
        )
    # Methods that look at a tensor's kind may need histograms of tensors that the table does not name.
    wanted = {*table.names, *collected.unmasked.values()}
    histograms_wanted = {name: histogram for name, histogram in found.items() if name in wanted}
    thresholds = calibrate_histograms(histograms_wanted, calibrator, kinds=collected.kinds, unmasked=collected.unmasked)
    rows = [compare(name, table, found.get(name), thresholds) for name in table.names]
    return rows + [Row(name, np.float32(np.inf), None, math.nan) for name in loaded.infinite]


def compare(name: str, table: CalibrationTable, histogram: Histogram | None, thresholds: Mapping[str, Any]) -> Row:
    """One tensor's row."""
    theirs = table[name].scale
    if histogram is None:
        return Row(name, theirs, None, math.nan)
    ours = thresholds[name].scale
    if ours == theirs:
        return Row(name, theirs, ours, 0.0)
    distance = float(amax_from_scale(float(theirs))) - thresholds[name].amax
    return Row(name, theirs, ours, distance / histogram.bin_width if histogram.bin_width else math.inf)


def calibrator_of(table: CalibrationTable, method: str, parameters: Mapping[str, Any]) -> Calibrator:
    """The calibrator that made a table, as far as the table says; options win."""
    name = method or table.algorithm
    if not name:
        raise InputError("The cache does not say by which method it was made.", "Name it with --method.")
    own = table.parameters if name == table.algorithm else {}
    # A table read from a TensorRT cache keeps its header among the parameters; those are not the calibrator's.
    stored = {field.name: own[field.name] for field in fields(CALIBRATORS[name]) if field.name in own}
    return make_calibrator(name, **{**stored, **parameters})

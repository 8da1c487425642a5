"""Calibration tables: the scales of a model's tensors, in quantkit's JSON and in TensorRT's cache text."""

from __future__ import annotations

from quantkit.tables.provenance import Provenance
from quantkit.tables.table import CalibrationTable, Entry, load_table

__all__ = ["CalibrationTable", "Entry", "Provenance", "load_table"]

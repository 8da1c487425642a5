"""From histograms to a table, whatever the histograms come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, cast

from quantkit.calibrate.base import Calibrator, Threshold
from quantkit.collect.histogram import Histogram
from quantkit.tables.provenance import Provenance
from quantkit.tables.table import CalibrationTable, Entry


def table_from(
    histograms: Mapping[str, Histogram],
    calibrator: Calibrator,
    thresholds: Mapping[str, Threshold],
    provenance: Provenance | None = None,
) -> CalibrationTable:
    """The table of thresholds that a calibrator gave, with the signed extremes of the histograms beside them."""
    entries = {
        name: Entry(
            scale=threshold.scale,
            minimum=histograms[name].minimum,
            maximum=histograms[name].maximum,
            method=threshold.method,
            reason=threshold.reason or set_apart(histograms[name]),
        )
        for name, threshold in thresholds.items()
    }
    parameters = parameters_of(calibrator)
    if provenance is not None:
        provenance = replace(provenance, method=calibrator.name, parameters=parameters)
    return CalibrationTable(entries, calibrator.name, parameters, provenance)


def set_apart(histogram: Histogram) -> str:
    """A word on mask logits that were left out of a histogram; empty when there were none."""
    return f"{histogram.masked_count} mask logits set apart" if histogram.masked_count else ""


def parameters_of(calibrator: Calibrator) -> dict[str, Any]:
    """The calibrator's parameters by name."""
    return {field.name: getattr(calibrator, field.name) for field in fields(cast(Any, calibrator))}

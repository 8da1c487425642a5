"""What is wrong, odd or worth knowing about a calibration table; with the model, whether they belong together."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quantkit.qparams import INT8_MAX
from quantkit.tables.scan import Finding, Scanned
from quantkit.tables.table import CalibrationTable

UNNAMED = re.compile(r"\(Unnamed Layer\* [0-9]+\) \[")
"""How TensorRT calls tensors that the model has no name for."""

PLAUSIBLE = (2.0**-30, 2.0**20)
"""Scales of activations lie well inside; 1 in 10 random bit patterns does."""
MOST, FEW = 0.9, 0.5
MEDIAN_LIMIT = 1.0
"""The median scale of a network is about 0.01 to 0.05 (recorded: 0.011 to 0.049), so 1 / scale is about 20 to 90."""
ENOUGH = 8
UNIT_OUTPUT = re.compile(r"(?:^|[/\[])(?:softmax|sigmoid|tanh|erf)[^/]*$", re.IGNORECASE)
"""Names of tensors that lie between -1 and 1: their scale is 1 / 127 or less, its reciprocal 127 or more."""
TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class ModelFacts:
    """What of a model matters to a table.

    Attributes:
        label: what it is called in messages.
        names: every tensor, constants included.
        needed: tensors whose scales the Q/DQ placement asks for, each with the names under which a table may hold it.
        sha256: hash as provenance has it; empty when the model cannot be loaded as a network.
    """

    label: str
    names: frozenset[str]
    needed: tuple[tuple[str, ...], ...] = ()
    sha256: str = ""


def validate(
    scanned: Scanned, model: ModelFacts | None = None, versions: Mapping[str, str] | None = None
) -> list[Finding]:
    """All findings, errors first.

    Args:
        scanned: what `scan` made of the file.
        model: the model that the table should fit; None checks the table alone.
        versions: package -> version installed here, to compare with those that the table was made with.
    """
    findings = [*scanned.findings, *zeros(scanned.bits), *upside_down(scanned)]
    if scanned.loaded is not None:
        findings += [Finding("note", "format", note) for note in scanned.loaded.notes]
        findings += provenance(scanned.loaded.table, model, versions or {})
    if model is not None:
        findings += names(scanned.bits, model)
    order = ("error", "warning", "note")
    return sorted(findings, key=lambda finding: order.index(finding.level))


def zeros(bits: Mapping[str, int]) -> list[Finding]:
    """Scales that are zero, or too small to divide by."""
    found = []
    for name, pattern in bits.items():
        value = float(np.uint32(pattern).view(np.float32))
        if pattern == 0:
            text = "the scale is 0: the tensor was zero throughout, and what reads it stays in FP32."
            found.append(Finding("warning", "zero", text, name))
        elif 0 < value < TINY:
            text = f"the scale {value:g} is below the normal float32 numbers; kernels that divide by it overflow."
            found.append(Finding("warning", "subnormal", text, name))
    return found


def upside_down(scanned: Scanned) -> list[Finding]:
    """Scales with their bytes in the wrong order, or 127 / amax where amax / 127 belongs."""
    patterns = np.array([p for p in scanned.bits.values() if p], np.uint32)
    if not patterns.size:
        return []
    as_is, swapped = share(patterns), share(patterns.byteswap())
    if as_is < FEW and swapped > MOST:
        text = (
            f"{as_is:.0%} of the scales lie where scales lie, and {swapped:.0%} would with their bytes the other way "
            "round: the file was written on, or for, the other byte order. TensorRT writes the most significant byte "
            "first."
        )
        return [Finding("error", "byte order", text)]
    odd = []
    for name, pattern in scanned.bits.items():
        one = np.array([pattern], np.uint32)
        if pattern and not share(one) and share(one.byteswap()):
            value, other = one.view(np.float32)[0], one.byteswap().view(np.float32)[0]
            text = f"the scale {value:g} is no usual one; with its bytes the other way round it would be {other:g}."
            odd.append(Finding("warning", "byte order", text, name))
    return odd or reciprocal(scanned)


def share(patterns: npt.NDArray[np.uint32]) -> float:
    """Share of bit patterns that are float32 numbers as activations have them for scales."""
    values = patterns.view(np.float32)
    return float(np.mean((values >= PLAUSIBLE[0]) & (values <= PLAUSIBLE[1])))


def reciprocal(scanned: Scanned) -> list[Finding]:
    """Tables that hold 1 / scale: by the extremes where they are known, else by tensors that cannot exceed 1."""
    table = scanned.loaded.table if scanned.loaded else CalibrationTable({})
    seen = {
        name: (float(entry.scale) * INT8_MAX, max(abs(entry.minimum), abs(entry.maximum)))
        for name, entry in table.entries.items()
        if entry.scale and entry.minimum is not None and entry.maximum is not None
    }
    # A threshold may exceed the largest value seen, but only up to the end of its histogram, twice that value.
    wide = [name for name, (amax, most) in seen.items() if most and amax > 4 * most]
    if len(wide) > FEW * len(seen):
        turned = [name for name in wide if 2**-6 < INT8_MAX**2 / seen[name][0] / seen[name][1] <= 4]
        meaning = "1 / scale" if len(turned) > MOST * len(wide) else "something other than amax / 127"
        text = f"{len(wide)} of {len(seen)} thresholds are over four times the largest value seen: these are {meaning}."
        return [Finding("error", "reciprocal", text)]
    values = {name: float(np.uint32(p).view(np.float32)) for name, p in scanned.bits.items() if 0 < p < 0x7F800000}
    if len(values) < ENOUGH or float(np.median(list(values.values()))) <= MEDIAN_LIMIT:
        return []
    median = float(np.median(list(values.values())))
    bounded = {name: value for name, value in values.items() if UNIT_OUTPUT.search(name)}
    if bounded and all(value > 100 for value in bounded.values()):
        name, value = next(iter(bounded.items()))
        text = (
            f"{name!r} lies between -1 and 1, so its scale is at most 0.00787, not {value:g}: the file holds 1 / scale."
        )
        return [Finding("error", "reciprocal", text)]
    text = (
        f"the median scale is {median:.3g}, so half of the tensors would reach beyond {INT8_MAX * median:.3g}; "
        "a network's scales are usually below 0.1. If these are 1 / scale, the median threshold is "
        f"{INT8_MAX / median:.3g}."
    )
    return [Finding("warning", "reciprocal", text)]


def names(bits: Mapping[str, int], model: ModelFacts) -> list[Finding]:
    """Entries that the model has no tensor for, and tensors that the table has no entry for."""
    unknown = [name for name in bits if name not in model.names]
    own = [name for name in unknown if UNNAMED.match(name)]
    strange = [name for name in unknown if not UNNAMED.match(name)]
    found = []
    if bits and len(unknown) == len(bits):
        text = f"not one of the {len(bits)} tensors is among the {len(model.names)} of {model.label}."
        return [Finding("error", "other model", text)]
    for name in strange:
        close = difflib.get_close_matches(name, model.names, n=1) if len(strange) <= 20 else []
        text = f"{model.label} has no such tensor" + (f"; the closest is {close[0]}." if close else ".")
        found.append(Finding("warning", "not in model", text, name))
    if own:
        text = f"{len(own)} entries have names that TensorRT gave to layers without one; no model has them."
        found.append(Finding("note", "unnamed", text))
    for aliases in model.needed:
        if not any(name in bits for name in aliases):
            text = "the model's INT8 products read it, and the table has no scale for it."
            found.append(Finding("warning", "no scale", text, aliases[0]))
    return found


def provenance(table: CalibrationTable, model: ModelFacts | None, versions: Mapping[str, str]) -> list[Finding]:
    """Whether the table says where it came from, agrees with itself, and is of this very model."""
    origin = table.provenance
    if origin is None:
        text = "the file does not say of which model and data it is, so that cannot be checked."
        return [Finding("note", "provenance", text)]
    found = []
    if (origin.method, origin.parameters) != (table.algorithm, table.parameters):
        text = f"the provenance names the method {origin.method!r}, the table {table.algorithm!r}, or other parameters."
        found.append(Finding("warning", "provenance", text))
    changed = [
        f"{name} {old}, here {new}" for name, old in origin.versions.items() if (new := versions.get(name, old)) != old
    ]
    if changed:
        found.append(Finding("note", "versions", f"made with {'; '.join(changed)}."))
    if model is not None and model.sha256 and origin.model_sha256 != model.sha256:
        text = (
            f"stale: made for the model {origin.model_sha256[:12]}..., and {model.label} is {model.sha256[:12]}...; "
            "weights, graph or names have changed since."
        )
        found.append(Finding("error", "provenance", text))
    elif model is not None and not model.sha256:
        text = f"{model.label} cannot be loaded as a network of quantkit's, so its hash cannot be compared."
        found.append(Finding("note", "provenance", text))
    return found


def worst(findings: Iterable[Finding]) -> str:
    """The highest level among findings; empty when there are none."""
    levels = {finding.level for finding in findings}
    return next((level for level in ("error", "warning", "note") if level in levels), "")

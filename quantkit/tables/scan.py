"""Reading a table to find everything wrong with it, where the ordinary readers stop at the first thing."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from quantkit.errors import QuantkitError
from quantkit.tables import json_text, trt_text
from quantkit.tables.formats import Loaded, parse
from quantkit.tables.strict_json import check_values
from quantkit.tables.table import CalibrationTable, check_count, decode, shorten

Level = Literal["error", "warning", "note"]

_LINE = re.compile(r"(.+): ([0-9a-fA-F]{1,8})", re.DOTALL)


@dataclass(frozen=True)
class Finding:
    """One thing that was noticed.

    Attributes:
        level: "error" (no build should use the table), "warning" (look at it) or "note".
        code: the kind of finding, in one or two words.
        text: what was found, in a sentence.
        tensor: name of the tensor, empty where it is about the whole table.
    """

    level: Level
    code: str
    text: str
    tensor: str = ""


@dataclass(frozen=True)
class Scanned:
    """A table as far as it could be read.

    Attributes:
        bits: tensor -> the 32 bits of its scale, unusable scales included.
        loaded: the table, when the ordinary reader takes the file.
        findings: what was wrong while reading.
    """

    bits: dict[str, int]
    loaded: Loaded | None
    findings: tuple[Finding, ...]


def scan(data: bytes, source: str = "calibration table", kind: str | None = None) -> Scanned:
    """Reads a table of any format; never raises on what stands in it."""
    try:
        loaded = parse(data, source, kind)
    except QuantkitError as error:
        bits, findings = _leniently(data, kind)
        if not findings:
            findings = [Finding("error", "unreadable", f"{error.message} {error.hint}".strip())]
        return Scanned(bits, None, tuple(findings))
    if loaded.infinite:
        bits, findings = _leniently(data, loaded.format)
        return Scanned(bits, replace(loaded, notes=()), tuple(findings))
    return Scanned(bits_of(loaded.table), loaded, ())


def bits_of(table: CalibrationTable) -> dict[str, int]:
    """Tensor -> the 32 bits of its scale."""
    return {name: int(entry.scale.view(np.uint32)) for name, entry in table.entries.items()}


def _leniently(data: bytes, kind: str | None) -> tuple[dict[str, int], list[Finding]]:
    """Bits and findings of a damaged TensorRT cache or JSON table; nothing of another format."""
    try:
        text = decode(data, "")
        check_count(text.count("\n") - 1, "")
        check_values(text, "")
    except QuantkitError:
        return {}, []
    if kind in (None, "tensorrt") and trt_text.looks_like(text):
        return _trt_lines(text)
    if kind in (None, "json") and json_text.looks_like(data):
        return _json_entries(text)
    return {}, []


def _trt_lines(text: str) -> tuple[dict[str, int], list[Finding]]:
    """What the lines of a TensorRT cache hold; all bad lines are listed."""
    header, *lines = (line.removesuffix("\r") for line in text.rstrip(trt_text.END).split("\n"))
    bits: dict[str, int] = {}
    findings = []
    try:
        trt_text.loads(header)
    except QuantkitError as error:
        findings.append(Finding("error", "header", f"{error.message} {error.hint}".strip()))
    for number, line in enumerate(lines, start=2):
        match = _LINE.fullmatch(line)
        if match is None:
            said = f"line {number}: expected `name: hexadecimal scale`, found {shorten(line)!r}."
            findings.append(Finding("error", "malformed", said))
        elif match[1] in bits:
            said = f"line {number}: stands in an earlier line already."
            findings.append(Finding("error", "twice", said, match[1]))
        else:
            bits[match[1]] = int(match[2], 16)
    return bits, [*findings, *unusable(bits)]


def _json_entries(text: str) -> tuple[dict[str, int], list[Finding]]:
    """What the entries of a JSON table hold, NaN and Infinity included."""
    try:
        document: Any = json.loads(text)
    except (ValueError, RecursionError):
        return {}, []
    entries = document.get("entries") if isinstance(document, dict) else None
    if not isinstance(entries, dict):
        return {}, []
    bits = {}
    for name, entry in entries.items():
        value = entry.get("scale") if isinstance(entry, dict) else None
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            with np.errstate(over="ignore", under="ignore"):
                try:
                    bits[name] = int(np.float32(value).view(np.uint32))
                except OverflowError:
                    bits[name] = int(np.float32(np.inf).view(np.uint32))
    return bits, unusable(bits)


def unusable(bits: dict[str, int]) -> list[Finding]:
    """Errors for scales that are NaN, infinite or negative."""
    found = []
    for name, pattern in bits.items():
        value = np.uint32(pattern).view(np.float32)
        if pattern < 0x7F800000:
            continue
        code = "NaN" if np.isnan(value) else "Inf" if np.isinf(value) else "negative"
        found.append(Finding("error", code, f"the scale is {value} ({pattern:x}); no build can use it.", name))
    return found

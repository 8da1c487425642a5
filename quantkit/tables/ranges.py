"""Dynamic ranges: tensor -> amax as a decimal number, in JSON or a line each, the form that many tools exchange.

TensorRT's `set_dynamic_range(-amax, amax)` makes amax / 127 the scale. A float32 amax that gives a scale exactly exists
for most scales, but not for all; where there is none, the number is 127 times the scale in float64, which is exact.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from quantkit.errors import TableError
from quantkit.qparams import INT8_MAX, scale_from_amax
from quantkit.tables.strict_json import parse_json
from quantkit.tables.table import CalibrationTable, Entry, check_count, decode, shorten, to_scale

WRAPPERS: tuple[tuple[str, ...], ...] = (("act_quant_info",), ("tensor_scales",), ("tensorrt", "blob_range"))
"""Where tools keep the ranges in a larger JSON object: PPQ, TAO Toolkit, MQBench."""

NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,4})?")
LONGEST_LINE = 4096


def amax_of(scale: np.float32) -> float:
    """The number whose 127th part is `scale`: the nearest float32 that gives it, else the exact product in float64."""
    with np.errstate(over="ignore", under="ignore"):
        nearest = np.float32(float(scale) * INT8_MAX)
        if np.isfinite(nearest) and scale_from_amax(float(nearest)) == scale:
            return float(nearest)
    return float(scale) * INT8_MAX


def entry_of(low: float, high: float, *, extremes: bool) -> Entry:
    """The entry of a range: scale is the larger magnitude / 127, divided in float64 and rounded to float32.

    Raises:
        TableError: an end is no finite number, they are out of order, or no float32 scale is left of them.
    """
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise TableError(f"The range from {low} to {high} is not one of finite numbers in order.")
    scale = to_scale(max(abs(low), abs(high)) / INT8_MAX)
    return Entry(scale, low, high) if extremes else Entry(scale)


def entry_of_upper_end(value: float, where: str) -> Entry:
    """The entry of a number that onnxruntime may have written; `where` starts every message.

    Raises:
        TableError: it is negative. onnxruntime writes max(highest, lowest), so a tensor of [-50, -3] stands as -3.
    """
    if value < 0:
        raise TableError(
            f"{where}{value} is the upper end of a range below zero, from which the threshold does not follow.",
            "Read onnxruntime's calibration.json, which has both ends.",
        )
    try:
        return entry_of(0.0, value, extremes=False)
    except TableError as error:
        raise TableError(where + error.message) from error


def dumps_json(table: CalibrationTable) -> str:
    """`{"tensor": amax, ...}`, a tensor a line; what TensorRT's `set_dynamic_range` is to be given."""
    lines = ",\n".join(f"  {_text(name)}: {_text(amax_of(entry.scale))}" for name, entry in table.entries.items())
    return f"{{\n{lines}\n}}\n" if lines else "{}\n"


def loads_json(data: bytes | str, source: str = "dynamic ranges") -> CalibrationTable:
    """The table in a JSON object of ranges: numbers (amax) or pairs [min, max]; see also `from_json`.

    Raises:
        TableError: not such an object; the tensor is named.
    """
    return from_json(parse_json(decode(data, source), source), source)


def from_json(document: Any, source: str) -> CalibrationTable:
    """As `loads_json`, of a parsed document; the objects of `WRAPPERS` are looked into."""
    ranges, where = document, ""
    for path in WRAPPERS:
        inner = document
        for key in path:
            inner = inner.get(key) if isinstance(inner, dict) else None
        if isinstance(inner, dict):
            ranges, where = inner, ".".join(path)
            break
    if not isinstance(ranges, dict):
        raise TableError(f"{source}: expected a JSON object tensor -> range, found {type(document).__name__}.")
    check_count(len(ranges), source)
    entries = {name: _entry(value, f"{source}: tensor {shorten(name)!r}: ") for name, value in ranges.items()}
    return CalibrationTable(entries, parameters={"ranges": where} if where else {})


def _entry(value: Any, where: str) -> Entry:
    """The entry of one JSON value."""
    pair = isinstance(value, list) and len(value) == 2
    numbers = value if pair else [value]
    if not all(isinstance(number, (int, float)) and not isinstance(number, bool) for number in numbers):
        found = repr(value) if isinstance(value, str) else type(value).__name__
        raise TableError(f"{where}expected amax or [min, max], found {shorten(found)}.")
    try:
        low, high = (float(number) for number in (numbers if pair else (0, value)))
        if not pair and high < 0:
            raise TableError(f"amax is {high}, expected 0 or more.")
        return entry_of(low, high, extremes=pair)
    except OverflowError as error:
        raise TableError(f"{where}the number is beyond float64.") from error
    except TableError as error:
        raise TableError(where + error.message) from error


def dumps_text(table: CalibrationTable) -> str:
    """`name amax` a line, in decimal, as onnxruntime's `calibration.cache` has it.

    Raises:
        TableError: a name would be read back as another.
    """
    lines = []
    for name, entry in table.entries.items():
        line = f"{name} {amax_of(entry.scale)!r}"
        read = parse_line(line)
        if any(c in name for c in "\r\n") or read is None or read[0] != name:
            raise TableError(
                f"The tensor name {shorten(name)!r} cannot stand in a text of names and numbers.",
                "Write JSON, or a TensorRT cache.",
            )
        lines.append(line + "\n")
    return "".join(lines)


def loads_text(data: bytes | str, source: str = "dynamic ranges") -> CalibrationTable:
    """The table in lines of `name value` or `name: value`; LF or CRLF, empty lines are skipped.

    Raises:
        TableError: a line of another form, a name given twice, a negative number; source and line are named.
    """
    entries: dict[str, Entry] = {}
    text = decode(data, source)
    check_count(text.count("\n") - 1, source)
    for number, name, value in _lines(text.split("\n"), source):
        where = f"{source}, line {number}: "
        if name in entries:
            raise TableError(
                f"{where}the tensor {shorten(name)!r} stands in an earlier line.", "Remove one of the two."
            )
        entries[name] = entry_of_upper_end(value, f"{where}tensor {shorten(name)!r}: ")
    return CalibrationTable(entries)


def _lines(lines: Iterable[str], source: str) -> Iterable[tuple[int, str, float]]:
    """Number, name and value of every line that is not empty."""
    for number, line in enumerate(lines, start=1):
        text = line.removesuffix("\r")
        if not text.strip():
            continue
        read = parse_line(text)
        if read is None:
            raise TableError(f"{source}, line {number}: expected a name and a number, found {shorten(text)!r}.")
        yield number, *read


def looks_like_text(text: str) -> bool:
    """Whether the first line that is not empty is a name and a decimal number."""
    start = text[: 4 * LONGEST_LINE].lstrip("\r\n")
    return parse_line(start.partition("\n")[0].removesuffix("\r")) is not None


def parse_line(line: str) -> tuple[str, float] | None:
    """Name and number of `name value` (onnxruntime) or `name: value` (sampleINT8API); None of other lines."""
    head, _, digits = line.rstrip(" \t").rpartition(" ")
    name = head.rstrip(" ").removesuffix(":")
    if not name or len(line) > LONGEST_LINE or not NUMBER.fullmatch(digits):
        return None
    return name, float(digits)


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)

"""TensorRT's calibration cache as text: a header line, then `name: scale` a line.

The format as TensorRT 8.6 writes it (recordings of all four of its calibrators are reproduced byte for byte):

- header `TRT-8600-EntropyCalibration2`, `TRT-8600-EntropyCalibration` or `TRT-8600-MinMaxCalibration`; the Legacy
  calibrator writes `0 <cutoff> <quantile>` instead, both as hexadecimal bits of a float64;
- every line after it: name, colon, space, hexadecimal bits of the float32 scale. Hexadecimal numbers are lower case,
  most significant digit first, without leading zeros; zero is `0`. Names may contain `: `, so the last one separates.

TensorRT writes `7f800000`, infinity, for a tensor in which it saw an infinite value (the additive mask of a BERT whose
export fills in -inf, and the scores it is added to). Published caches of TensorRT 8.5, 8.6 and 10.1 have such lines. No
build can use them, and the others are sound, so they are left out and named.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from quantkit.errors import TableError, UnknownNameError
from quantkit.tables.table import CalibrationTable, Entry, check_count, decode, shorten

DEFAULT_VERSION = 8600
LEGACY = "LegacyCalibration"
METHODS = {
    "EntropyCalibration2": "entropy",
    "EntropyCalibration": "entropy",
    "MinMaxCalibration": "minmax",
    LEGACY: "legacy",
}
"""TensorRT's algorithm -> quantkit's method. LegacyCalibration stands for the header line without a name."""
DEFAULT_ALGORITHM = "EntropyCalibration2"
_ALGORITHM_OF = {"entropy": DEFAULT_ALGORITHM, "minmax": "MinMaxCalibration", "legacy": LEGACY}
_LEGACY_DEFAULTS = {"regression_cutoff": 1.0, "quantile": 0.9999}

END = "\r\n\0"
"""What may follow the last scale; a program in C that writes its string's terminator leaves a zero byte."""
HEADER_KEYS = ("tensorrt_algorithm", "tensorrt_version")
"""Parameters of a table that keep the header it was read with; a writer may be asked for others."""

_TRT_HEADER = re.compile(r"TRT-([0-9]{1,9})-([A-Za-z0-9_]+)")
_LEGACY_HEADER = re.compile(r"0 ([0-9a-fA-F]{1,16}) ([0-9a-fA-F]{1,16})")
_LINE = re.compile(r"(.+): ([0-9a-fA-F]{1,8})", re.DOTALL)  # greedy: the last ": " separates
_INFINITY_BITS = 0x7F800000
MOST_NAMED = 3
"""Tensors that a remark names one by one."""


def dumps(table: CalibrationTable, *, algorithm: str | None = None, version: int | None = None) -> str:
    """The cache text of `table`, ending in a newline as TensorRT's does.

    TensorRT takes a cache only when the header names the algorithm of the calibrator that reads it; the scales below
    it may come from any method. So a method TensorRT does not know (percentile, mse) is written for an Entropy2
    calibrator, and any other can be by `algorithm`.

    Raises:
        UnknownNameError: `algorithm` is none of METHODS.
        TableError: a name holds a line break, or `version` is no positive number.
    """
    lines = [_header(table, algorithm, version)]
    for name, entry in table.entries.items():
        if "\n" in name:
            raise TableError(f"The tensor name {name!r} holds a line break, which a TensorRT cache cannot express.")
        lines.append(f"{name}: {int(entry.scale.view(np.uint32)):x}")
    return "\n".join(lines) + "\n"


def loads(data: bytes | str, source: str = "calibration cache") -> CalibrationTable:
    """The table of `read`, for those who need not know what it lacks."""
    return read(data, source)[0]


def read(data: bytes | str, source: str = "calibration cache") -> tuple[CalibrationTable, tuple[str, ...]]:
    """The table in a cache's text, and the names of tensors that it lacks because their scale is infinite.

    Args:
        data: the text; LF or CRLF, last newline or none.
        source: names the text in messages.

    Raises:
        TableError: a header of no known calibrator, a line that is no `name: hex`, a name given twice, a negative or
            NaN scale, no finite scale at all; source and line number are named.
    """
    text = decode(data, source)
    check_count(text.count("\n") - 1, source)
    lines = [line.removesuffix("\r") for line in text.rstrip(END).split("\n")]
    method, parameters = _read_header(lines[0], source)
    entries: dict[str, Entry] = {}
    infinite: list[str] = []
    first_line: dict[str, int] = {}
    for number, line in enumerate(lines[1:], start=2):
        if not (match := _LINE.fullmatch(line)):
            raise TableError(f"{source}, line {number}: expected `name: hexadecimal scale`, found {shorten(line)!r}.")
        name, digits = match.groups()
        if name in first_line:
            message = (
                f"{source}, line {number}: the tensor {shorten(name)!r} stands in line {first_line[name]} already."
            )
            raise TableError(message, "Remove one of the two.")
        bits = int(digits, 16)
        first_line[name] = number
        if bits == _INFINITY_BITS:
            infinite.append(name)
            continue
        if bits > _INFINITY_BITS:  # the sign bit, minus infinity and all NaNs lie up here
            value = np.uint32(bits).view(np.float32)
            message = (
                f"{source}, line {number}: the scale {digits} of {shorten(name)!r} is {value}; no build can use it."
            )
            raise TableError(message, "Calibrate again; a finite scale of 0 or more is expected.")
        entries[name] = Entry(np.uint32(bits).view(np.float32), method=method)
    if infinite and not entries:
        raise TableError(
            f"{source}: the scales of all {len(infinite)} tensors are infinite; no build can use any.",
            "The calibration data had an infinite value, or the model computes one; calibrate again without it.",
        )
    return CalibrationTable(entries, algorithm=method, parameters=parameters), tuple(infinite)


def infinite_note(names: Sequence[str]) -> str:
    """What a reader should know about tensors with an infinite scale; empty where there is none."""
    if not names:
        return ""
    shown = ", ".join(names[:MOST_NAMED]) + (f" and {len(names) - MOST_NAMED} more" if names[MOST_NAMED:] else "")
    return f"Left out, because TensorRT wrote an infinite scale, which no build can use: {shown}."


def looks_like(text: str) -> bool:
    """Whether the first line is a header, of a known calibrator or not."""
    first = text[:256].partition("\n")[0].removesuffix("\r")
    return first.startswith("TRT-") or _LEGACY_HEADER.fullmatch(first) is not None


def version_number(text: str) -> int:
    """The number in a header for a version: "8.6" gives 8600, "10.3.0" gives 100300; a number stays as it is.

    Raises:
        TableError: it is no version.
    """
    match = re.fullmatch(r"([0-9]{1,3})\.([0-9]{1,2})(?:\.([0-9]{1,2}))?", text)
    if match is None:
        if re.fullmatch(r"[0-9]{4,9}", text):
            return int(text)
        raise TableError(f"{text!r} is no TensorRT version.", "Give one such as 8.6 or 10.3.0.")
    return header_number(*(int(part or 0) for part in match.groups()))


def header_number(major: int, minor: int, patch: int = 0) -> int:
    """A version as TensorRT writes it into headers: 8600 for 8.6.0, and since TensorRT 10 100300 for 10.3.0."""
    return major * (10000 if major >= 10 else 1000) + minor * 100 + patch


def _header(table: CalibrationTable, algorithm: str | None, version: int | None) -> str:
    """The first line."""
    own = table.parameters
    name = algorithm or own.get("tensorrt_algorithm") or _ALGORITHM_OF.get(table.algorithm, DEFAULT_ALGORITHM)
    if name not in METHODS:
        raise UnknownNameError("TensorRT calibration algorithm", str(name), METHODS)
    if name == LEGACY:
        return " ".join(["0", *(_f64_hex(key, own.get(key, default)) for key, default in _LEGACY_DEFAULTS.items())])
    number = version if version is not None else own.get("tensorrt_version", DEFAULT_VERSION)
    if not isinstance(number, int) or not 0 < number < 10**9:
        raise TableError(f"The TensorRT version is {number!r}, expected a positive number such as {DEFAULT_VERSION}.")
    return f"TRT-{number}-{name}"


def _read_header(line: str, source: str) -> tuple[str, dict[str, Any]]:
    """Method and parameters that the first line names."""
    if match := _TRT_HEADER.fullmatch(line):
        version, algorithm = int(match[1]), match[2]
        if algorithm in METHODS and algorithm != LEGACY and version:
            return METHODS[algorithm], {"tensorrt_algorithm": algorithm, "tensorrt_version": version}
    elif match := _LEGACY_HEADER.fullmatch(line):
        cutoff, quantile = (struct.unpack(">d", int(digits, 16).to_bytes(8, "big"))[0] for digits in match.groups())
        if 0 <= cutoff <= 1 and 0 <= quantile <= 1:
            return METHODS[LEGACY], {"quantile": quantile, "regression_cutoff": cutoff}
    known = ", ".join(name for name in METHODS if name != LEGACY)
    raise TableError(
        f"{source}, line 1: expected a table's start, found {shorten(line)!r}.",
        f"A TensorRT cache starts with TRT-<version>-<algorithm> (one of {known}) or, for the Legacy calibrator, "
        "with 0 <cutoff> <quantile>; a JSON table with {.",
    )


def _f64_hex(name: str, value: Any) -> str:
    """Bits of the Legacy parameter `name` as a float64: hexadecimal digits without leading zeros."""
    if not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise TableError(f"The Legacy parameter {name!r} is {value!r}, expected a number from 0 to 1.")
    return f"{int.from_bytes(struct.pack('>d', value), 'big'):x}"

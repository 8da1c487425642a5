"""Every file format a calibration table can have: told apart by content, read, written, and what each cannot hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.errors import InputError, TableError, UnknownNameError
from quantkit.files import read_bytes, write_bytes
from quantkit.tables import json_text, ort_flatbuffers, ort_json, ranges, trt_text
from quantkit.tables.strict_json import parse_json
from quantkit.tables.table import CalibrationTable, decode

MAX_BYTES = 64 << 20
"""Largest table file that is read. A cache line is rarely over 100 bytes, and a model has thousands, not millions."""

ORT_NOTE = (
    "onnxruntime writes max(highest, lowest) here: where the lowest value has the larger magnitude, the range is too "
    "small. Its calibration.json has both ends."
)
EITHER_NOTE = "Read as amax: the file does not say by which method, and has no signed extremes."


@dataclass(frozen=True)
class Format:
    """One file format.

    Attributes:
        name: what users call it.
        suffix: of a file that is to have it, for `by_suffix`; empty where another format owns the suffix.
        says: whose it is, in words.
        reads: bytes and the source's name -> table.
        writes: table, TensorRT's algorithm and version number (or None) -> bytes; the two matter to TensorRT's only.
        note: what a reader of such a file should know.
    """

    name: str
    suffix: str
    says: str
    reads: Callable[[bytes, str], CalibrationTable]
    writes: Callable[[CalibrationTable, str | None, int | None], bytes]
    note: str = ""


FORMATS: dict[str, Format] = {
    entry.name: entry
    for entry in (
        Format(
            "tensorrt",
            ".cache",
            "TensorRT's calibration cache",
            trt_text.loads,
            lambda table, algorithm, version: trt_text.dumps(table, algorithm=algorithm, version=version).encode(),
        ),
        Format(
            "json",
            ".json",
            "quantkit's table",
            json_text.loads,
            lambda table, *_: json_text.dumps(table).encode(),
        ),
        Format(
            "onnxruntime",
            "",
            "onnxruntime's calibration.json",
            ort_json.loads,
            lambda table, *_: ort_json.dumps(table).encode(),
        ),
        Format(
            "flatbuffers",
            ".flatbuffers",
            "onnxruntime's calibration.flatbuffers",
            ort_flatbuffers.loads,
            lambda table, *_: ort_flatbuffers.dumps(table),
            ORT_NOTE,
        ),
        Format(
            "text",
            ".txt",
            "onnxruntime's calibration.cache (name value), or lines of name: value",
            ranges.loads_text,
            lambda table, *_: ranges.dumps_text(table).encode(),
            f"{EITHER_NOTE} If it is onnxruntime's: {ORT_NOTE[0].lower()}{ORT_NOTE[1:]}",
        ),
        Format(
            "ranges",
            "",
            "dynamic ranges in JSON (name: amax)",
            ranges.loads_json,
            lambda table, *_: ranges.dumps_json(table).encode(),
            EITHER_NOTE,
        ),
    )
}


@dataclass(frozen=True)
class Loaded:
    """A table, the format it was in, and what its reader should know.

    Attributes:
        table: what was read.
        format: name of its format.
        notes: remarks, a sentence each.
        infinite: tensors that the table lacks because their scale is infinite; only TensorRT writes such.
    """

    table: CalibrationTable
    format: str
    notes: tuple[str, ...] = ()
    infinite: tuple[str, ...] = ()


def get_format(name: str) -> Format:
    """The format of that name; UnknownNameError when there is none."""
    if name not in FORMATS:
        raise UnknownNameError("table format", name, FORMATS)
    return FORMATS[name]


def by_suffix(path: Path) -> str:
    """The format that a file of this name is written in; JSON for a suffix that says nothing."""
    return next((entry.name for entry in FORMATS.values() if entry.suffix and entry.suffix == path.suffix), "json")


def read_table(path: str | Path, kind: str | None = None) -> Loaded:
    """Reads a table of any format; which one is seen from its content unless `kind` names it.

    Raises:
        TableError: no table, damaged, or larger than MAX_BYTES; the file, and where there is one the line, is named.
        StorageError: no such file, or it cannot be read.
        UnknownNameError: there is no such kind.
    """
    source = Path(path)
    return parse(read_limited(source), str(source), kind)


def read_limited(source: Path) -> bytes:
    """The bytes of a table file, which may not have more than MAX_BYTES."""
    if source.exists() and not source.is_file():
        raise TableError(f"{source} is not a file.", "Give a .json table or a TensorRT calibration cache.")
    if source.is_file() and (size := source.stat().st_size) > MAX_BYTES:
        raise TableError(f"{source} has {size} bytes; a table of more than {MAX_BYTES} is not read.", "Check the path.")
    data: bytes = read_bytes(source)
    return data


def parse(data: bytes, source: str = "calibration table", kind: str | None = None) -> Loaded:
    """As `read_table`, of bytes; `source` names them in messages."""
    if kind is None and json_text.looks_like(data):
        return _parse_json(data, source)
    name = kind or sniff(data, source)
    chosen = get_format(name)
    if name == "tensorrt":
        table, infinite = trt_text.read(data, source)
        return Loaded(table, name, tuple(filter(None, [trt_text.infinite_note(infinite)])), infinite)
    return Loaded(chosen.reads(data, source), name, (chosen.note,) if chosen.note else ())


def sniff(data: bytes, source: str) -> str:
    """Name of the format of bytes that are no JSON."""
    if b"\0" in data and not data.startswith(b"TRT-"):  # no text has one, and every flat buffer begins with some
        return "flatbuffers"
    text = decode(data, source)
    if not trt_text.looks_like(text) and ranges.looks_like_text(text):
        return "text"
    return "tensorrt"  # whose reader says what a table starts with


def _parse_json(data: bytes, source: str) -> Loaded:
    """The table in JSON, whose kind shows after parsing."""
    document: Any = parse_json(decode(data, source), source)
    if ort_json.looks_like(document):
        return Loaded(ort_json.from_json(document, source), "onnxruntime")
    if isinstance(document, dict) and not isinstance(document.get("_type"), str) and _holds_ranges(document):
        return Loaded(ranges.from_json(document, source), "ranges", (EITHER_NOTE,))
    return Loaded(json_text.from_json(document, source), "json")


def _holds_ranges(document: dict[str, Any]) -> bool:
    """Whether an object looks like ranges: its first value is a number or a pair, or a wrapper is there."""
    if any(path[0] in document for path in ranges.WRAPPERS):
        return True
    first = next(iter(document.values()), None)
    return isinstance(first, list) or (isinstance(first, (int, float)) and not isinstance(first, bool))


def write_bytes_of(
    table: CalibrationTable, kind: str, *, algorithm: str | None = None, version: int | None = None
) -> tuple[bytes, list[str]]:
    """The table in a format, and what the format could not hold, a sentence each.

    What is lost is found by reading the bytes back, so nothing can be lost unsaid.

    Raises:
        TableError: a name does not fit the format, or a scale would not come back.
    """
    data = get_format(kind).writes(table, algorithm, version)
    back = parse(data, "the text written", kind).table
    if list(back.scales.items()) != list(table.scales.items()):
        odd = next((a for a, b in zip(table.names, back.names, strict=False) if a != b or table[a] != back[b]), "")
        raise TableError(f"The tensor {odd!r} does not come back from the format {kind}.", "Choose another format.")
    said = lost(table, back)
    if not _recognised(data, kind):
        said.append(f"By its first characters the file looks like another format: read it with --from {kind}.")
    return data, said


def _recognised(data: bytes, kind: str) -> bool:
    """Whether a reader sees by itself which format it has before it; odd tensor names can hide it."""
    try:
        return parse(data).format == kind
    except TableError:
        return False


def save_as(
    table: CalibrationTable,
    path: Path,
    kind: str | None = None,
    *,
    algorithm: str | None = None,
    tensorrt: str | None = None,
) -> dict[str, Any]:
    """Writes a table atomically; gives "file", "format", "tensors" and "lost", as JSON values.

    Args:
        table: what to write.
        path: where to.
        kind: the format; None takes the one of the suffix.
        algorithm: calibrator in a TensorRT cache's header; None keeps the table's own.
        tensorrt: version in that header, such as "10.3"; None keeps the table's own.

    Raises:
        InputError: an option of TensorRT's cache was given for another format.
        TableError: the format cannot hold a name. StorageError: the file cannot be written.
    """
    chosen = kind or by_suffix(path)
    if (algorithm or tensorrt) and chosen != "tensorrt":
        raise InputError(
            f"--tensorrt and --algorithm belong to TensorRT's cache, not to {chosen}.", "Add --to tensorrt."
        )
    version = trt_text.version_number(tensorrt) if tensorrt else None
    data, said = write_bytes_of(table, chosen, algorithm=algorithm, version=version)
    write_bytes(path, data)
    return {"file": str(path), "format": chosen, "tensors": len(table), "lost": said}


def lost(table: CalibrationTable, back: CalibrationTable) -> list[str]:
    """What of `table` is not in `back`, a table with the same scales; a sentence each."""
    said = []
    pairs = [(entry, back.entries[name]) for name, entry in table.entries.items()]
    extremes = sum((a.minimum, a.maximum) != (b.minimum, b.maximum) and a.minimum is not None for a, b in pairs)
    if extremes:
        said.append(
            f"The signed extremes of {extremes} tensors are left out: only the symmetric range remains, so an "
            "asymmetric grid cannot be made from it."
        )
    if (provenance := table.provenance) is not None and back.provenance != provenance:
        said.append(
            f"The provenance is left out (model {provenance.model_sha256[:12]}, {provenance.samples} samples): "
            "nothing ties this file to model and data."
        )
    if table.algorithm and back.algorithm != table.algorithm:
        reads = f"reads as {back.algorithm}" if back.algorithm else "is left out"
        said.append(f"The method {table.algorithm!r} {reads}.")
    dropped = [
        key
        for key, value in table.parameters.items()
        if back.parameters.get(key) != value and not (key in back.parameters and key in trt_text.HEADER_KEYS)
    ]
    if dropped:
        said.append(f"Parameters left out: {', '.join(dropped)}.")
    if reasons := sum(bool(a.reason) and a.reason != b.reason for a, b in pairs):
        said.append(f"The calibrator's reasons for {reasons} tensors are left out.")
    mixed = sum(a.method not in ("", table.algorithm) and a.method != b.method for a, b in pairs)
    if mixed:
        said.append(f"The methods of {mixed} tensors that were chosen one by one are left out.")
    return said

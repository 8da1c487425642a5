"""onnxruntime's `calibration.flatbuffers`: what its TensorRT execution provider reads.

The schema: table TrtTable { dict: [KeyValue]; }, table KeyValue { key: string; value: string; }, where value is a
dynamic range (amax) in decimal. Little endian; every offset is relative to where it stands.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from quantkit.errors import TableError
from quantkit.tables.ranges import NUMBER, amax_of, entry_of_upper_end
from quantkit.tables.table import CalibrationTable, Entry, check_count, shorten

LONGEST_VALUE = 64


def dumps(table: CalibrationTable) -> bytes:
    """The table as a flat buffer, tensors in the table's order."""
    pairs = [(name.encode(), repr(amax_of(entry.scale)).encode()) for name, entry in table.entries.items()]
    root, vector = 12, 20
    record_vtable = vector + 4 + 4 * len(pairs)
    records = record_vtable + 8
    strings = records + 12 * len(pairs)
    out = bytearray(struct.pack("<I3H2xiI", root, 6, 8, 4, root - 4, vector - root - 4))
    out += struct.pack("<I", len(pairs))
    for i in range(len(pairs)):
        out += struct.pack("<I", records + 12 * i - len(out))
    out += struct.pack("<4H", 8, 12, 4, 8)  # the KeyValue tables share it: key at 4, value at 8
    tail = bytearray()
    for i, pair in enumerate(pairs):
        place = records + 12 * i
        out += struct.pack("<i", place - record_vtable)
        for text in pair:
            out += struct.pack("<I", strings + len(tail) - len(out))
            tail += struct.pack("<I", len(text)) + text + b"\0" * (4 - len(text) % 4)
    return bytes(out + tail)


def loads(data: bytes, source: str = "calibration.flatbuffers") -> CalibrationTable:
    """The table in a flat buffer.

    Raises:
        TableError: an offset leads out of the file, a name is given twice or is not UTF-8, a value is no decimal
            number of 0 or more.
    """
    entries: dict[str, Entry] = {}
    try:
        for key, value in _pairs(data, source):
            name, digits = key.decode(), value.decode("ascii")
            where = f"{source}: tensor {shorten(name)!r}: "
            if name in entries:
                raise TableError(f"{where}the name stands in it twice.")
            if len(digits) > LONGEST_VALUE or not NUMBER.fullmatch(digits):
                raise TableError(f"{where}expected a decimal number, found {shorten(digits)!r}.")
            entries[name] = entry_of_upper_end(float(digits), where)
    except (struct.error, UnicodeDecodeError, IndexError) as error:
        raise TableError(
            f"{source} is no calibration.flatbuffers of onnxruntime, or it is damaged ({error}).",
            "A table is JSON or text; histograms, engines and models are binary files of other kinds.",
        ) from error
    return CalibrationTable(entries)


def _pairs(data: bytes, source: str) -> Iterator[tuple[bytes, bytes]]:
    """Key and value of every entry, in the order of the vector."""
    (root,) = struct.unpack_from("<I", data, 0)
    vector = _follow(data, _field(data, root, 0))
    (count,) = struct.unpack_from("<I", data, vector)
    if count > (len(data) - vector) // 4:
        raise IndexError(f"{count} entries do not fit into {len(data)} bytes")
    check_count(count, source)
    budget = len(data)  # strings that overlap each other must not add up to more than the file
    for i in range(count):
        record = _follow(data, vector + 4 + 4 * i)
        pair = tuple(_string(data, _follow(data, _field(data, record, slot))) for slot in (0, 1))
        budget -= sum(len(text) for text in pair)
        if budget < 0:
            raise IndexError("its strings overlap")
        yield pair[0], pair[1]


def _field(data: bytes, table: int, slot: int) -> int:
    """Place of a table's field."""
    (back,) = struct.unpack_from("<i", data, _inside(data, table))
    vtable = _inside(data, table - int(back))
    (size,) = struct.unpack_from("<H", data, vtable)
    if 4 + 2 * slot + 2 > size:
        raise IndexError(f"field {slot} is missing")
    (offset,) = struct.unpack_from("<H", data, vtable + 4 + 2 * slot)
    if not offset:
        raise IndexError(f"field {slot} is missing")
    return table + int(offset)


def _follow(data: bytes, place: int) -> int:
    """Where the offset that stands at `place` leads."""
    (offset,) = struct.unpack_from("<I", data, _inside(data, place))
    return _inside(data, place + offset)


def _inside(data: bytes, place: int) -> int:
    """`place`, when it is one; struct takes negative places from the end."""
    if not 0 <= place < len(data):
        raise IndexError(f"offset {place} lies outside the {len(data)} bytes")
    return place


def _string(data: bytes, place: int) -> bytes:
    (length,) = struct.unpack_from("<I", data, place)
    if length > len(data) - place - 4:
        raise IndexError(f"a string of {length} bytes does not fit")
    return data[place + 4 : place + 4 + length]

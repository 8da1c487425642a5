"""Histogram files: quantkit's own .npz, and TensorRT's histogram cache.

quantkit's file is a zip archive that `numpy.load` opens without pickle. Its members:

    header.npy    uint8 (n,): UTF-8 JSON {"_type": "quantkit.histograms", "_version": 1, "names": [...], "modes": [...],
                  "mask_logits": [...], "meta": {...}, "sha256": "..."}
    counts.npy    unsigned integers (tensors, 2048), of the smallest width that holds the largest count
    numbers.npy   float64 (tensors, 4): range, amax, minimum, maximum
    kinds.npy     int64 (tensors, 5): NaN, Inf, zero, edge and masked counts

`sha256` covers the other members (dtype, shape, bytes) and the rest of the header. The same histograms make the same
bytes. Nothing in the file is executed, and no size it states is believed before it has been compared with the others.

TensorRT's cache (`write_histogram_cache` of IInt8LegacyCalibrator) holds for every tensor its name, a line feed, then
little-endian float64 bin width, float64 range (2048 bin widths), float64 largest |x|, uint32 2048, uint64 2048 and 2048
uint64 counts. It knows neither signs nor zeros: a histogram read from it has minimum -amax, maximum amax, zero_count 0.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from quantkit.collect.histogram import NUM_BINS, Histogram
from quantkit.errors import QuantkitError, TableError
from quantkit.files import npz_bytes, read_bytes, sha256_array, write_bytes

FILE_TYPE, FILE_VERSION = "quantkit.histograms", 1
MEMBERS = ("header", "counts", "numbers", "kinds")
NUMBERS = ("upper", "amax", "minimum", "maximum")
KINDS = ("nan_count", "inf_count", "zero_count", "edge_count", "masked_count")
COUNT_TYPES = ("|u1", "<u2", "<u4", "<u8")
MAX_TENSORS = 1 << 16
MAX_HEADER_BYTES = 64 << 20
MAX_NPY_HEADER = 256
NPY_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '([|<][uif][1248])', 'fortran_order': False, 'shape': \(([\d, ]{1,60})\), \} *\n",
    re.DOTALL,
)
TRT_RECORD = struct.Struct("<dddIQ")

DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, ValueError, LookupError, RuntimeError),
    *(TypeError, ArithmeticError, AttributeError),
)
"""What comes of an archive that is damaged, or forged, while its members are read."""
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class HistogramFile:
    """What a histogram file holds: tensor -> histogram in the order saved, and the JSON object saved with them."""

    histograms: dict[str, Histogram]
    meta: dict[str, Any]


def save_histograms(path: str | Path, histograms: Mapping[str, Histogram], meta: Mapping[str, Any]) -> Path:
    """Writes histograms and `meta` (JSON values only, no NaN) atomically to `path` and returns it.

    Raises:
        StorageError: the file cannot be written.
        TableError: `meta` is not JSON.
    """
    packed = pack(histograms)
    arrays = {name: packed.pop(name) for name in MEMBERS[1:]}
    header: dict[str, Any] = {"_type": FILE_TYPE, "_version": FILE_VERSION, **packed, "meta": dict(meta)}
    try:
        header["sha256"] = _digest(header, arrays)
        text = json.dumps(header, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise TableError(f"The meta data of a histogram file must be JSON: {error}.") from error
    members = {"header": np.frombuffer(text, np.uint8), **arrays}
    return write_bytes(Path(path), npz_bytes(members, compressed=True))


def pack(histograms: Mapping[str, Histogram]) -> dict[str, Any]:
    """Histograms as plain values: lists names, modes, mask_logits; arrays counts, numbers, kinds as in the file."""
    found = list(histograms.values())
    return {
        "names": list(histograms),
        "modes": [h.mode for h in found],
        "mask_logits": [h.mask_logits for h in found],
        "counts": _compact(np.array([h.counts for h in found], np.int64).reshape(-1, NUM_BINS)),
        "numbers": np.array([[getattr(h, f) for f in NUMBERS] for h in found], "<f8").reshape(-1, len(NUMBERS)),
        "kinds": np.array([[getattr(h, f) for f in KINDS] for h in found], "<i8").reshape(-1, len(KINDS)),
    }


def unpack(packed: Mapping[str, Any]) -> dict[str, Histogram]:
    """The histograms that `pack` took.

    Raises:
        CalibrationError: the values contradict each other.
    """
    return {
        name: Histogram(
            counts=packed["counts"][i].astype(np.int64),
            mode=packed["modes"][i],
            mask_logits=packed["mask_logits"][i],
            **dict(zip(NUMBERS, packed["numbers"][i].tolist(), strict=True)),
            **dict(zip(KINDS, packed["kinds"][i].tolist(), strict=True)),
        )
        for i, name in enumerate(packed["names"])
    }


def load_histograms(path: str | Path) -> HistogramFile:
    """Reads what `save_histograms` wrote.

    Raises:
        StorageError: there is no such file, or it cannot be read.
        TableError: it is no histogram file, of a later version, or damaged.
    """
    data: bytes = read_bytes(Path(path))
    hint = "Collect the histograms again."
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return _read_archive(archive)
    except TableError as error:
        raise TableError(f"{path} cannot be used: {error.message}", hint) from error
    except QuantkitError as error:
        raise TableError(f"{path} holds an impossible histogram: {error.message}", hint) from error
    except DAMAGED as error:
        raise TableError(f"{path} is no histogram file, or a damaged one ({error}).", hint) from error


def _compact(counts: npt.NDArray[np.int64]) -> Array:
    """The counts in the narrowest unsigned type that holds them."""
    most = int(counts.max(initial=0))
    return counts.astype(next(t for t in COUNT_TYPES if most <= np.iinfo(t).max))


def _digest(header: Mapping[str, Any], arrays: Mapping[str, Array]) -> str:
    """SHA-256 over the header without its own digest, and the arrays in the order of MEMBERS."""
    rest = {key: value for key, value in header.items() if key != "sha256"}
    digest = hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":"), allow_nan=False).encode())
    for name in MEMBERS[1:]:
        sha256_array(digest, arrays[name])
    return digest.hexdigest()


def _read_archive(archive: zipfile.ZipFile) -> HistogramFile:
    """The checked content of an open archive."""
    if sorted(archive.namelist()) != sorted(f"{name}.npy" for name in MEMBERS):
        raise TableError(f"its members are not {', '.join(MEMBERS)}.")
    header = json.loads(read_member(archive, "header", ("|u1",), None).tobytes())
    if not isinstance(header, dict) or header.get("_type") != FILE_TYPE:
        raise TableError(f"its type is not {FILE_TYPE!r}.")
    if header.get("_version") != FILE_VERSION:
        raise TableError(f"its format version is {header.get('_version')!r}; this release reads {FILE_VERSION}.")
    names, modes, masks, meta = (header.get(key) for key in ("names", "modes", "mask_logits", "meta"))
    lists = all(isinstance(value, list) and len(value) == len(names or []) for value in (names, modes, masks))
    if not (isinstance(meta, dict) and isinstance(names, list) and lists and all(isinstance(n, str) for n in names)):
        raise TableError("its header lacks names, modes, mask_logits or meta.")
    if len(names) > MAX_TENSORS or len(set(names)) != len(names):
        raise TableError(f"it names {len(names)} tensors, more than {MAX_TENSORS} or some of them twice.")
    arrays = {
        "counts": read_member(archive, "counts", COUNT_TYPES, (len(names), NUM_BINS)),
        "numbers": read_member(archive, "numbers", ("<f8",), (len(names), len(NUMBERS))),
        "kinds": read_member(archive, "kinds", ("<i8",), (len(names), len(KINDS))),
    }
    if _digest(header, arrays) != header.get("sha256"):
        raise TableError("its SHA-256 does not fit its content.")
    if int(arrays["counts"].max(initial=0)) > np.iinfo(np.int64).max:
        raise TableError("a count is beyond 63 bits.")
    histograms = unpack({"names": names, "modes": modes, "mask_logits": masks, **arrays})
    return HistogramFile(histograms, meta)


def read_member(archive: zipfile.ZipFile, name: str, dtypes: tuple[str, ...], shape: tuple[int, ...] | None) -> Array:
    """One array, whose size is checked before its bytes are unpacked; `shape` None: any 1-D array up to 64 MiB.

    The .npy header is read here and not by NumPy, whose parser ends in all kinds of errors on a damaged one.
    """
    info = archive.getinfo(f"{name}.npy")
    most = math.prod(shape) * np.dtype(dtypes[-1]).itemsize if shape else MAX_HEADER_BYTES
    if info.file_size > most + MAX_NPY_HEADER:
        raise TableError(f"{name} says {info.file_size} bytes, where at most {most + MAX_NPY_HEADER} are expected.")
    with archive.open(info) as file:
        data = file.read(most + MAX_NPY_HEADER)  # checks the CRC when it meets the end
    header = NPY_HEADER.match(data)
    if header is None or header.end() != 10 + int.from_bytes(data[8:10], "little"):
        raise TableError(f"{name} is no array in NumPy's format 1.0.")
    dtype, found = header[1].decode(), tuple(int(n) for n in header[2].split(b",") if n.strip())
    if dtype not in dtypes or (found != shape if shape else len(found) != 1):
        raise TableError(f"{name} is {dtype} {found}; expected {' or '.join(dtypes)} {shape or '(n,)'}.")
    if len(data) - header.end() != math.prod(found) * np.dtype(dtype).itemsize:
        raise TableError(f"{name} has {len(data) - header.end()} bytes of data, which is not {dtype} {found}.")
    return np.frombuffer(data, dtype, offset=header.end()).reshape(found)


def load_trt_histogram_cache(data: bytes) -> dict[str, Histogram]:
    """Histograms of a TensorRT histogram cache (unpacked bytes), in the file's order, in mode "tensorrt".

    Raises:
        TableError: the bytes are cut short or are no such cache.
    """
    histograms: dict[str, Histogram] = {}
    position = 0
    while position < len(data):
        end = data.find(b"\n", position)
        try:
            if end < 0:
                raise TableError("there is no name.")
            name = data[position:end].decode()
            if name in histograms:
                raise TableError(f"{name!r} stands in it twice.")
            histograms[name] = _read_trt_record(data, end + 1)
        except (QuantkitError, UnicodeDecodeError, struct.error) as error:
            raise TableError(
                f"No TensorRT histogram cache, or a damaged one, at byte {position}: {error}",
                "It should hold what write_histogram_cache was given, unpacked.",
            ) from error
        position = end + 1 + TRT_RECORD.size + 8 * NUM_BINS
    return histograms


def _read_trt_record(data: bytes, start: int) -> Histogram:
    """The histogram whose record begins at byte `start`."""
    width, upper, amax, bins, length = TRT_RECORD.unpack_from(data, start)
    start += TRT_RECORD.size
    if bins != NUM_BINS or length != NUM_BINS:
        raise TableError(f"a histogram of {bins} and {length} bins; TensorRT's have {NUM_BINS}.")
    if len(data) - start < 8 * NUM_BINS:
        raise TableError(f"{len(data) - start} bytes are left for {8 * NUM_BINS} bytes of counts.")
    if not (math.isfinite(upper) and width * NUM_BINS == upper):
        raise TableError(f"bin width {width} and range {upper} do not fit each other.")
    counts = np.frombuffer(data, "<u8", NUM_BINS, start)
    if int(counts.max()) > np.iinfo(np.int64).max:
        raise TableError("a count is beyond 63 bits.")
    return Histogram(counts.astype(np.int64), upper, amax, 0.0 - amax, amax, 0, 0, 0, "tensorrt")


def dump_trt_histogram_cache(histograms: Mapping[str, Histogram]) -> bytes:
    """The bytes of a TensorRT histogram cache; what was read by `load_trt_histogram_cache` comes out unchanged.

    Raises:
        TableError: a name holds a line feed.
    """
    parts: list[bytes] = []
    for name, h in histograms.items():
        if "\n" in name:
            raise TableError(f"The name {name!r} holds a line feed, which ends a name in TensorRT's cache.")
        parts += [f"{name}\n".encode(), TRT_RECORD.pack(h.bin_width, h.upper, h.amax, NUM_BINS, NUM_BINS)]
        parts.append(h.counts.astype("<u8").tobytes())
    return b"".join(parts)

"""The calibration table: tensor name -> INT8 scale, with what is known about how it was found."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np

from quantkit.errors import TableError
from quantkit.files import write_text
from quantkit.qparams import amax_from_scale
from quantkit.registry import Registry
from quantkit.tables.provenance import Provenance

MAX_TENSORS = 1 << 18
"""Most tensors of a table. Models have thousands; a file of millions of lines would cost gigabytes and minutes."""


class _Writer(Protocol):
    def __call__(self, table: CalibrationTable, *, algorithm: str | None, version: int | None) -> str: ...


WRITERS: Registry[_Writer] = Registry(
    "table format",
    {"json": "quantkit.tables.json_text:dumps", "tensorrt": "quantkit.tables.trt_text:dumps"},
)


@dataclass(frozen=True)
class Entry:
    """What the table says about one tensor.

    Args:
        scale: float32 scale, amax / 127; finite, not negative. 0 stands for a tensor that was zero throughout.
        minimum, maximum: signed extremes seen (float32 values); None when not known. An asymmetric grid needs both.
        method: calibrator that gave the scale; empty when not known.
        reason: why the calibrator departed from its usual rule; empty when it did not.

    Raises:
        TableError: a NaN, infinite or negative scale, or extremes that are not finite or out of order.
    """

    scale: np.float32
    minimum: float | None = None
    maximum: float | None = None
    method: str = ""
    reason: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", to_scale(float(self.scale)))
        for extreme in (self.minimum, self.maximum):
            if extreme is not None and not math.isfinite(extreme):
                raise TableError(f"The extreme {extreme} is not a finite number.")
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            raise TableError(f"The minimum {self.minimum} is above the maximum {self.maximum}.")

    @property
    def amax(self) -> float:
        """Threshold that the scale stands for: 127 times scale, in float32 (inf where that is above float32)."""
        with np.errstate(over="ignore"):
            return float(amax_from_scale(float(self.scale)))


def to_scale(value: float) -> np.float32:
    """`value` rounded to a float32 scale.

    Raises:
        TableError: NaN, infinite, negative (also -0.0), above float32, or so small that only zero is left.
    """
    with np.errstate(over="ignore", under="ignore"):
        scale: np.float32 = np.float32(value)
    if not np.isfinite(scale) or np.signbit(scale):
        raise TableError(f"The scale {value} is no finite float32 number of 0 or more.")
    if scale == 0 and value != 0:
        raise TableError(f"The scale {value} is smaller than any float32 number.")
    return scale


@dataclass(frozen=True)
class CalibrationTable:
    """Scales by tensor name, in the order in which they were found or read.

    Args:
        entries: tensor name -> Entry; copied and then read-only.
        algorithm: name of the method ("entropy"); empty when not known.
        parameters: the method's parameters as JSON values. A table read from a TensorRT cache holds the header's
            "tensorrt_algorithm" and "tensorrt_version" (Legacy: "quantile" and "regression_cutoff") here.
        provenance: where the numbers came from; None for a foreign cache.

    Raises:
        TableError: a name is empty or cannot be written as UTF-8.
    """

    entries: Mapping[str, Entry]
    algorithm: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    provenance: Provenance | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "entries", MappingProxyType(dict(self.entries)))
        object.__setattr__(self, "parameters", dict(self.parameters))
        for name in self.entries:
            if not name or not _encodable(name):
                raise TableError(f"{name!r} cannot be a tensor's name: it is empty or has no UTF-8 form.")

    @property
    def names(self) -> tuple[str, ...]:
        """Tensor names in order."""
        return tuple(self.entries)

    @property
    def scales(self) -> dict[str, np.float32]:
        """Tensor name -> float32 scale, a fresh dict in order."""
        return {name: entry.scale for name, entry in self.entries.items()}

    def __getitem__(self, name: str) -> Entry:
        try:
            return self.entries[name]
        except KeyError:
            close = difflib.get_close_matches(name, self.entries, n=3)
            hint = f"Close names: {', '.join(close)}." if close else "Is it the table of another model?"
            message = f"The table has no tensor {name!r} among its {len(self)}."
            raise TableError(message, hint) from None

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def dumps(self, kind: str = "json", *, algorithm: str | None = None, version: int | None = None) -> str:
        """The table as text; `docs/formats.md` describes the bytes.

        Args:
            kind: "json" (everything) or "tensorrt" (names and scales).
            algorithm: calibration algorithm named in TensorRT's first line ("EntropyCalibration2"); None takes the
                one the table was read with, else the one its method has. JSON has no such line.
            version: TensorRT version in that line, as 1000 major + 100 minor; None takes the one the table was read
                with, else 8600.

        Raises:
            UnknownNameError: no such kind or algorithm.
            TableError: a name does not fit the format.
        """
        return WRITERS[kind](self, algorithm=algorithm, version=version)

    def save(
        self, path: str | Path, kind: str | None = None, *, algorithm: str | None = None, version: int | None = None
    ) -> Path:
        """Writes `dumps` to `path` atomically and returns the path; kind None is "tensorrt" for *.cache, else "json".

        Raises:
            StorageError: the file cannot be written. Otherwise as `dumps`.
        """
        target = Path(path)
        chosen = kind or ("tensorrt" if target.suffix == ".cache" else "json")
        return write_text(target, self.dumps(chosen, algorithm=algorithm, version=version))


def _encodable(name: str) -> bool:
    """Whether `name` can be written as UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def load_table(path: str | Path) -> CalibrationTable:
    """Reads a table of any format of `docs/formats.md`; which one is seen from its content, not from its name.

    Raises:
        TableError: not a table, damaged, or larger than MAX_BYTES; the file, and where there is one the line, is named.
        StorageError: no such file, or it cannot be read.
    """
    # The formats import this module.
    from quantkit.tables.formats import read_table

    return read_table(path).table


def check_count(count: int, source: str) -> None:
    """Refuses a file that claims more tensors than a table may have; TableError."""
    if count > MAX_TENSORS:
        raise TableError(f"{source} has over {MAX_TENSORS} tensors; that is no calibration table.", "Check the path.")


def decode(data: bytes | str, source: str) -> str:
    """Text of a table file: UTF-8, with or without a byte order mark.

    Raises:
        TableError: bytes that are not UTF-8, with their line.
    """
    if isinstance(data, str):
        return data
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        message = f"{source}, line {line}: byte {error.start} is not UTF-8 text, so this is not a calibration table."
        raise TableError(message, "Histogram files (.npz) and engines are binary; a table is JSON or text.") from error


def shorten(text: str, most: int = 80) -> str:
    """`text` short enough for a message."""
    return text if len(text) <= most else f"{text[: most - 3]}..."

"""onnxruntime's calibration JSON: the ranges of its calibrators, as `write_calibration_table` and the calibration
cache of `quantize_static` write them.

Two forms, told apart by what is in them: `{"tensor": {"CLS": "TensorData", ...}, ...}`, and the same below "data" of an
object with "CLS": "TensorsData" and the calibration method. A tensor's range is "lowest" to "highest", each an object
{"CLS": "numpy.array", "data": number, "dtype": "float32"}; histograms may stand beside them and are not read.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from quantkit.errors import TableError
from quantkit.qparams import INT8_MAX
from quantkit.tables.ranges import amax_of, entry_of
from quantkit.tables.strict_json import parse_json
from quantkit.tables.table import CalibrationTable, Entry, check_count, decode, shorten

METHODS = {"MinMax": "minmax", "Entropy": "entropy", "Percentile": "percentile"}
"""onnxruntime's CalibrationMethod -> quantkit's word for it. Distribution is for float 8 and has none."""
METHOD_KEY = "onnxruntime_method"
DTYPES = ("float32", "float16")


def looks_like(document: Any) -> bool:
    """Whether a JSON document is one of the two forms; an empty object is not."""
    if not isinstance(document, dict):
        return False
    if document.get("CLS") == "TensorsData":
        return True
    return any(isinstance(value, dict) and value.get("CLS") == "TensorData" for value in document.values())


def dumps(table: CalibrationTable) -> str:
    """The table in the form that `onnxruntime.quantization.calibrate.load_tensors_data` reads.

    The range of a tensor is [-amax, amax], or its signed extremes where the larger of them is amax. The numbers are
    exact; onnxruntime rounds them to float32 when it reads them.
    """
    method = table.parameters.get(METHOD_KEY)
    if method not in METHODS:
        method = next((theirs for theirs, ours in METHODS.items() if ours == table.algorithm), "MinMax")
    data = {name: _tensor(*range_of(entry)) for name, entry in table.entries.items()}
    lines = ",\n".join(f"    {_text(name)}: {_text(value)}" for name, value in data.items())
    head = {"CLS": "CalibrationMethod", "value": f"CalibrationMethod.{method}"}
    body = f"{{\n{lines}\n  }}" if lines else "{}"
    return (
        f'{{\n  "CLS": "TensorsData",\n  "calibration_method": {_text(head)},\n'
        f'  "smooth_quant": false,\n  "data": {body}\n}}\n'
    )


def range_of(entry: Entry) -> tuple[float, float]:
    """Lowest and highest: the entry's extremes where they give its scale, else -amax and amax."""
    if entry.minimum is not None and entry.maximum is not None:
        widest = max(abs(entry.minimum), abs(entry.maximum))
        with np.errstate(over="ignore", under="ignore"):
            if np.float32(widest / INT8_MAX) == entry.scale and entry.minimum <= entry.maximum:
                return entry.minimum, entry.maximum
    amax = amax_of(entry.scale)
    return -amax, amax


def loads(data: bytes | str, source: str = "onnxruntime calibration") -> CalibrationTable:
    """The table in a calibration JSON of onnxruntime; see `from_json`.

    Raises:
        TableError: not such JSON, a tensor without range, an end that is no finite number; the tensor is named.
    """
    return from_json(parse_json(decode(data, source), source), source)


def from_json(document: Any, source: str) -> CalibrationTable:
    """As `loads`, of a parsed document. `minimum` and `maximum` are lowest and highest, scale is the larger
    magnitude / 127.
    """
    if not looks_like(document):
        raise TableError(f"{source} is JSON, but no calibration of onnxruntime.")
    tensors, method = document, ""
    if document.get("CLS") == "TensorsData":
        tensors, method = document.get("data"), _method(document.get("calibration_method"))
        if not isinstance(tensors, dict):
            raise TableError(f'{source}: "data" is {type(tensors).__name__}, expected an object tensor -> TensorData.')
    check_count(len(tensors), source)
    ours = METHODS.get(method, "")
    entries = {name: _entry(value, ours, f"{source}: tensor {shorten(name)!r}: ") for name, value in tensors.items()}
    return CalibrationTable(entries, ours, {METHOD_KEY: method} if method else {})


def _method(value: Any) -> str:
    """Name of the calibration method, as "CalibrationMethod.MinMax" ends; empty when there is none."""
    text = value.get("value") if isinstance(value, dict) else value
    return text.rpartition(".")[2] if isinstance(text, str) else ""


def _entry(value: Any, method: str, where: str) -> Entry:
    """The entry of one TensorData object."""
    if not isinstance(value, dict) or value.get("CLS") != "TensorData":
        raise TableError(f"{where}expected a TensorData object.")
    if missing := [key for key in ("lowest", "highest") if key not in value]:
        raise TableError(
            f"{where}there is no {missing[0]!r} in it.",
            "Ranges of the Distribution method (avg, std) have no threshold.",
        )
    low, high = (_number(value[key], key, where) for key in ("lowest", "highest"))
    try:
        # A symmetric range is a threshold, not a pair of extremes; `dumps` writes one where it knows no extremes.
        found = entry_of(low, high, extremes=low != -high)
    except TableError as error:
        raise TableError(where + error.message) from error
    return Entry(found.scale, found.minimum, found.maximum, method)


def _number(value: Any, key: str, where: str) -> float:
    """A number, or the array of one number that onnxruntime makes of it."""
    if isinstance(value, dict):
        if value.get("CLS") != "numpy.array" or value.get("dtype") not in DTYPES:
            raise TableError(f"{where}{key!r} is no numpy.array of {' or '.join(DTYPES)}.")
        value = value.get("data")
    for _ in range(4):  # a calibrator may keep the number in an array of one element
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TableError(f"{where}{key!r} is no single number.")
    try:
        return float(value)
    except OverflowError as error:
        raise TableError(f"{where}{key!r} is beyond float64.") from error


def _tensor(low: float, high: float) -> dict[str, Any]:
    """A range as onnxruntime's encoder writes it."""
    return {"lowest": _array(low), "highest": _array(high), "CLS": "TensorData"}


def _array(value: float) -> dict[str, Any]:
    return {"data": value, "dtype": "float32", "CLS": "numpy.array"}


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)

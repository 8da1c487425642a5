"""Validation: everything wrong is found at once, and recorded tables of TensorRT have nothing wrong."""

from __future__ import annotations

import json
import struct
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantkit.tables import CalibrationTable, Entry, Provenance, load_table
from quantkit.tables.scan import scan
from quantkit.tables.trt_text import loads
from quantkit.tables.validate import ModelFacts, validate, worst

HEADER = "TRT-8600-EntropyCalibration2\n"
ORIGIN = Provenance("a" * 64, "b" * 64, 8, 0, 4, 16, "minmax", {}, "tensorrt", False, "openvino")


def found(data: str | bytes, model: ModelFacts | None = None) -> list[tuple[str, str, str]]:
    """Level, code and tensor of every finding that is not a note."""
    text = data.encode() if isinstance(data, str) else data
    return [(f.level, f.code, f.tensor) for f in validate(scan(text, "x"), model) if f.level != "note"]


def cache_of(scales, order: str = ">") -> str:
    lines = (f"{name}: {struct.pack(order + 'f', scale).hex()}\n" for name, scale in scales)
    return HEADER + "".join(lines)


def usual(count: int = 40, seed: int = 0) -> list[tuple[str, float]]:
    """Scales as networks have them: their logarithm is spread over four decades around 0.03."""
    values = 0.03 * 10 ** np.random.default_rng(seed).uniform(-2, 2, count)
    return [(f"/t_{i}", float(np.float32(value))) for i, value in enumerate(values)]


def test_a_cache_with_everything_wrong_in_it():
    text = HEADER + "a: 3f800000\nb: 7fc00000\nc: 7f800000\nd: bf800000\ne: 0\nf 12\na: 1\nh: 1\n"
    assert Counter(found(text)) == Counter(
        [
            *(("error", "malformed", ""), ("error", "twice", "a"), ("error", "NaN", "b")),
            *(("error", "Inf", "c"), ("error", "negative", "d"), ("warning", "zero", "e")),
            ("warning", "subnormal", "h"),
        ]
    )


def test_an_infinite_scale_in_a_cache_that_can_be_read():
    assert found(HEADER + "a: 3f800000\nmask: 7f800000\n") == [("error", "Inf", "mask")]


def test_a_json_table_with_bad_scales():
    document = json.loads(CalibrationTable({"a": Entry(1.0), "b": Entry(1.0), "c": Entry(1.0)}).dumps())
    document["entries"]["b"]["scale"] = float("nan")
    document["entries"]["c"]["scale"] = 10**400
    assert found(json.dumps(document)) == [("error", "NaN", "b"), ("error", "Inf", "c")]
    assert found('{"a": 1') == [("error", "unreadable", "")]
    assert found("TRT-8600-NoCalibration\na: 1f000000\n")[0] == ("error", "header", "")


@pytest.mark.parametrize("seed", range(20))
def test_bytes_in_the_wrong_order(seed):
    assert found(cache_of(usual(seed=seed))) == []
    assert ("error", "byte order", "") in found(cache_of(usual(seed=seed), "<"))


def test_one_scale_with_its_bytes_in_the_wrong_order():
    scales = usual(30)
    text = cache_of(scales[:-1]) + "odd: " + struct.pack("<f", np.float32(0.0123)).hex() + "\n"
    assert [row for row in found(text) if row[1] == "byte order"] == [("warning", "byte order", "odd")]


@pytest.mark.parametrize("seed", range(20))
def test_reciprocal_scales(seed):
    scales = [(name, 1 / value) for name, value in usual(seed=seed)]
    assert found(cache_of(scales)) == [("warning", "reciprocal", "")]
    bounded = [*scales, ("(Unnamed Layer* 4) [Softmax]_output", 127.0), ("/Tanh_output_0", 130.0)]
    assert found(cache_of(bounded)) == [("error", "reciprocal", "")]


def test_reciprocal_scales_show_in_the_extremes():
    entries = {name: Entry(1 / value, -value * 60, value * 120) for name, value in usual(12)}
    findings = validate(scan(CalibrationTable(entries).dumps().encode()))
    assert (findings[0].level, findings[0].code) == ("error", "reciprocal")
    good = {name: Entry(value, -value * 60, value * 120) for name, value in usual(12)}
    assert found(CalibrationTable(good).dumps()) == []


@pytest.mark.shared
def test_recorded_tables_have_nothing_wrong(shared_dir):
    texts = json.loads((shared_dir / "golden/synthetic/caches.json").read_text())["caches"]
    for name, text in texts.items():
        assert {level for level, *_ in found(text)} <= {"warning"}, name
        assert {code for _, code, _ in found(text)} <= {"zero", "byte order"}, name
    for path in (shared_dir / "golden/minilm_sst2").glob("*.cache"):
        assert found(path.read_bytes()) == []
        table = load_table(path)
        scales = table.scales.items()
        assert ("error", "byte order", "") in found(cache_of(scales, "<"))
        assert found(cache_of([(n, 1 / s) for n, s in scales]))[0][:2] == ("error", "reciprocal")


def test_names_against_a_model():
    model = ModelFacts(
        "m.onnx", frozenset({"/a/MatMul_output_0", "w", "x"}), (("x",), ("y", "z"), ("v", "/a/MatMul_output"))
    )
    text = HEADER + "/a/MatMul_output: 3c010204\nx: 3c010204\n(Unnamed Layer* 3) [Constant]_output: 3c010204\n"
    findings = validate(scan(text.encode()), model)
    rows = [(f.level, f.code, f.tensor) for f in findings if f.code not in ("provenance",)]
    assert rows == [
        ("warning", "not in model", "/a/MatMul_output"),
        ("warning", "no scale", "y"),
        ("note", "unnamed", ""),
    ]
    assert "the closest is /a/MatMul_output_0" in findings[0].text
    other = found(HEADER + "conv: 3c010204\n", model)
    assert other == [("error", "other model", "")]


def test_stale_provenance():
    table = CalibrationTable({"x": Entry(0.1)}, "minmax", {}, ORIGIN)
    names = frozenset({"x"})
    assert found(table.dumps(), ModelFacts("m", names, (), "a" * 64)) == []
    assert found(table.dumps(), ModelFacts("m", names, (), "c" * 64)) == [("error", "provenance", "")]
    edited = replace(table, algorithm="entropy")
    assert found(edited.dumps()) == [("warning", "provenance", "")]
    old = replace(table, provenance=replace(ORIGIN, versions={"numpy": "1.0", "onnx": "1.16"}))
    noted = validate(scan(old.dumps().encode()), None, {"numpy": "2.0", "onnx": "1.16", "scipy": "1"})
    assert [(f.level, f.text) for f in noted] == [("note", "made with numpy 1.0, here 2.0.")]
    unknown = validate(scan(table.dumps().encode()), ModelFacts("m", names))
    assert [(f.level, f.code) for f in unknown] == [("note", "provenance")]
    assert worst(unknown) == "note"
    assert worst([]) == ""


@given(st.binary(max_size=300) | st.text(max_size=200).map(lambda t: (HEADER + t).encode("utf-8", "surrogatepass")))
def test_any_bytes_can_be_validated(data):
    scanned = scan(data)
    findings = validate(scanned, ModelFacts("m", frozenset({"a"})))
    assert (scanned.loaded is None) == any(f.level == "error" and f.code in CODES for f in findings)


CODES = ("unreadable", "malformed", "header", "twice", "NaN", "Inf", "negative")


@given(st.dictionaries(st.text("ab", min_size=1), st.integers(0, 2**32 - 1), max_size=6))
def test_a_cache_is_an_error_exactly_when_its_reader_refuses_it(bits):
    text = HEADER + "".join(f"{name}: {value:x}\n" for name, value in bits.items())
    try:
        loads(text)
        refused = False
    except Exception:
        refused = True
    assert refused == any(f.code in CODES for f in scan(text.encode()).findings)

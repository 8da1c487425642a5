"""quantkit's own table format: nothing is lost, nothing unknown is taken."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantkit.errors import TableError
from quantkit.tables import CalibrationTable, Entry, Provenance
from quantkit.tables.json_text import loads

SCALES = st.integers(0, 0x7F7FFFFF).map(lambda bits: np.uint32(bits).view(np.float32))
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
SIGNED = st.floats(width=32, allow_nan=False, allow_infinity=False)
PARAMETERS = st.dictionaries(
    TEXT, st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT
).filter(lambda values: float("inf") not in values.values() and float("-inf") not in values.values())


@st.composite
def entries(draw):
    extremes = sorted([draw(SIGNED), draw(SIGNED)]) if draw(st.booleans()) else [None, None]
    return Entry(draw(SCALES), *extremes, method=draw(TEXT), reason=draw(TEXT))


PROVENANCES = st.builds(
    Provenance,
    model_sha256=TEXT,
    data_sha256=TEXT,
    samples=st.integers(),
    seed=st.none() | st.integers(),
    batch=st.integers(),
    seq_len=st.none() | st.integers(),
    method=TEXT,
    parameters=PARAMETERS,
    range_mode=TEXT,
    ignore_padding=st.booleans(),
    collector=TEXT,
    versions=st.dictionaries(TEXT, TEXT),
)
TABLES = st.builds(
    CalibrationTable,
    st.dictionaries(TEXT.filter(bool), entries(), max_size=5),
    TEXT,
    PARAMETERS,
    st.none() | PROVENANCES,
)


@given(TABLES)
def test_any_table_round_trips(table):
    text = table.dumps()
    back = loads(text.encode())
    assert back == table
    assert back.names == table.names
    assert [s.tobytes() for s in back.scales.values()] == [s.tobytes() for s in table.scales.values()]
    assert back.dumps() == text


@given(st.recursive(st.none() | st.booleans() | st.floats() | TEXT, lambda c: st.lists(c) | st.dictionaries(TEXT, c)))
def test_any_json_in_any_place_is_a_table_or_a_table_error(value):
    for place in range(4):
        document = json.loads(sample().dumps())
        if place < 3:
            document[("parameters", "provenance", "entries")[place]] = value
        else:
            document["entries"]["a"] = value
        try:
            table = loads(json.dumps(document))
        except TableError:
            continue
        assert loads(table.dumps()) == table


@given(st.text(max_size=100))
def test_any_text_is_refused_with_a_table_error(text):
    with pytest.raises(TableError):
        loads("{" + text)


def sample() -> CalibrationTable:
    scales = {"a": Entry(np.float32(0.1), -1.5, 12.7, "entropy"), "b: c": Entry(np.float32(0), reason="all zero")}
    return CalibrationTable(scales, "entropy", {"groups": 128})


def test_text_is_readable_one_tensor_a_line():
    lines = sample().dumps().split("\n")
    first = '    "a": {"scale": 0.10000000149011612, "minimum": -1.5, "maximum": 12.7, "method": "entropy"},'
    assert lines[0:3] == ["{", '  "_type": "quantkit.CalibrationTable",', '  "_version": 1,']
    assert lines[-6:] == ['  "entries": {', first, '    "b: c": {"scale": 0.0, "reason": "all zero"}', "  }", "}", ""]


def test_empty_table_round_trips():
    assert loads(CalibrationTable({}).dumps()) == CalibrationTable({})


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"_version": 1', '"_version": 2', "format version 2; this quantkit reads version 1"),
        ('"quantkit.CalibrationTable"', '"quantkit.Report"', "not a calibration table"),
        ('"algorithm": "entropy"', '"algorithm": "entropy", "note": ""', "unknown field 'note'"),
        ('"algorithm": "entropy",', "", "the field 'algorithm' is missing"),
        ('"algorithm": "entropy"', '"algorithm": 3', "'algorithm' is int, expected text"),
        ('"provenance": null', '"provenance": []', "'provenance' is list, expected an object"),
        ('"provenance": null', '"provenance": {"seed": 1}', "lacks the field 'model_sha256'"),
        ('"provenance": null', '"provenance": {"sede": 1}', "unknown field 'sede'"),
        ('"reason": "all zero"', '"why": ""', "tensor 'b: c': unknown field 'why'"),
        ('"scale": 0.0, ', "", "tensor 'b: c': the field 'scale' is missing"),
        ('"scale": 0.0', '"scale": true', "tensor 'b: c': 'scale' is bool, expected a number"),
        ('"scale": 0.0', '"scale": "0"', "expected a number"),
        ('"scale": 0.0', '"scale": -1.0', "tensor 'b: c': The scale -1.0"),
        ('"scale": 0.0', '"scale": -0.0', "The scale -0.0"),
        ('"scale": 0.0', '"scale": 1e39', "The scale 1e+39"),
        ('"scale": 0.0', '"scale": 1e-60', "smaller than any float32"),
        ('"scale": 0.0', '"scale": 1' + "0" * 400, "The scale inf"),
        ('"scale": 0.0', '"scale": 1e999', "The scale inf"),
        ('"scale": 0.0', '"scale": NaN', "NaN stands where"),
        ('"minimum": -1.5', '"minimum": 13', "minimum 13.0 is above the maximum 12.7"),
        ('"minimum": -1.5', '"minimum": null', "'minimum' is NoneType"),
        ('"b: c"', '"a"', "the name 'a' stands in it twice"),
        ('"b: c"', '""', "cannot be a tensor's name"),
        ('"b: c"', '"\\ud800"', "cannot be a tensor's name"),
        ('"entries": {', '"entries": [', "line 10: not JSON"),
        ("{\n", "[" * 100_000, "not a calibration table"),
    ],
)
def test_bad_documents_are_refused_in_words(old, new, words):
    text = sample().dumps()
    assert old in text
    with pytest.raises(TableError) as caught:
        loads(text.replace(old, new, 1), "t.json")
    assert words in caught.value.message
    assert "t.json" in caught.value.message


def test_cut_file_names_the_line():
    text = sample().dumps()
    with pytest.raises(TableError, match=r"t\.json, line \d+: not JSON"):
        loads(text[: len(text) // 2], "t.json")


def test_values_that_json_cannot_hold_are_refused():
    for value in (float("nan"), {1, 2}, "\ud800"):
        with pytest.raises(TableError, match="cannot be written as JSON"):
            CalibrationTable({}, parameters={"x": value}).dumps()

"""Every format: recognised, scales through bit for bit, what is lost said, any bytes a table or our own error."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantkit.errors import InputError, TableError, UnknownNameError
from quantkit.tables import CalibrationTable, Entry, Provenance, formats, strict_json
from quantkit.tables import table as table_module
from quantkit.tables.formats import FORMATS, by_suffix, parse, read_table, save_as, write_bytes_of
from quantkit.tables.ranges import amax_of, parse_line
from quantkit.tables.scan import scan

BITS = st.integers(0, 0x7F7FFFFF)
SCALES = BITS.map(lambda bits: np.uint32(bits).view(np.float32))
# What every format can hold: no line break, no blank at an end, no colon at the end, no byte order mark in front.
NAMES = st.text(
    st.characters(exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"], exclude_characters="\ufeff"),
    min_size=1,
    max_size=20,
).filter(lambda name: not name.endswith(":"))
TABLES = st.dictionaries(NAMES, SCALES, min_size=1, max_size=6).map(
    lambda scales: CalibrationTable({name: Entry(scale) for name, scale in scales.items()})
)
PROVENANCE = Provenance("a" * 64, "b" * 64, 8, 0, 4, 16, "minmax", {}, "tensorrt", False, "openvino")


def bits(table: CalibrationTable) -> dict[str, int]:
    return {name: int(entry.scale.view(np.uint32)) for name, entry in table.entries.items()}


@pytest.mark.parametrize("kind", FORMATS)
@given(TABLES)
@settings(max_examples=60)
def test_scales_come_back_bit_for_bit_and_the_format_is_recognised(kind, table):
    data, said = write_bytes_of(table, kind)
    told = any("--from" in sentence for sentence in said)
    loaded = parse(data, "x", kind if told else None)
    assert loaded.format == kind
    assert list(bits(loaded.table).items()) == list(bits(table).items())
    assert write_bytes_of(loaded.table, kind)[0] == data


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("name", ["_type", "_version", "entries", "CLS", "act_quant_info", "tensorrt"])
def test_tensors_named_like_the_marks_of_a_format(kind, name):
    table = CalibrationTable({name: Entry(np.float32(0.5)), "other": Entry(np.float32(2))})
    loaded = parse(write_bytes_of(table, kind)[0], "x")
    assert loaded.format == kind
    assert bits(loaded.table) == bits(table)


def test_text_that_starts_like_json_is_read_when_its_format_is_named():
    table = CalibrationTable({"{": Entry(np.float32(0.5))})
    data, _ = write_bytes_of(table, "text")
    assert bits(parse(data, "x", "text").table) == bits(table)
    with pytest.raises(TableError, match="not JSON"):
        parse(data, "x")


@pytest.mark.parametrize("second", FORMATS)
@pytest.mark.parametrize("first", FORMATS)
def test_from_any_format_to_any_other_and_back(first, second):
    draw = np.random.default_rng(1)
    scales = draw.integers(0, 0x7F7FFFFF, 300, dtype=np.uint32).view(np.float32)
    table = CalibrationTable({f"(Unnamed Layer* {i}) [x]: /a": Entry(scale) for i, scale in enumerate(scales)})
    there = parse(write_bytes_of(table, first)[0]).table
    back = parse(write_bytes_of(there, second)[0]).table
    assert bits(back) == bits(table)


@given(BITS)
def test_amax_is_exact_and_a_float32_where_one_exists(pattern):
    scale = np.uint32(pattern).view(np.float32)
    amax = amax_of(scale)
    with np.errstate(under="ignore"):
        assert np.float32(amax / 127) == scale
    exact = float(scale) * 127
    if exact < 3e38 and float(np.float32(amax)) != amax:  # then no float32 near it gives the scale
        near = np.nextafter(np.float32(exact), np.float32([0, np.inf]))
        assert all(np.float32(float(n) / 127) != scale for n in (np.float32(exact), *near))


@pytest.mark.parametrize("kind", FORMATS)
@given(st.binary(max_size=300))
@settings(max_examples=60)
def test_any_bytes_are_a_table_or_a_table_error(kind, data):
    for asked in (kind, None):
        try:
            table = parse(data, "x", asked).table
        except TableError:
            continue
        assert all(np.isfinite(scale) for scale in table.scales.values())


@pytest.mark.parametrize("kind", FORMATS)
@given(st.data())
@settings(max_examples=60)
def test_a_damaged_file_is_a_table_or_a_table_error(kind, data):
    table = CalibrationTable({name: Entry(np.float32(0.5 + i)) for i, name in enumerate(("a", "/b/c_0", "d: e"))})
    good = bytearray(write_bytes_of(table, kind)[0])
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    for asked in (kind, None):
        try:
            parse(bytes(good[: data.draw(st.integers(0, len(good)))]), "x", asked)
        except TableError:
            continue


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("TensorData"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["CLS", "data", "lowest", "highest", "tensorrt", "blob_range", "a"]), inner)
    ),
    max_leaves=12,
)


@given(JSON)
@settings(max_examples=200)
def test_any_json_is_a_table_or_a_table_error(value):
    text = json.dumps(value).encode()
    for kind in (None, "json", "onnxruntime", "ranges"):
        try:
            parse(text, "x", kind)
        except TableError as error:
            assert error.message.startswith("x")


def test_bytes_that_claim_to_be_large_are_refused_at_once():
    flat = bytearray(write_bytes_of(CalibrationTable({"a": Entry(np.float32(1))}), "flatbuffers")[0])
    flat[20:24] = (2**32 - 1).to_bytes(4, "little")
    with pytest.raises(TableError, match="4294967295 entries do not fit"):
        parse(bytes(flat))


def overlapping(count: int) -> bytes:
    """A flat buffer whose keys are all suffixes of one long string."""
    names = CalibrationTable({f"{i:04}" + "x" * count: Entry(np.float32(1)) for i in range(count)})
    flat = bytearray(write_bytes_of(names, "flatbuffers")[0])
    first = flat.index(b"0000x")
    records = 24 + 4 * count + 8
    for i in range(1, count):
        place = first - 4 + 4 * i  # a length where there is none: bytes of the first name
        offset = records + 12 * i + 4
        flat[place : place + 4] = (count).to_bytes(4, "little")
        flat[offset : offset + 4] = (place - offset).to_bytes(4, "little")
    return bytes(flat)


def test_strings_that_overlap_do_not_multiply_memory():
    data = overlapping(400)
    with pytest.raises(TableError):
        parse(data, "x", "flatbuffers")


@pytest.mark.parametrize(
    ("text", "kind", "scales"),
    [
        ("a 12.7\nb/c 0.0\n", "text", {"a": 0.1, "b/c": 0.0}),
        ("a: 12.7\r\nb: 1e1", "text", {"a": 0.1, "b": 10 / 127}),
        ("(Unnamed Layer* 2) [Constant]_output 127\n\n", "text", {"(Unnamed Layer* 2) [Constant]_output": 1.0}),
        ('{"a": 12.7, "b": [-127, 3]}', "ranges", {"a": 0.1, "b": 1.0}),
        ('{"act_quant_info": {"a": 127}}', "ranges", {"a": 1.0}),
        ('{"tensor_scales": {"a": 254.0}, "other": 1}', "ranges", {"a": 2.0}),
        ('{"tensorrt": {"blob_range": {"a": 127}}, "ppl": {}}', "ranges", {"a": 1.0}),
        ("0 3ff0000000000000 3fefff2e48e8a71e\na: 3f800000\n", "tensorrt", {"a": 1.0}),
        ("TRT-8203-EntropyCalibration2\na: 3f800000\n\0", "tensorrt", {"a": 1.0}),
        ("TRT-100300-MinMaxCalibration\r\n(x) [y]: z: 0003f800\r\n", "tensorrt", {"(x) [y]: z": 3.6438e-40}),
    ],
)
def test_what_other_tools_write_is_read(text, kind, scales):
    loaded = parse(text.encode())
    assert loaded.format == kind
    for name, scale in loaded.table.scales.items():
        assert scale == pytest.approx(np.float32(scales[name]), rel=1e-4)
    assert loaded.table.scales.keys() == scales.keys()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"a 12\nb\n", "line 2: expected a name and a number, found 'b'"),
        (b"a 12\na 13\n", "line 2: the tensor 'a' stands in an earlier line"),
        (b"a 12\nb -3.0\n", "line 2: tensor 'b': -3.0 is the upper end of a range below zero"),
        (b"a 12\nb 1e999\n", "line 2"),
        (b'{"a": -1}', "tensor 'a': amax is -1.0"),
        (b'{"a": 1, "b": "1"}', "tensor 'b': expected amax or [min, max], found '1'."),
        (b'{"a": [3, 2]}', "tensor 'a': The range from 3.0 to 2.0"),
        (b'{"a": [1, 2, 3]}', "found list"),
        (b'{"a": 1' + b"0" * 400 + b"}", "beyond float64"),
        (b'{"a": NaN}', "NaN stands where"),
        (b'{"a": {"CLS": "TensorData", "avg": 1}}', "there is no 'lowest'"),
        (b'{"CLS": "TensorsData", "data": []}', '"data" is list'),
        (b'{"CLS": "TensorsData", "data": {"a": 1}}', "tensor 'a': expected a TensorData object"),
        (b'{"a": {"CLS": "TensorData", "lowest": 0, "highest": {"CLS": "numpy.array", "dtype": "int8"}}}', "'highest'"),
        (b'{"a": {"CLS": "TensorData", "lowest": 1, "highest": 0}}', "tensor 'a': The range from 1.0 to 0.0"),
        (b"\0\0\0\0", "no calibration.flatbuffers"),
        (b"\x7fELF\0\0", "no calibration.flatbuffers"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(text, words):
    with pytest.raises(TableError) as caught:
        parse(text, "file")
    assert words in caught.value.message
    assert "file" in caught.value.message


def test_a_long_line_is_no_hang():
    line = "a" + " " * 4_000_000 + "x"
    with pytest.raises(TableError, match="line 2"):
        parse(f"a 1\n{line}\n".encode())
    assert parse_line("a" + " :" * 2000 + " 1") == ("a" + " :" * 1999 + " ", 1.0)


def test_what_a_format_cannot_hold_is_said():
    entries = {"a": Entry(0.5, -1.0, 63.5, "minmax", "capped"), "b": Entry(1.0, -2.0, 3.0, "entropy")}
    table = CalibrationTable(entries, "minmax", {"x": 1}, PROVENANCE)
    said = {kind: " ".join(write_bytes_of(table, kind)[1]) for kind in FORMATS}
    assert said["json"] == ""
    for kind in ("tensorrt", "flatbuffers", "text", "ranges"):
        assert "signed extremes of 2 tensors" in said[kind]
        assert "The provenance is left out (model aaaaaaaaaaaa, 8 samples)" in said[kind]
        assert "reasons for 1 tensors" in said[kind]
    assert "signed extremes of 1 tensors" in said["onnxruntime"]  # 3.0 is not the threshold of b
    assert "Parameters left out: x." in said["tensorrt"]
    assert "method" not in said["tensorrt"].replace("The methods of", "")
    assert "The method 'minmax' is left out" in said["ranges"]
    assert "The methods of 1 tensors" in said["ranges"]
    percentile = replace(table, algorithm="percentile")
    assert "The method 'percentile' reads as entropy" in " ".join(write_bytes_of(percentile, "tensorrt")[1])


def test_a_name_that_does_not_fit_is_refused():
    table = CalibrationTable({"a\nb": Entry(1.0)})
    for kind in ("tensorrt", "text"):
        with pytest.raises(TableError):
            write_bytes_of(table, kind)
    with pytest.raises(TableError, match="does not come back"):
        write_bytes_of(CalibrationTable({"\ufeffa": Entry(1.0)}), "text")
    with pytest.raises(TableError, match="cannot stand in a text"):
        write_bytes_of(CalibrationTable({"a:": Entry(1.0)}), "text")


def test_names_that_hide_the_format_are_told():
    for name in ("{", "TRT-"):
        data, said = write_bytes_of(CalibrationTable({name: Entry(1.0)}), "text")
        assert said[-1].endswith("--from text.")
        with pytest.raises(TableError):
            parse(data, "x")
        assert parse(data, "x", "text").table.names == (name,)
    for name in ("_type", "tensor_scales", "CLS"):
        data, said = write_bytes_of(CalibrationTable({name: Entry(1.0)}), "ranges")
        assert said == []
        assert parse(data).table.names == (name,)


def test_suffixes_kinds_and_options_of_one_format(tmp_path):
    table = CalibrationTable({"a": Entry(1.0)})
    assert [by_suffix(tmp_path / name) for name in ("a.cache", "a.json", "a.flatbuffers", "a.txt", "a")] == [
        *("tensorrt", "json", "flatbuffers", "text", "json")
    ]
    for version, number in (("8.6", 8600), ("8.6.1", 8601), ("10.3", 100300), ("10.3.0", 100300), ("100301", 100301)):
        result = save_as(table, tmp_path / "a.cache", tensorrt=version, algorithm="MinMaxCalibration")
        assert (tmp_path / "a.cache").read_text().startswith(f"TRT-{number}-MinMaxCalibration\n")
        assert (result["format"], result["tensors"]) == ("tensorrt", 1)
    with pytest.raises(TableError, match="no TensorRT version"):
        save_as(table, tmp_path / "a.cache", tensorrt="ten")
    with pytest.raises(InputError, match="not to json"):
        save_as(table, tmp_path / "a.json", tensorrt="8.6")
    with pytest.raises(UnknownNameError, match="Did you mean ranges"):
        save_as(table, tmp_path / "a", "range")
    with pytest.raises(UnknownNameError):
        read_table(tmp_path / "a.cache", "trt")


@pytest.mark.parametrize("kind", FORMATS)
def test_a_table_of_too_many_tensors_is_refused_before_it_is_built(kind, monkeypatch):
    data = write_bytes_of(CalibrationTable({f"a{i}": Entry(1.0) for i in range(40)}), kind)[0]
    assert len(parse(data).table) == 40
    monkeypatch.setattr(table_module, "MAX_TENSORS", 30)
    with pytest.raises(TableError, match="over 30 tensors"):
        parse(data, "x")
    assert [finding.code for finding in scan(data).findings] == ["unreadable"]


def test_json_of_too_many_values_is_refused_before_it_is_parsed(monkeypatch):
    monkeypatch.setattr(strict_json, "MAX_VALUES", 100)
    for text in (b'{"a":[' + b"[]," * 100 + b"0]}", b"{" + b'"a":{' * 101):
        with pytest.raises(TableError, match="over 100 JSON values"):
            parse(text)
        assert [finding.code for finding in scan(text).findings] == ["unreadable"]


def test_large_files_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "MAX_BYTES", 10)
    (tmp_path / "x.json").write_text('{"a": 1.0}  ')
    with pytest.raises(TableError, match="more than 10 is not read"):
        read_table(tmp_path / "x.json")

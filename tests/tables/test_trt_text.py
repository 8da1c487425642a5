"""TensorRT's cache text: recordings byte for byte, any table, and every way a file can be wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantkit.errors import TableError, UnknownNameError
from quantkit.tables import CalibrationTable, Entry, load_table
from quantkit.tables.formats import parse
from quantkit.tables.trt_text import METHODS, dumps, infinite_note, loads

HEADER = "TRT-8600-EntropyCalibration2\n"
SCALES = st.integers(0, 0x7F7FFFFF).map(lambda bits: np.uint32(bits).view(np.float32))
NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n"), min_size=1, max_size=40)


def recordings(shared_dir: Path) -> dict[str, str]:
    texts = json.loads((shared_dir / "golden/synthetic/caches.json").read_text())["caches"]
    for path in sorted((shared_dir / "golden/minilm_sst2").glob("*.cache")):
        texts[path.name] = path.read_bytes().decode()
    return texts


@pytest.mark.shared
def test_recordings_round_trip_byte_for_byte(shared_dir):
    texts = recordings(shared_dir)
    assert len(texts) == 20
    for name, text in texts.items():
        table = loads(text.encode(), name)
        assert len(table) == text.count("\n") - 1
        assert table.dumps("tensorrt") == text, name
        assert loads(text.removesuffix("\n")) == table


@pytest.mark.shared
def test_recordings_keep_their_headers(shared_dir):
    texts = recordings(shared_dir)
    assert loads(texts["entropy2_nb6"]).parameters == {
        "tensorrt_algorithm": "EntropyCalibration2",
        "tensorrt_version": 8600,
    }
    assert loads(texts["int8_entropy.cache"]).algorithm == "entropy"
    legacy = loads(texts["legacy_q0.99_c0.0_nb6"])
    assert legacy.algorithm == "legacy"
    assert legacy.parameters == {"quantile": 0.99, "regression_cutoff": 0.0}


@given(st.dictionaries(NAMES, SCALES, max_size=8), st.sampled_from(sorted(METHODS)), st.integers(1, 10**8))
def test_any_table_round_trips(scales, algorithm, version):
    table = CalibrationTable({name: Entry(scale) for name, scale in scales.items()})
    text = dumps(table, algorithm=algorithm, version=version)
    back = loads(text.encode())
    assert list(back.scales.items()) == list(scales.items())
    assert {s.tobytes() for s in back.scales.values()} == {s.tobytes() for s in scales.values()}
    assert back.dumps("tensorrt") == text


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda t: (HEADER + t).encode("utf-8", "surrogatepass")))
def test_any_bytes_are_a_table_or_a_table_error(data):
    try:
        table = loads(data)
    except TableError:
        return
    assert loads(table.dumps("tensorrt")) == table


def test_hexadecimal_form():
    scales = {"zero": 0.0, "one": 1.0, "smallest": np.float32(1e-45)}
    table = CalibrationTable({name: Entry(np.float32(value)) for name, value in scales.items()}, "entropy")
    assert table.dumps("tensorrt") == HEADER + "zero: 0\none: 3f800000\nsmallest: 1\n"


def test_names_split_at_the_last_colon():
    name = "(Unnamed Layer* 2) [Constant]_output: 3f: a/b"
    assert loads(f"{HEADER}{name}: 3f800000\n").scales == {name: np.float32(1)}


@pytest.mark.parametrize("ending", ["\n", "\r\n", ""])
@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_line_ends_and_byte_order_marks(start, ending):
    text = start + f"{HEADER}a: 3f800000\nb: 0".replace("\n", ending or "\n") + ending
    assert loads(text.encode()).scales == {"a": np.float32(1), "b": np.float32(0)}


def test_capital_digits_and_leading_zeros_are_read():
    assert loads(HEADER + "a: 3DCCCCCD\nb: 00000001").dumps("tensorrt") == HEADER + "a: 3dcccccd\nb: 1\n"


@pytest.mark.parametrize(
    ("algorithm", "parameters", "header"),
    [
        ("entropy", {}, "TRT-8600-EntropyCalibration2"),
        ("minmax", {}, "TRT-8600-MinMaxCalibration"),
        ("percentile", {"percentile": 99.99}, "TRT-8600-EntropyCalibration2"),
        ("mse", {}, "TRT-8600-EntropyCalibration2"),
        ("", {}, "TRT-8600-EntropyCalibration2"),
        ("legacy", {}, "0 3ff0000000000000 3fefff2e48e8a71e"),
        ("legacy", {"quantile": 0.99, "regression_cutoff": 0.0}, "0 0 3fefae147ae147ae"),
    ],
)
def test_header_follows_from_the_method(algorithm, parameters, header):
    table = CalibrationTable({"a": Entry(np.float32(1))}, algorithm, parameters)
    assert table.dumps("tensorrt").splitlines()[0] == header


def test_header_can_be_chosen():
    table = CalibrationTable({}, "mse")
    assert table.dumps("tensorrt", algorithm="MinMaxCalibration", version=10300) == "TRT-10300-MinMaxCalibration\n"
    with pytest.raises(UnknownNameError, match="EntropyCalibration2"):
        table.dumps("tensorrt", algorithm="EntropyCalibrator2")
    with pytest.raises(TableError, match="version is 0"):
        table.dumps("tensorrt", version=0)
    with pytest.raises(TableError, match="'quantile' is 'most'"):
        CalibrationTable({}, "legacy", {"quantile": "most"}).dumps("tensorrt")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "line 1: expected a table's start, found ''"),
        ("1\na: 3f800000\n", "line 1"),
        ("TRT-8600-SomeCalibration\n", "line 1"),
        ("TRT-8600-LegacyCalibration\n", "line 1"),
        ("0 7ff0000000000000 0\n", "line 1"),
        (HEADER + "a: 3f800000\n\nb: 0\n", "line 3: expected `name: hexadecimal scale`, found ''"),
        (HEADER + "a 3f800000\n", "line 2"),
        (HEADER + "a: 0x3f800000\n", "line 2"),
        (HEADER + "a: 3f8000000\n", "line 2"),
        (HEADER + "a: +1\n", "line 2"),
        (HEADER + "a: 1_0\n", "line 2"),
        (HEADER + "a: \n", "line 2"),
        (HEADER + ": 3f800000\n", "line 2"),
        (HEADER + "a: 1\nb: 2\na: 1\n", "line 4: the tensor 'a' stands in line 2 already"),
        (HEADER + "a: 1\nb: 7fc00000\n", "line 3: the scale 7fc00000 of 'b' is nan"),
        (HEADER + "a: 7f800000\nb: 7f800000\n", "the scales of all 2 tensors are infinite"),
        (HEADER + "a: ff800000\n", "is -inf"),
        (HEADER + "a: bf800000\n", "is -1.0"),
        (HEADER + "a: 80000000\n", "is -0.0"),
    ],
)
def test_malformed_text_names_file_and_line(tmp_path, text, words):
    path = tmp_path / "calib.cache"
    path.write_bytes(text.encode())
    with pytest.raises(TableError) as caught:
        load_table(path)
    assert words in caught.value.message
    assert str(path) in caught.value.message


def test_bytes_that_are_no_text_name_the_line():
    with pytest.raises(TableError, match=r"x\.cache, line 3: byte 37 is not UTF-8"):
        loads(HEADER.encode() + b"a: 1\nb:\n"[:5] + b"b: \xff\n", "x.cache")


def test_line_break_in_a_name_is_refused():
    with pytest.raises(TableError, match="line break"):
        CalibrationTable({"a\nb": Entry(np.float32(1))}).dumps("tensorrt")


def test_infinite_scales_are_left_out_and_named():
    """TensorRT writes them for the additive mask of a BERT, and for the scores behind it."""
    mask, scores = "/bert/Where_2_output_0", "/bert/encoder/layer.0/attention/self/Add_output_0"
    text = (
        HEADER.replace("8600", "101000")
        + f"a: 3f800000\n{scores}: 7f800000\nblock/Relu:0: 3c010a14\n{mask}: 7F800000\n"
    )
    loaded = parse(text.encode())
    assert loaded.table.names == ("a", "block/Relu:0")
    assert loaded.infinite == (scores, mask)
    assert loaded.notes == (
        f"Left out, because TensorRT wrote an infinite scale, which no build can use: {scores}, {mask}.",
    )
    assert infinite_note([f"t{i}" for i in range(5)]).endswith("t0, t1, t2 and 2 more.")
    with pytest.raises(TableError, match="line 3: the tensor 'a' stands in line 2"):
        loads(HEADER + "a: 7f800000\na: 3f800000\n")

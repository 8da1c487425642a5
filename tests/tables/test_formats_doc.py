"""The examples in docs/formats.md are files that quantkit reads."""

from __future__ import annotations

import re
import struct
from pathlib import Path

from quantkit.tables import CalibrationTable, Entry, json_text, trt_text
from quantkit.tables.formats import parse, write_bytes_of

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")


def example(kind: str) -> str:
    (block,) = re.findall(rf"```{kind}\n(.*?)```", TEXT, re.DOTALL)
    return block


def test_cache_example_comes_back_byte_for_byte():
    table = trt_text.loads(example("trt"))
    assert table.names == ("(Unnamed Layer* 2) [Constant]_output", "layer0: ffn/gelu", "never.used")
    assert table.dumps("tensorrt") == example("trt")


def test_json_example_comes_back_byte_for_byte():
    table = json_text.loads(example("json"))
    assert table.provenance.samples == 512
    assert table.dumps() == example("json")


def test_the_other_examples_come_back_byte_for_byte():
    for kind, name in (("ort", "onnxruntime"), ("text", "text"), ("ranges", "ranges")):
        loaded = parse(example(kind).encode())
        assert loaded.format == name
        assert write_bytes_of(loaded.table, name)[0].decode() == example(kind)
    gelu = parse(example("ort").encode()).table["layer0.ffn.gelu"]
    assert (gelu.minimum, gelu.maximum, gelu.amax) == (-0.16997122764587402, 4.0, 4.0)


def test_the_flat_buffer_has_the_bytes_of_the_document():
    table = CalibrationTable({"ab": Entry(1.0), "abc": Entry(0.5), "abcd": Entry(0.0)})
    data = write_bytes_of(table, "flatbuffers")[0]
    n = len(table)
    assert struct.unpack_from("<I3H2xiII", data) == (12, 6, 8, 4, 8, 4, n)
    assert struct.unpack_from("<4H", data, 24 + 4 * n) == (8, 12, 4, 8)
    for i, (key, value) in enumerate((("ab", b"127.0"), ("abc", b"63.5"), ("abcd", b"0.0"))):
        place = 32 + 4 * n + 12 * i
        assert struct.unpack_from("<I", data, 24 + 4 * i)[0] == place - (24 + 4 * i)
        back, to_key, to_value = struct.unpack_from("<iII", data, place)
        assert place - back == 24 + 4 * n
        for start, text in ((place + 4 + to_key, key.encode()), (place + 8 + to_value, value)):
            assert start >= 32 + 16 * n
            assert start % 4 == 0
            length = struct.unpack_from("<I", data, start)[0]
            assert data[start + 4 : start + 5 + length] == text + b"\0"


def test_plan_example_comes_back_byte_for_byte(tmp_path):
    from quantkit.network.plan_file import load_plan

    path = tmp_path / "plan.json"
    path.write_text(example("plan"), encoding="utf-8")
    given = load_plan(path)
    assert given.plan.mode == "gemm+residual"
    assert given.save(path).read_text(encoding="utf-8") == example("plan")


def test_every_link_leads_to_a_heading():
    headings = {re.sub(r"[^\w\- ]", "", h).lower().replace(" ", "-") for h in re.findall(r"^## (.*)$", TEXT, re.M)}
    links = set(re.findall(r"\(#([^)]*)\)", TEXT))
    assert links == headings

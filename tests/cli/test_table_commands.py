"""`quantkit table` as a user types it: show, diff, merge, validate, rename, convert."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from torch_like import TorchLike

from quantkit.tables import CalibrationTable, Entry, Provenance, load_table

NAMES = ("/dense/MatMul_output_0", "(Unnamed Layer* 49) [Softmax]_output", "a: b", "zero")
LONG = "/bert/encoder/layer.11/attention/output/LayerNorm/with/a/very/long/name/LayerNormalization_output_0"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working folder, with one table of each kind that the tests want."""
    monkeypatch.chdir(tmp_path)
    scales = dict(zip(NAMES, (0.5, 1 / 127, 0.03, 0.0), strict=True))
    one = CalibrationTable(
        {name: Entry(np.float32(value), method="entropy") for name, value in scales.items()}, "entropy"
    )
    one.save("one.cache")
    scales[NAMES[0]] = 1.0
    del scales["zero"]
    CalibrationTable({name: Entry(np.float32(v)) for name, v in {**scales, LONG: 4.0}.items()}, "minmax").save(
        "two.json"
    )
    return tmp_path


@pytest.fixture
def ok(cli):
    """Runs a command that must succeed; its standard output."""

    def run(*arguments: object) -> str:
        code, out, err = cli("table", *arguments)
        assert code == 0, err
        return out

    return run


def test_show_lists_threshold_scale_and_bits(folder, ok, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = ok("show", "one.cache").splitlines()
    assert lines[0].split() == ["tensor", "amax", "scale", "bits"]
    assert lines[1].split() == [NAMES[0], "63.5", "0.5", "3f000000"]
    assert lines[2].split()[-3:] == ["1", "0.007874016", "3c010204"]
    assert lines[4].split() == ["zero", "0", "0", "0"]
    assert lines[5] == "4 of 4 tensors, format tensorrt, method entropy"


def test_show_sorts_filters_and_limits(folder, ok):
    def names(*options: object) -> list[str]:
        return [row["tensor"] for row in json.loads(ok("show", "one.cache", "--json", *options))["tensors"]]

    assert names() == list(NAMES)
    assert names("--sort", "amax") == ["zero", NAMES[1], "a: b", NAMES[0]]
    assert names("--sort", "amax", "--reverse", "--limit", 1) == [NAMES[0]]
    assert names("--sort", "name") == sorted(NAMES)
    assert names("--match", "*output*") == list(NAMES[:2])
    assert json.loads(ok("show", "one.cache", "--json"))["tensors"][0]["bits"] == "3f000000"


@pytest.mark.parametrize("command", [("show", "two.json"), ("diff", "one.cache", "two.json"), ("validate", "two.json")])
def test_everything_fits_80_columns(folder, cli, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = cli("table", *command)
    assert max(map(len, out.splitlines())) <= 80
    assert LONG[:30] in out or command[0] == "validate"


def test_diff_says_what_is_missing_extra_and_different(folder, cli):
    code, out, _ = cli("table", "diff", "one.cache", "two.json", "--json")
    assert code == 1
    assert json.loads(out) == {
        "missing": ["zero"],
        "extra": [LONG],
        "changed": [{"tensor": NAMES[0], "first": 0.5, "second": 1.0, "ratio": 2.0}],
        "same": 2,
        "notes": [],
    }
    code, out, _ = cli("table", "diff", "one.cache", "two.json")
    assert code == 1
    assert "2.000000" in out
    assert "missing in two.json: zero" in out
    assert out.splitlines()[-1] == "2 equal, 1 different, 1 missing, 1 extra"
    assert cli("table", "diff", "one.cache", "one.cache")[0] == 0
    assert cli("table", "diff", "one.cache", "two.json", "--quiet") == (1, "", "")
    CalibrationTable({"a": Entry(1.0)}).save("a.json")
    CalibrationTable({"a": Entry(1.05)}).save("b.json")
    assert cli("table", "diff", "a.json", "b.json")[0] == 1
    assert cli("table", "diff", "a.json", "b.json", "--tolerance", 0.1)[0] == 0


def test_merge(folder, cli, ok):
    code, _, err = cli("table", "merge", "one.cache", "two.json", "-o", "m.json")
    assert code == 2
    assert "--prefer" in err
    assert not (folder / "m.json").exists()
    out = ok("merge", "one.cache", "two.json", "--prefer", "widest", "-o", "m.cache")
    assert out == "m.cache: 5 tensors, tensorrt\n"
    merged = load_table("m.cache")
    assert merged.names == (*NAMES, LONG)
    assert merged[NAMES[0]].scale == 1.0


def test_every_command_says_which_tensors_have_an_infinite_scale(folder, cli):
    """As in caches that TensorRT made of a BERT whose mask holds -inf."""
    (folder / "inf.cache").write_text("TRT-101000-EntropyCalibration2\nmask: 7f800000\na: 3c010204\n")
    CalibrationTable({"a": Entry(1 / 127)}, "entropy").save("a.json")
    told = "note: Left out, because TensorRT wrote an infinite scale, which no build can use: mask.\n"
    assert cli("table", "diff", "inf.cache", "a.json") == (
        0,
        "1 equal, 0 different, 0 missing, 0 extra\n",
        told.replace("L", "inf.cache: L", 1),
    )
    for command, more in (("merge", ["a.json"]), ("rename", ["--exact", "a => b"]), ("convert", [])):
        code, out, err = cli("table", command, "inf.cache", *more, "-o", "out.json")
        assert (code, out.split(":")[1].split()[0], "an infinite scale" in err) == (0, "1", True)
    code, out, err = cli("table", "show", "inf.cache")
    assert (code, "1 of 1 tensors" in out, err) == (0, True, told)
    code, out, _ = cli("table", "validate", "inf.cache", "--json")
    first = json.loads(out)["findings"][0]
    assert (code, first["code"], first["tensor"]) == (1, "Inf", "mask")


def test_validate(folder, cli):
    code, out, _ = cli("table", "validate", "one.cache")
    assert code == 0
    assert "warning: zero: zero: the scale is 0" in " ".join(out.split())
    assert cli("table", "validate", "one.cache", "--strict", "--quiet") == (1, "", "")
    (folder / "bad.cache").write_text("TRT-8600-EntropyCalibration2\na: 7fc00000\nb: 7f800000\nc\n")
    code, out, _ = cli("table", "validate", "bad.cache")
    assert code == 1
    assert [line.split(":")[1] for line in out.splitlines()[:3]] == [" malformed", " NaN", " Inf"]
    code, out, _ = cli("table", "validate", "bad.cache", "--json")
    assert [f["tensor"] for f in json.loads(out)["findings"]] == ["", "a", "b"]
    assert cli("table", "validate", "none.cache")[0] == 2


def test_validate_against_a_model(folder, cli):
    onnx.save(TorchLike(1).model(), "model.onnx")
    code, out, _ = cli("table", "validate", "one.cache", "--model", "model.onnx", "--json")
    assert code == 0
    found = {(f["code"], f["tensor"]) for f in json.loads(out)["findings"]}
    assert ("not in model", "a: b") in found
    assert ("not in model", NAMES[0]) not in found
    assert ("no scale", "/LayerNorm/LayerNormalization_output_0") in found
    assert ("unnamed", "") in found


def test_validate_against_a_model_that_is_no_bert(folder, cli):
    import onnx.helper as make

    kernel = onnx.numpy_helper.from_array(np.ones((2, 1, 3, 3), np.float32), "k")
    graph = make.make_graph(
        [make.make_node("Conv", ["image", "k"], ["c"], name="conv"), make.make_node("Relu", ["c"], ["y"], name="relu")],
        "g",
        [make.make_tensor_value_info("image", onnx.TensorProto.FLOAT, [1, 1, 5, 5])],
        [make.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 2, 3, 3])],
        [kernel],
    )
    onnx.save(make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=8), "conv.onnx")
    (folder / "c.cache").write_text("TRT-8600-EntropyCalibration2\nc: 3c010204\n")
    code, out, _ = cli("table", "validate", "c.cache", "--model", "conv.onnx", "--json", "--strict")
    assert code == 1
    found = [(f["level"], f["code"], f["tensor"]) for f in json.loads(out)["findings"]]
    assert found == [("warning", "no scale", "image"), ("note", "provenance", "")]


def test_validate_finds_a_stale_table(folder, cli, tiny_bert_dir):
    from quantkit.network.model import load_model

    network = load_model(tiny_bert_dir)
    origin = Provenance(network.sha256, "b" * 64, 8, 0, 4, 16, "minmax", {}, "tensorrt", False, "openvino")
    names = [name for name in network.index.activations if name != "logits"]
    CalibrationTable({name: Entry(0.1) for name in names}, "minmax", {}, origin).save("t.json")
    onnx.save(network.proto, "same.onnx")
    for model in (tiny_bert_dir, "same.onnx"):
        assert cli("table", "validate", "t.json", "--model", model, "--strict")[0] == 0
    weight = network.proto.graph.initializer[0]
    weight.raw_data = bytes(len(weight.raw_data))
    onnx.save(network.proto, "retrained.onnx")
    code, out, _ = cli("table", "validate", "t.json", "--model", "retrained.onnx")
    assert code == 1
    assert "error: provenance: stale" in out


def test_rename(folder, ok, cli):
    (folder / "rules.txt").write_text("a: b => c\nregex: ^/dense => /intermediate\n")
    code, out, err = cli("table", "rename", "one.cache", "--rules", "rules.txt", "--exact", "x => y", "-o", "r.cache")
    assert code == 0
    assert out == "r.cache: 4 tensors, tensorrt, 2 renamed\n"
    assert err == "note: The rule x => y changes nothing.\n"
    assert load_table("r.cache").names == ("/intermediate/MatMul_output_0", NAMES[1], "c", "zero")
    assert (folder / "r.cache").read_text().splitlines()[0] == "TRT-8600-EntropyCalibration2"
    code, _, err = cli("table", "rename", "one.cache", "--regex", ".* => all", "-o", "x.cache")
    assert code == 2
    assert "both be called" in err
    assert not (folder / "x.cache").exists()


def test_convert_there_and_back_is_the_same_file(folder, ok):
    for kind in ("json", "onnxruntime", "flatbuffers", "text", "ranges"):
        ok("convert", "one.cache", "--to", kind, "-o", f"there.{kind}")
        back = ("--to", "tensorrt", "--tensorrt", "8.6", "--algorithm", "EntropyCalibration2")
        ok("convert", f"there.{kind}", *back, "-o", "back.cache")
        assert (folder / "back.cache").read_bytes() == (folder / "one.cache").read_bytes()


def test_convert_says_what_is_lost(folder, cli):
    entries = {"a": Entry(0.5, -1.0, 63.5, "minmax"), "b": Entry(1.0, -3.0, 2.0, "minmax")}
    CalibrationTable(entries, "minmax").save("full.json")
    code, out, err = cli("table", "convert", "full.json", "-o", "plain.cache", "--tensorrt", "10.3")
    assert (code, out) == (0, "plain.cache: 2 tensors, tensorrt\n")
    assert "note: The signed extremes of 2 tensors are left out" in err
    assert (folder / "plain.cache").read_text().startswith("TRT-100300-MinMaxCalibration\n")
    code, out, err = cli("table", "convert", "full.json", "-o", "plain.cache", "--json")
    assert "signed extremes" in json.loads(out)["lost"][0]
    assert err == ""
    assert cli("table", "convert", "full.json", "-o", "p.cache", "--quiet") == (0, "", "")
    code, _, err = cli("table", "convert", "full.json", "-o", "p.json", "--tensorrt", "10.3")
    assert code == 2
    assert "--to tensorrt" in err


def test_scales_of_a_model_with_pairs(folder, cli, ok):
    from quantkit.network.precision import PrecisionPlan
    from quantkit.network.qdq import insert_qdq

    model = TorchLike(1).model()
    inputs = (
        "/LayerNorm/LayerNormalization_output_0",
        "/Reshape_4_output_0",
        "/LayerNorm_1/LayerNormalization_output_0",
    )
    table = CalibrationTable({name: Entry(0.01 + i, -1.0, 5.0) for i, name in enumerate((*inputs, "/Mul_3_output_0"))})
    for symmetric in (True, False):
        placed = insert_qdq(onnx.shape_inference.infer_shapes(model), table, PrecisionPlan(symmetric=symmetric))
        onnx.save(placed.proto, "q.onnx")
        rows = json.loads(ok("show", "q.onnx", "--json"))["tensors"]
        assert [row["tensor"] for row in rows] == list(table.names)
        assert {row["grid"]["dtype"] for row in rows} == {"int8" if symmetric else "uint8"}
        _, out, err = cli("table", "convert", "q.onnx", "-o", "q.cache")
        assert out == "q.cache: 4 tensors, tensorrt\n"
        assert ("not int8 around zero" in err) == (not symmetric)
        if symmetric:
            assert load_table("q.cache").scales == table.scales
            assert cli("table", "diff", "q.onnx", "q.cache")[0] == 0
        weights = json.loads(ok("show", "q.onnx", "--weights", "--json"))["weights"]
        assert {len(row["scales"]) for row in weights} == {16, 32}
        assert len(weights) == 6
    assert len(ok("show", "q.onnx", "--weights").splitlines()) == 7
    assert cli("table", "show", "q.onnx", "--sort", "size")[0] == 2

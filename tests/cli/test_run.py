"""The main job through the command line, on a tiny BERT and made sentences."""

from __future__ import annotations

import json

import numpy as np
import pytest

import quantkit


@pytest.fixture
def arguments(tiny_bert_dir, tiny_glue_dir, tmp_path):
    return [
        *(tiny_bert_dir, "--task", "sst2", "--data", tiny_glue_dir, "--calib-samples", 40, "--batch", 8),
        *("--seq-len", 32, "--threads", 1, "--out", tmp_path / "out"),
    ]


def test_run_writes_the_record_the_table_and_the_model(cli, arguments, tmp_path):
    code, out, err = cli("run", *arguments, "--json")
    assert code == 0, err
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    assert json.loads(out) == record
    assert record["schema"] == 1
    assert (record["task"]["name"], record["task"]["examples"]) == ("sst2", 50)
    assert [row["precision"] for row in record["engines"]] == ["fp32", "fp16", "int8"]
    for row in record["engines"]:
        assert row["status"] == "ok", row
        assert 0 <= row["metrics"]["accuracy"]["value"] <= 1
        assert row["metrics"]["accuracy"]["stderr"] > 0
        assert 0 < row["latency_ms"]["median"] <= row["latency_ms"]["p90"] <= row["latency_ms"]["p99"]
        assert row["throughput_per_s"] > 0
        assert row["size_bytes"] > 0
    int8 = record["engines"][2]
    assert int8["int8_ops"] == 16
    assert int8["size_bytes"] < record["engines"][0]["size_bytes"]
    calibration = record["calibration"]
    assert (calibration["samples"], calibration["reused"]) == (40, False)
    table = quantkit.load_table(calibration["table"])
    assert len(table) == calibration["tensors"]
    cache = quantkit.load_table(tmp_path / "out" / f"{calibration['method']}.cache")
    assert cache.scales == table.scales
    assert (tmp_path / "out" / "int8.onnx").stat().st_size > 0


def test_a_second_run_reuses_the_table_and_says_so(cli, arguments, tmp_path):
    assert cli("run", *arguments, "--precision", "int8", "--quiet")[0] == 0
    first = json.loads((tmp_path / "out" / "record.json").read_text())
    code, _, err = cli("run", *arguments, "--precision", "int8")
    second = json.loads((tmp_path / "out" / "record.json").read_text())
    assert code == 0
    assert "Reusing" in err
    assert (first["calibration"]["reused"], second["calibration"]["reused"]) == (False, True)
    assert first["engines"][0]["metrics"] == second["engines"][0]["metrics"]


def test_a_table_of_other_data_is_refused_unless_forced(cli, arguments, tmp_path, tiny_bert_dir, tiny_glue_dir):
    assert cli("calibrate", *arguments, "--method", "entropy")[0] == 0
    table = tmp_path / "out" / "entropy.json"
    same = ["run", *arguments, "--precision", "int8", "--table", table]
    assert cli(*same)[0] == 0
    code, _, err = cli(*same, "--seed", 5)
    assert code == 2
    assert "does not fit" in err
    assert "seed: table 0, this run 5" in err
    assert cli(*same, "--seed", 5, "--force")[0] == 0


def test_a_tensorrt_cache_serves_as_a_table(cli, arguments, tmp_path):
    assert cli("calibrate", *arguments, "--method", "minmax")[0] == 0
    code, out, err = cli(
        "run", *arguments, "--precision", "int8", "--table", tmp_path / "out" / "minmax.cache", "--json"
    )
    assert code == 0, err
    row = json.loads(out)["engines"][0]
    assert (row["status"], row["int8_ops"]) == ("ok", 16)


def test_a_cache_of_another_model_is_refused(cli, arguments, tmp_path):
    other = tmp_path / "other.cache"
    other.write_text("TRT-8600-EntropyCalibration2\nconv1: 3c010a14\n")
    code, _, err = cli("run", *arguments, "--table", other)
    assert code == 2
    assert "another model" in err


def test_calibrate_writes_every_method(cli, arguments, tmp_path):
    code, out, err = cli("calibrate", *arguments, "--json")
    assert code == 0, err
    summary = json.loads(out)
    assert {row["method"] for row in summary["tables"]} >= {"minmax", "entropy", "legacy", "percentile", "mse"}
    for row in summary["tables"]:
        table = quantkit.load_table(tmp_path / "out" / f"{row['method']}.json")
        assert table.provenance.samples == 40
        assert (tmp_path / "out" / f"{row['method']}.cache").is_file()
    stored = quantkit.load_histograms(tmp_path / "out" / "histograms.npz")
    minmax = quantkit.load_table(tmp_path / "out" / "minmax.json")
    for name, histogram in stored.histograms.items():
        assert minmax.scales[name] == np.float32(histogram.amax) / np.float32(127)


def test_a_failed_engine_is_a_row_with_its_reason(cli, arguments):
    pytest.importorskip("onnxruntime")
    code, out, err = cli("run", *arguments, "--backend", "onnxruntime", "--json")
    assert code == 0, err
    rows = {row["precision"]: row for row in json.loads(out)["engines"]}
    assert rows["fp16"]["status"] == "failed"
    assert rows["fp16"]["reason"]
    assert rows["fp32"]["status"] == rows["int8"]["status"] == "ok"


def test_build_eval_and_bench_do_their_step_only(cli, arguments):
    rows = {}
    for command in ("build", "eval", "bench"):
        code, out, err = cli(command, *arguments, "--precision", "fp32,int8", "--json")
        assert code == 0, err
        rows[command] = json.loads(out)["engines"][1]
    assert not rows["build"]["metrics"] and not rows["build"]["latency_ms"]
    assert rows["eval"]["metrics"] and not rows["eval"]["latency_ms"]
    assert not rows["bench"]["metrics"] and rows["bench"]["latency_ms"]


def test_build_writes_the_float_model_too(cli, tiny_bert_dir, tiny_glue_dir, tmp_path):
    data = ["--task", "sst2", "--data", tiny_glue_dir, "--batch", 8, "--seq-len", 24]
    code, out, err = cli("build", tiny_bert_dir, *data, "-p", "fp32,fp16", "--out", tmp_path, "--json")
    assert code == 0, err
    file = str(tmp_path / "fp32.onnx")
    assert next(row["model_file"] for row in json.loads(out)["engines"] if row["status"] == "ok") == file
    answers = [
        cli("eval", model, *data, "-p", "fp32", "--json", *more)
        for model, more in ((tiny_bert_dir, ()), (file, ("--tokenizer", tiny_bert_dir)))
    ]
    assert [code for code, _, _ in answers] == [0, 0], answers
    scores = [json.loads(out)["engines"][0]["metrics"] for _, out, _ in answers]
    assert scores[0] == scores[1]


def test_files_of_ones_own(cli, tiny_bert_dir, tiny_glue_dir, tmp_path):
    rows = (tiny_glue_dir / "SST-2" / "dev.tsv").read_text().splitlines()[1:]
    lines = [json.dumps({"review": r.split("\t")[0], "stars": int(r.split("\t")[1])}) for r in rows]
    (tmp_path / "dev.jsonl").write_text("\n".join(lines) + "\n")
    train = [line.split("\t")[0] for line in (tiny_glue_dir / "SST-2" / "train.tsv").read_text().splitlines()[1:]]
    (tmp_path / "calib.txt").write_text("\n".join(train) + "\n")
    common = [tiny_bert_dir, "--task", "sst2", "--data", tmp_path / "dev.jsonl", "--batch", 8, "--seq-len", 32]
    common += ["--text-column", "review", "--label-column", "stars", "--calib-samples", 16, "--json"]
    code, _, err = cli("run", *common)
    assert (code, "--calib-data" in err) == (2, True)
    code, out, err = cli("run", *common, "--calib-data", tmp_path / "calib.txt", "--out", tmp_path / "o")
    assert code == 0, err
    assert json.loads(out)["task"]["examples"] == 50


def test_samples_that_stand_in_the_evaluation_split_are_refused(cli, tiny_bert_dir, tiny_glue_dir, tmp_path):
    dev = [line.split("\t")[0] for line in (tiny_glue_dir / "SST-2" / "dev.tsv").read_text().splitlines()[1:]]
    (tmp_path / "calib.txt").write_text("\n".join(dev) + "\n")
    common = [tiny_bert_dir, "--task", "sst2", "--data", tiny_glue_dir, "--batch", 8, "--seq-len", 32]
    code, _, err = cli("run", *common, "--calib-data", tmp_path / "calib.txt", "--out", tmp_path / "o")
    assert code == 2
    assert "evaluation" in err

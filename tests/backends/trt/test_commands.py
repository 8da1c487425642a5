"""The command line with --backend tensorrt, over the stand-in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


@pytest.fixture
def common(fake_trt, tiny_bert_dir, tiny_glue_dir) -> list[object]:
    """Model, task and data, small."""
    rows = ["--batch", 8, "--seq-len", 24, "--calib-samples", 32]
    return [tiny_bert_dir, "--task", "sst2", "--data", tiny_glue_dir, *rows]


def record_of(folder: Path) -> dict:
    return json.loads((folder / "record.json").read_text())


def test_run_does_the_main_job(common, tmp_path, cli) -> None:
    code, out, err = cli(
        "run", *common, "--limit", 24, "--backend", "tensorrt", "-p", "fp32,fp16,int8", "--out", tmp_path
    )
    assert code == 0, err
    record = record_of(tmp_path)
    rows = {row["precision"]: row for row in record["engines"]}
    assert [rows[name]["status"] for name in ("fp32", "fp16", "int8")] == ["ok"] * 3
    assert rows["fp32"]["compute"] == "f32"
    assert rows["int8"]["int8_ops"] == 0
    assert record["verdict"][0].startswith("The INT8 engine computes nothing in INT8")
    audit = rows["int8"]["details"]["audit"]
    assert audit["regions"]
    assert audit["verdict"][0].startswith("Nothing in this engine is INT8: Myelin took the encoder")
    assert record["calibration"]["collector"] == "tensorrt"
    assert "computes nothing in INT8" in " ".join(out.split())


def test_run_with_a_table_of_a_cpu(common, tmp_path, cli) -> None:
    code, _, err = cli("calibrate", *common, "--backend", "onnxruntime", "--method", "minmax", "--out", tmp_path)
    assert code == 0, err
    table = tmp_path / "minmax.json"
    for ranges in ("qdq", "cache", "dynamic_range"):
        where = tmp_path / ranges
        arguments = ["--backend", "tensorrt", "-p", "int8", "--table", table, "--ranges", ranges, "--out", where]
        code, _, err = cli("run", *common, "--limit", 24, *arguments)
        assert code == 0, err
        row = record_of(where)["engines"][0]
        assert row["details"]["audit"]["scales_used"] == (0 if ranges == "qdq" else 83)
        assert (where / "int8.onnx").exists() == (ranges == "qdq")


def test_run_through_the_network_api(common, tmp_path, cli) -> None:
    arguments = ["--backend", "tensorrt", "-p", "fp32,int8", "--network", "api", "--out", tmp_path]
    code, _, err = cli("run", *common, "--limit", 24, *arguments)
    assert code == 0, err
    assert {row["status"] for row in record_of(tmp_path)["engines"]} == {"ok"}


def test_run_with_a_range_of_shapes(common, tmp_path, cli) -> None:
    arguments = ["--backend", "tensorrt", "-p", "fp16,int8", "--shapes", "1x8:8x24:8x32", "--out", tmp_path]
    code, _, err = cli("run", *common, "--limit", 24, *arguments)
    assert code == 0, err
    assert {row["status"] for row in record_of(tmp_path)["engines"]} == {"ok"}


def test_a_crash_is_a_row_with_the_step(common, tmp_path, cli, monkeypatch) -> None:
    monkeypatch.setenv("FAKE_BUILD_CRASH", "1")
    code, _, _ = cli("run", *common, "--limit", 24, "--backend", "tensorrt", "-p", "fp32,fp16", "--out", tmp_path)
    assert code == 1
    for row in record_of(tmp_path)["engines"]:
        assert row["status"] == "failed"
        assert "segmentation fault at the step 'build the engine'" in row["reason"]


def test_bench_times_by_phases_and_gives_the_ratio(common, tmp_path, cli) -> None:
    arguments = ["--backend", "tensorrt", "-p", "fp32,fp16", "--network", "api", "--out", tmp_path]
    code, out, err = cli("bench", *common, *arguments, "--warmup", 1, "--iterations", 5, "--duration", 0.05)
    assert code == 0, err
    rows = record_of(tmp_path)["engines"]
    assert rows[0]["ratio"] == {"compute": 1.0, "host": 1.0}
    assert rows[1]["phases"]["iterations"] >= 5
    assert rows[1]["phases"]["compute_ms"]["p99"] > 0
    assert "enqueue" in out


def test_bench_times_plan_files_in_turn(common, tmp_path, cli) -> None:
    cli("build", *common, "--backend", "tensorrt", "-p", "fp32,fp16", "--out", tmp_path)
    plans = [row["details"]["plan"] for row in record_of(tmp_path)["engines"]]
    quick = ["--warmup", 1, "--iterations", 5, "--duration", 0]
    both = ["--engine", plans[0], "--engine", plans[1]]
    code, out, err = cli("bench", *both, *quick, "--out", tmp_path / "bench")
    assert code == 0, err
    assert Path(plans[1]).name[:12] in out
    record = record_of(tmp_path / "bench")
    assert record["batch"] == 8
    assert [row["engine"] for row in record["engines"]] == plans
    assert record["engines"][0]["ratio"] == {"compute": 1.0, "host": 1.0}
    assert record["engines"][1]["phases"]["iterations"] == 5
    code, _, err = cli("bench", *both, *quick, "--shapes", "9x24")
    assert code == 2
    assert "has shape (9, 24)" in err
    copy = tmp_path / "copy.plan"
    copy.write_bytes(Path(plans[0]).read_bytes())
    code, _, err = cli("bench", "--engine", copy, *quick)
    assert code == 2
    assert "--trust" in err
    code, out, err = cli("bench", "--engine", copy, *quick, "--trust", "--json")
    assert code == 0, err
    assert json.loads(out)["engines"][0]["engine"] == str(copy)


def test_bench_wants_one_shape_for_all(common, tmp_path, cli) -> None:
    plans = []
    for shapes in ("1x8:8x24:8x32", "1x8:4x16:8x32"):
        cli("build", *common, "--backend", "tensorrt", "-p", "fp16", "--shapes", shapes, "--out", tmp_path)
        plans.append(record_of(tmp_path)["engines"][0]["details"]["plan"])
    arguments = ["--engine", plans[0], "--engine", plans[1], "--warmup", 1, "--iterations", 2, "--duration", 0]
    code, _, err = cli("bench", *arguments)
    assert code == 2
    assert "different shapes" in err
    assert "--shapes" in err
    code, out, err = cli("bench", *arguments, "--shapes", "3x10", "--json")
    assert code == 0, err
    assert json.loads(out)["shapes"]["input_ids"] == [3, 10]


def test_bench_options_belong_to_tensorrt(tiny_bert_dir, cli) -> None:
    code, _, err = cli("bench", tiny_bert_dir, "--task", "sst2", "--iterations", 5)
    assert code == 2
    assert "options of --backend tensorrt" in err


def test_verify_compares_tensor_by_tensor(common, tmp_path, cli) -> None:
    arguments = ["--backend", "tensorrt", "--calibrators", "minmax,legacy", "--out", tmp_path / "v.json"]
    code, out, err = cli("verify", *common, *arguments)
    assert "minmax: 83 of 83 tensors in the same bin" in out, err
    found = json.loads((tmp_path / "v.json").read_text())
    minmax, legacy = found["calibrators"]
    assert minmax["share_same_bin"] == 1.0
    assert minmax["only_quantkit"] == []
    # The stand-in's Legacy histograms hold one value each, and its threshold is the maximum.
    assert legacy["histograms_compared"] == 83
    assert legacy["histograms_equal"] == 0
    assert code == (legacy["same_bin"] < legacy["compared"])


def test_verify_says_what_it_wants(tiny_bert_dir, cli, tmp_path) -> None:
    code, _, err = cli("verify", tmp_path / "x.cache")
    assert code == 2
    assert "no histograms to compare with" in err
    code, _, err = cli("verify", tiny_bert_dir, "--task", "sst2", "--backend", "openvino")
    assert code == 2
    assert "has no calibrators of its own" in err
    code, _, err = cli("verify", tiny_bert_dir, "--task", "sst2", "--backend", "tensorrt")
    assert code == 2
    assert "not installed" in err


def test_audit_of_a_plan_and_of_a_stranger_s(common, tmp_path, cli) -> None:
    cli(
        "build",
        *common,
        "--backend",
        "tensorrt",
        "-p",
        "fp16",
        "--out",
        tmp_path,
    )
    plan = Path(record_of(tmp_path)["engines"][0]["details"]["plan"])
    code, out, err = cli("audit", plan)
    assert code == 0, err
    assert "Myelin region hides what is inside" in " ".join(out.split())
    (tmp_path / "copy.plan").write_bytes(plan.read_bytes())
    code, _, err = cli("audit", tmp_path / "copy.plan")
    assert code == 2
    assert "--trust" in err
    code, out, _ = cli("audit", tmp_path / "copy.plan", "--trust", "--json")
    assert code == 0
    assert json.loads(out)["layers"] == 2
    _, out, _ = cli("audit", plan, "--quiet")
    assert out.splitlines() == json.loads(cli("audit", plan, "--json")[1])["verdict"]


def test_doctor_prints_the_table(fake_trt, cli) -> None:
    code, out, _ = cli("doctor", "--all")
    assert code == 0
    assert "tensorrt calibrators: yes. Entropy, Entropy2, MinMax and Legacy calibrators." in " ".join(out.split())
    assert "tensorrt int64: no." in out

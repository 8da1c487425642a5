"""What a run keeps of every tensor for the report, and that it is what the calibrators give."""

from __future__ import annotations

import json

import numpy as np
import pytest

import quantkit
from quantkit.calibrate import Curve, curves
from quantkit.collect.histogram import HistogramAccumulator
from quantkit.files import sha256_file
from quantkit.pipeline.tensors import CURVE_POINTS, points_for, searched, sqnr_of, thinned, thresholds_of
from quantkit.report.html import write_report


@pytest.fixture
def arguments(tiny_bert_dir, tiny_glue_dir, tmp_path):
    common = ["--calib-samples", 24, "--batch", 8, "--seq-len", 32, "--threads", 1, "--out", tmp_path / "out"]
    return [tiny_bert_dir, "--task", "sst2", "--data", tiny_glue_dir, *common]


def histogram_of(values):
    accumulator = HistogramAccumulator("tensorrt")
    accumulator.update(np.asarray(values, np.float32))
    return accumulator.snapshot()


def test_a_run_keeps_ranges_of_every_method_and_its_histograms(cli, arguments, tmp_path):
    code, _, err = cli("run", *arguments, "--method", "percentile", "--precision", "fp32,int8", "--limit", 16)
    assert code == 0, err
    out = tmp_path / "out"
    assert f"Report: {out / 'report.html'}" in err
    record = json.loads((out / "record.json").read_text())
    for entry in record["files"].values():
        assert sha256_file(out / entry["path"]) == entry["sha256"]
    rows = json.loads((out / "tensors.json").read_text())["tensors"]
    used = quantkit.load_table(out / "percentile.json")
    assert [row["name"] for row in rows] == list(used.names)
    assert cli("calibrate", *arguments)[0] == 0
    by_name = {row["name"]: row for row in rows}
    whole = [row for row in rows if "same_as" not in row]
    copies = [row for row in rows if "same_as" in row]
    assert whole and copies
    assert all("same_as" not in by_name[row["same_as"]] for row in copies)
    for method in whole[0]["ranges"]:
        table = quantkit.load_table(out / f"{method}.json")
        assert {row["name"]: np.float32(row["ranges"][method]) / np.float32(127) for row in whole} == {
            row["name"]: table.scales[row["name"]] for row in whole
        }
    assert set(whole[0]["ranges"]) == {"auto", "entropy", "legacy", "minmax", "mse", "percentile"}
    assert {row["method"] for row in rows} == {"percentile"}
    # Two layers, each with the inputs of query/key/value, of the output product and of the two feed-forward ones, and
    # query, key and value as inputs of the attention's products; probabilities have a fixed range.
    assert sum(row["quantized"] for row in rows) == 14
    histograms = quantkit.load_histograms(out / "histograms.npz").histograms
    assert all(histograms[row["name"]].total == row["values"] for row in whole)
    _, notes = write_report(out)
    assert notes == ()


def test_without_histograms_ranges_are_shown_and_the_report_says_so(cli, arguments, tmp_path, monkeypatch):
    assert cli("calibrate", *arguments, "--method", "minmax")[0] == 0
    cache = tmp_path / "out" / "minmax.cache"
    code, _, err = cli("run", *arguments, "--table", cache, "--precision", "fp32,int8", "--limit", 16)
    assert code == 0, err
    assert "The histograms of this run are not at hand" in err
    rows = json.loads((tmp_path / "out" / "tensors.json").read_text())["tensors"]
    assert all(row["amax"] >= 0 and "ranges" not in row for row in rows)
    assert "histograms" not in json.loads((tmp_path / "out" / "record.json").read_text())["files"]
    assert (tmp_path / "out" / "report.html").is_file()


def test_a_report_that_cannot_be_written_does_not_lose_the_run(cli, arguments, tmp_path, monkeypatch):
    from quantkit.errors import MissingDependencyError
    from quantkit.report import html

    def missing():
        raise MissingDependencyError("There is no plotly here.")

    monkeypatch.setattr(html, "plotly_js", missing)
    code, out, err = cli("run", *arguments, "--precision", "fp32", "--limit", 16)
    assert code == 0
    assert "No report was written: There is no plotly here." in err
    assert "fp32" in out and (tmp_path / "out" / "record.json").is_file()


def test_a_curve_keeps_its_least_loss_and_its_gaps():
    h = histogram_of(np.random.default_rng(1).standard_normal(3000))
    for kind, curve in curves(h).items():
        kept = thinned(curve)
        best = int(np.argmin(curve.losses))
        losses = [x for x in kept["loss"] if x is not None]
        assert len(kept["at"]) == len(kept["loss"]) <= CURVE_POINTS
        assert min(losses) == pytest.approx(curve.losses[best], rel=1e-4), kind
        assert kept["at"][kept["loss"].index(min(losses))] == pytest.approx(curve.candidates[best], rel=1e-4)
        assert kept["at"] == sorted(kept["at"])
    gap = Curve(np.arange(1.0, 5.0), np.array([1.0, np.inf, np.inf, 2.0]), "kl")
    assert thinned(gap) == {"at": [1.0, 2.0, 3.0, 4.0], "loss": [1.0, None, None, 2.0]}


def test_curves_of_a_large_network_are_coarser():
    assert points_for(1) == points_for(170) == CURVE_POINTS
    assert 660 * points_for(660) <= 60_000
    assert points_for(10**6) == 20
    curve = Curve(np.arange(1.0, 101.0), np.abs(np.arange(100.0) - 37), "mse")
    assert thinned(curve, 10)["at"][3] == 38.0, "the least loss stays"
    assert len(thinned(curve, 10)["at"]) == 10


def test_a_tensor_of_zeros_has_no_ratio_and_no_curve():
    h = histogram_of(np.zeros(100))
    row = searched(h, 0.0, {m: found["t"] for m, found in thresholds_of({"t": h}, {}, {}).items()})
    assert row["sqnr_db"] is None and row["curves"] == {} and row["zeros"] == 100
    assert set(row["ranges"].values()) == {0.0}
    assert json.loads(json.dumps(row, allow_nan=False)) == row


def test_the_ratio_falls_when_the_range_clips():
    h = histogram_of(np.random.default_rng(2).standard_normal(4000))
    assert sqnr_of(h, h.amax) > sqnr_of(h, h.amax / 8) > 0

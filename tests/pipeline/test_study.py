"""The study of sample size and order, on a tiny BERT; and the figures it is made of."""

from __future__ import annotations

import json

import numpy as np
import pytest

import quantkit
from quantkit.calibrate import calibrate_histograms, make_calibrator
from quantkit.data.batches import TokenBatches
from quantkit.errors import InputError
from quantkit.pipeline.collection import batches_of, collect_batches
from quantkit.pipeline.settings import Settings
from quantkit.pipeline.study import enough, order_verdicts, sample_verdict, snapshot_marks, spread, study
from quantkit.pipeline.workspace import Workspace
from quantkit.report.terminal import SilentWatcher


@pytest.fixture
def settings(tiny_bert_dir, tiny_glue_dir, tmp_path):
    def made(**changes):
        values = {"calib_samples": 28, "batch": 4, "seq_len": 24, "threads": 1, "methods": ("minmax", "entropy")}
        data = {"model": str(tiny_bert_dir), "task": "sst2", "data": str(tiny_glue_dir), "out": tmp_path / "out"}
        return Settings(**data | values | changes)

    return made


def test_the_study_of_a_sample(settings, tmp_path):
    result = study(settings(), SilentWatcher(), orders=2)
    assert json.loads((tmp_path / "out" / "study.json").read_text()) == result
    assert [p["what"] for p in result["passes"]] == ["as drawn", "other order", "other order", "other batch size"]
    assert [p["batch"] for p in result["passes"]] == [4, 4, 4, 2]
    assert [row["method"] for row in result["methods"]] == ["minmax", "entropy"]
    for row in result["methods"]:
        assert [part["samples"] for part in row["by_samples"]] == [4, 8, 16, 28]
        last = row["by_samples"][-1]
        assert (last["median"], last["p95"], last["worst"], last["tensor"]) == (0, 0, 0, "")
        for part in row["by_samples"][:-1]:
            assert 0 <= part["median"] <= part["p95"] <= part["worst"]
        assert row["by_samples"][0]["worst"] > 0
        assert row["by_order"]["passes"] == 2
    minmax, entropy = result["methods"]
    # The largest value of the same batches does not depend on their order; TensorRT's histograms do.
    assert minmax["by_order"]["worst"] == 0
    assert entropy["by_order"]["worst"] > 0
    assert [part["p95"] for part in minmax["by_samples"]] == sorted(
        (part["p95"] for part in minmax["by_samples"]), reverse=True
    )


def test_its_figures_are_those_of_separate_passes(settings):
    given = settings(methods=("minmax",))
    result = study(given, SilentWatcher(), orders=0)
    workspace = Workspace(given, SilentWatcher())
    feeds = list(batches_of(workspace))
    names = [name for name in workspace.network.activations() if name not in workspace.network.aliases()]
    assert result["tensors"] == len(names)
    amax = {}
    for count in (2, len(feeds)):
        found = calibrate_histograms(collect_batches(workspace, feeds[:count]), make_calibrator("minmax"))
        amax[count] = np.array([found[name].amax for name in names])
    shares = 1 - amax[2] / amax[len(feeds)]
    row = next(part for part in result["methods"][0]["by_samples"] if part["samples"] == 8)
    assert row["median"] == pytest.approx(np.median(shares), abs=1e-6)
    assert row["worst"] == pytest.approx(shares.max(), abs=1e-6)
    assert row["tensor"] == names[int(np.argmax(shares))]
    assert result["methods"][0]["by_order"] is None


def test_with_power_of_two_ranges_order_changes_nothing_and_it_says_so(settings):
    given = settings(order_free=True, calib_samples=12, methods=("percentile", "auto"))
    result = study(given, SilentWatcher(), orders=1)
    assert [row["by_order"]["worst"] for row in result["methods"]] == [0, 0]
    assert any("another order of the batches moves no range" in line for line in result["verdict"])


def test_the_first_pass_is_kept_for_calibrate(cli, settings, tiny_bert_dir, tiny_glue_dir, tmp_path):
    study(settings(), SilentWatcher(), orders=0)
    arguments = [tiny_bert_dir, "--task", "sst2", "--data", tiny_glue_dir, "--calib-samples", 28, "--batch", 4]
    code, out, err = cli("calibrate", *arguments, "--seq-len", 24, "--out", tmp_path / "t", "--json", "-m", "entropy")
    assert code == 0, err
    assert json.loads(out)["reused"] is True
    stored = quantkit.load_histograms(tmp_path / "t" / "histograms.npz")
    workspace = Workspace(settings(), SilentWatcher())
    assert stored.histograms == collect_batches(workspace, batches_of(workspace))


def test_the_command_prints_a_table_that_fits_80_columns(cli, tiny_bert_dir, tiny_glue_dir, tmp_path):
    arguments = [tiny_bert_dir, "--task", "sst2", "--data", tiny_glue_dir, "--calib-samples", 16, "--batch", 4]
    command = ["calibrate", *arguments, "--seq-len", 24, "--study", "--method", "mse", "--orders", 1]
    code, out, err = cli(*command, "--out", tmp_path / "o")
    assert code == 0, err
    assert all(len(line) <= 80 for line in out.splitlines()), out
    for word in ("mse", "order", "batch", "worst tensor", "samples", "pass 3 of 3"):
        assert word in out + err
    code, out, _ = cli(*command, "--json")
    assert code == 0
    assert json.loads(out)["methods"] == json.loads((tmp_path / "o" / "study.json").read_text())["methods"]


def test_what_cannot_be_studied_is_refused(settings):
    with pytest.raises(InputError, match="one batch of 32"):
        study(settings(batch=32), SilentWatcher())
    with pytest.raises(InputError, match="-1 other orders"):
        study(settings(), SilentWatcher(), orders=-1)


@pytest.mark.parametrize(
    ("rows", "batch", "marks"),
    [
        (32, 4, {1: 4, 2: 8, 4: 16, 8: 32}),
        (28, 4, {1: 4, 2: 8, 4: 16, 7: 28}),
        (9, 4, {1: 4, 2: 8, 3: 9}),
        (5, 4, {1: 4, 2: 5}),
    ],
)
def test_snapshots_are_taken_at_every_doubling(rows, batch, marks):
    from quantkit.data.tokenize import Encoded

    ids = tuple(np.array([1, 2, 3]) for _ in range(rows))
    encoded = Encoded(ids, tuple(np.zeros(3, np.int64) for _ in ids), truncated=0, pad_id=0, max_length=8)
    assert snapshot_marks(TokenBatches(encoded, batch, 8)) == marks


def test_spread_is_relative_and_names_the_worst():
    full = np.array([2.0, 4.0, 0.0, 10.0])
    found = spread([full, np.array([1.0, 4.4, 0.0, 10.0]), np.array([2.0, 3.6, 0.0, 10.0])], full, ["a", "b", "c", "d"])
    assert found["tensor"] == "a"
    assert found["worst"] == pytest.approx(0.5)
    assert found["median"] == pytest.approx(0.1)


def rows_of(*p95):
    return [{"samples": 16 * 2**i, "p95": share} for i, share in enumerate((*p95, 0.0))]


@pytest.mark.parametrize(
    ("p95", "expected"),
    [((0.3, 0.1, 0.01), 64), ((0.01, 0.1, 0.01), 64), ((0.02, 0.01, 0.0), 16), ((0.3, 0.1, 0.05), None)],
)
def test_enough_holds_from_there_on(p95, expected):
    rows = rows_of(*p95)
    assert enough(rows) == expected
    words = sample_verdict("mse", rows)
    if expected:
        assert words.startswith(
            f"{expected} samples are enough for mse: from there on 95 % of the ranges stay within 2 %"
        )
    else:
        assert words == (
            "128 samples may not be enough for mse: with 64, 95 % of the ranges lie within 5.0 % of those of 128."
        )


def test_an_order_that_moves_order_free_ranges_is_blamed_on_the_backend():
    rows = [{"method": "mse", "by_order": {"p95": 0.03, "worst": 0.2}, "by_batch": None}]
    assert "backend's arithmetic" in order_verdicts(rows, [], order_free=True)[0]
    assert "3.0 % (mse)" in order_verdicts(rows, [], order_free=False)[0]
    assert order_verdicts([{"method": "mse", "by_order": None, "by_batch": None}], [], order_free=False) == []

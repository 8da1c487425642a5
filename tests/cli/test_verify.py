"""`quantkit verify`: every threshold computed again and compared."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest

import quantkit
from quantkit.collect.store import dump_trt_histogram_cache


@pytest.fixture
def tables(cli, tiny_bert_dir, tiny_glue_dir, tmp_path):
    """A folder with every method's table and the histograms."""
    code, _, err = cli(
        *("calibrate", tiny_bert_dir, "--task", "sst2", "--data", tiny_glue_dir, "--calib-samples", 24),
        *("--batch", 8, "--seq-len", 24, "--out", tmp_path),
    )
    assert code == 0, err
    return tmp_path


@pytest.mark.parametrize("method", ["auto", "entropy", "legacy", "minmax", "mse", "percentile"])
def test_our_own_tables_are_what_the_histograms_give(cli, tables, method):
    code, out, _ = cli("verify", tables / f"{method}.json", "--histograms", tables / "histograms.npz", "--json")
    counts = json.loads(out)["counts"]
    assert code == 0
    assert counts["differs"] == counts["no histogram"] == 0
    assert counts["equal"] == len(quantkit.load_table(tables / f"{method}.json"))


def test_a_cache_is_verified_by_the_method_it_names(cli, tables):
    code, out, _ = cli("verify", tables / "entropy.cache", "--histograms", tables / "histograms.npz")
    assert code == 0
    assert "equal" in out
    quiet = cli("verify", tables / "entropy.cache", "--histograms", tables / "histograms.npz", "--quiet")
    assert quiet == (0, "", "")


def test_a_changed_scale_is_found_and_measured(cli, tables):
    lines = (tables / "minmax.cache").read_text().splitlines()
    name, _, bits = lines[5].rpartition(": ")
    histogram = quantkit.load_histograms(tables / "histograms.npz").histograms[name]
    scale = np.frombuffer(bytes.fromhex(bits.zfill(8)), ">f4")[0]
    moved = np.float32(scale + 3 * histogram.bin_width / 127)
    lines[5] = f"{name}: {np.array(moved, '>f4').tobytes().hex()}"
    (tables / "moved.cache").write_text("\n".join(lines) + "\n")
    code, out, _ = cli("verify", tables / "moved.cache", "--histograms", tables / "histograms.npz", "--json")
    result = json.loads(out)
    assert code == 1
    assert result["counts"]["differs"] == 1
    (row,) = [row for row in result["tensors"] if row["verdict"] == "differs"]
    assert row["tensor"] == name
    assert row["bins"] == pytest.approx(3, abs=1e-3)


def test_histograms_in_tensorrts_format(cli, tables):
    histograms = quantkit.load_histograms(tables / "histograms.npz").histograms
    (tables / "hist.cache").write_bytes(dump_trt_histogram_cache(histograms))
    code, _, err = cli("verify", tables / "entropy.cache", "--histograms", tables / "hist.cache")
    assert code == 0, err


def test_histograms_of_another_network_are_refused(cli, tables):
    (tables / "other.cache").write_text("TRT-8600-EntropyCalibration2\nconv1: 3c010a14\n")
    code, _, err = cli("verify", tables / "other.cache", "--histograms", tables / "histograms.npz")
    assert code == 2
    assert "none of the 1 tensors" in err


@pytest.mark.shared
@pytest.mark.parametrize("run", ["entropy2_nb6", "minmax_nb6", "legacy_q0.9999_c0.5_nb6", "legacy_q1.0_c1.0_nb6"])
def test_tensorrts_own_files(cli, shared_dir, tmp_path, run):
    golden = shared_dir / "golden" / "synthetic"
    caches = json.loads((golden / "caches.json").read_text())["caches"]
    (tmp_path / "c.cache").write_text(caches[run])
    (tmp_path / "h.hist").write_bytes(gzip.decompress((golden / "legacy_nb6.hist.gz").read_bytes()))
    code, out, _ = cli("verify", tmp_path / "c.cache", "--histograms", tmp_path / "h.hist", "--json")
    assert code == 0
    assert json.loads(out)["counts"] == {"equal": 150, "differs": 0, "no histogram": 0, "infinite": 0}


def test_an_infinite_scale_is_named_and_nothing_is_compared(cli, tables):
    lines = (tables / "minmax.cache").read_text().splitlines()
    name = lines[5].rpartition(": ")[0]
    lines[5] = f"{name}: 7f800000"
    (tables / "infinite.cache").write_text("\n".join(lines) + "\n")
    code, out, _ = cli("verify", tables / "infinite.cache", "--histograms", tables / "histograms.npz", "--json")
    result = json.loads(out)
    assert (code, result["counts"]["infinite"], result["counts"]["equal"]) == (0, 1, len(lines) - 2)
    assert result["tensors"][-1] == {"tensor": name, "theirs": None, "ours": None, "verdict": "infinite", "bins": None}
    _, out, _ = cli("verify", tables / "infinite.cache", "--histograms", tables / "histograms.npz")
    assert out.splitlines()[-1] == f"{len(lines) - 2} equal, 1 infinite"

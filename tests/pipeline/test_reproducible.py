"""The same seed gives the same bits, with one thread and two; CPU backends' collectors agree within a tolerance."""

from __future__ import annotations

import pytest

from quantkit.calibrate import make_calibrator
from quantkit.pipeline.calibration import calibrated_table, collect
from quantkit.pipeline.run import build_only
from quantkit.pipeline.settings import Settings
from quantkit.pipeline.workspace import Workspace
from quantkit.report.terminal import SilentWatcher

TOLERANCE = 1e-5
"""Relative difference of scales between collectors; docs/reproducible.md. Entropy may choose another bin."""
NEIGHBOUR = 0.01
"""The same where the least of some candidates' errors decides: two that are equally good are this close together."""
STEADY = {"minmax": TOLERANCE, "percentile": TOLERANCE, "legacy": TOLERANCE, "mse": NEIGHBOUR, "auto": NEIGHBOUR}


@pytest.fixture
def job(tiny_bert_dir, tiny_glue_dir, tmp_path_factory, monkeypatch):
    """Settings of a small job, which finds an empty cache."""

    def made(**changes):
        monkeypatch.setenv("QUANTKIT_CACHE", str(tmp_path_factory.mktemp("empty")))
        values = {"calib_samples": 32, "batch": 4, "seq_len": 24, "threads": 1}
        return Settings(model=str(tiny_bert_dir), task="sst2", data=str(tiny_glue_dir), **values | changes)

    return made


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_table_graph_and_weights_have_the_same_bits_on_one_thread_and_two(job, backend, tmp_path):
    pytest.importorskip(backend)
    found = {}
    for name, changes in {"a": {}, "again": {}, "two": {"threads": 2}, "other seed": {"seed": 1}}.items():
        settings = job(backend=backend, precisions=("int8",), out=tmp_path / name, **changes)
        manifest = build_only(settings, SilentWatcher()).data["manifest"]
        found[name] = (manifest["calibration"]["table_sha256"], manifest["engines"]["int8"]["graph_sha256"])
    assert found["a"] == found["again"] == found["two"]
    assert found["a"][0] != found["other seed"][0]
    model = (tmp_path / "a" / "int8.onnx").read_bytes()
    assert all((tmp_path / name / "int8.onnx").read_bytes() == model for name in ("again", "two"))


@pytest.mark.parametrize("order_free", [False, True])
def test_collectors_agree_within_the_tolerance(job, order_free):
    for backend in ("openvino", "onnxruntime"):
        pytest.importorskip(backend)
    one, other = (
        collect(Workspace(job(backend=backend, order_free=order_free), SilentWatcher()))
        for backend in ("openvino", "onnxruntime")
    )
    assert one.histograms != other.histograms  # so that there is something to tolerate
    for method, tolerance in STEADY.items():
        mine, theirs = (calibrated_table(found, make_calibrator(method)).scales for found in (one, other))
        assert mine.keys() == theirs.keys()
        for name, scale in mine.items():
            assert float(scale) == pytest.approx(float(theirs[name]), rel=tolerance), (method, name)

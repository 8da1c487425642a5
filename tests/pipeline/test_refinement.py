"""Refinement in the main job: recorded, cached, switchable, left out where ranges are given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from quantkit.errors import InputError, UnknownNameError
from quantkit.network.precision import PrecisionPlan
from quantkit.network.refine import STEPS
from quantkit.pipeline.refinement import refine, steps_of
from quantkit.pipeline.run import build_only, run_settings
from quantkit.pipeline.settings import Settings
from quantkit.pipeline.workspace import Workspace
from quantkit.report.terminal import SilentWatcher


@pytest.fixture
def settings(tiny_bert_dir: Path, tiny_glue_dir: Path) -> Any:
    def made(**changes: Any) -> Settings:
        values = {"calib_samples": 40, "batch": 4, "seq_len": 24, "threads": 1, "precisions": ("int8",)}
        data = {"model": str(tiny_bert_dir), "task": "sst2", "data": str(tiny_glue_dir)}
        return Settings(**data | values | changes)

    return made


def workspace(settings: Settings) -> Workspace:
    return Workspace(settings, SilentWatcher())


def test_the_main_job_refines_and_says_so(settings: Any, tmp_path: Path) -> None:
    first = build_only(settings(out=tmp_path / "a"), SilentWatcher()).data["calibration"]["refinement"]
    second = build_only(settings(out=tmp_path / "b"), SilentWatcher()).data["calibration"]["refinement"]
    assert first["steps"] == list(STEPS)
    assert (first["reused"], second["reused"]) == (False, True)
    assert first["file"] == second["file"]
    assert Path(first["file"]).is_file()
    assert first["edges"] == second["edges"]
    assert [edge["tensor"] for edge in first["edges"]][:2] == ["embeddings.norm", "layer0.attention.context"]
    assert [edge["shifted"] for edge in first["edges"]][:8] == [True] * 8
    assert [edge["tensor"] for edge in first["edges"]][8:11] == [
        *("layer0.attention.query_scaled", "layer0.attention.key", "layer0.attention.value"),
    ]
    one, two = ((tmp_path / name / "int8.onnx").read_bytes() for name in "ab")
    assert one == two  # what comes from the cache is what was computed


def test_none_is_the_plain_model(settings: Any, tmp_path: Path) -> None:
    record = build_only(settings(refine="none", out=tmp_path / "plain"), SilentWatcher()).data
    assert record["calibration"]["refinement"] == {"steps": [], "reason": "not asked for"}
    build_only(settings(refine="bias", out=tmp_path / "bias"), SilentWatcher())
    models = {n: onnx.load(tmp_path / n / "int8.onnx") for n in ("plain", "bias")}
    arrays = {n: {t.name: onnx.numpy_helper.to_array(t) for t in m.graph.initializer} for n, m in models.items()}
    assert arrays["plain"].keys() == arrays["bias"].keys()
    changed = {name for name, array in arrays["plain"].items() if not np.array_equal(array, arrays["bias"][name])}
    assert changed
    assert all(name.endswith(".bias") for name in changed)


def test_a_given_table_is_used_as_it_is(settings: Any, tmp_path: Path) -> None:
    build_only(settings(out=tmp_path, refine="none", method="minmax"), SilentWatcher())
    given = settings(table=tmp_path / "minmax.json")
    steps, why = steps_of(workspace(given))
    assert steps == ()
    assert "table was given" in why
    assert steps_of(workspace(settings(table=tmp_path / "minmax.json", refine="all")))[0] == STEPS


def test_ranges_by_the_method_where_the_range_step_is_left_out(settings: Any) -> None:
    plan = PrecisionPlan(symmetric=False)
    found = {}
    for method in ("minmax", "percentile"):
        made = settings(
            method=method, refine="shift,smooth", parameters={"percentile": 90.0} if method != "minmax" else {}
        )
        refinement = refine(workspace(made), plan).refinement
        assert refinement is not None
        assert {entry.method for entry in refinement.entries.values()} == {method}
        assert set(refinement.entries) == {edge["tensor"] for edge in refinement.edges}
        found[method] = refinement.entries
    assert all(found["percentile"][name].amax < found["minmax"][name].amax for name in found["minmax"])


def test_keys_tell_apart_what_differs(settings: Any) -> None:
    files = set()
    for changes in ({}, {"refine": "shift,round"}, {"seed": 1}, {"ignore_padding": True}):
        for symmetric in (True, False):
            files.add(refine(workspace(settings(**changes)), PrecisionPlan(symmetric=symmetric)).record["file"])
    assert len(files) == 8
    same = refine(workspace(settings(method="entropy")), PrecisionPlan(symmetric=True)).record
    assert same["reused"]  # the range step replaces the method's ranges


def test_a_damaged_file_in_the_cache_is_made_again(settings: Any) -> None:
    plan = PrecisionPlan()
    path = Path(refine(workspace(settings()), plan).record["file"])
    path.write_bytes(path.read_bytes()[:1000])
    again = refine(workspace(settings()), plan)
    assert not again.record["reused"]
    assert refine(workspace(settings()), plan).record["reused"]


@pytest.mark.parametrize(("text", "error"), [("shfit", UnknownNameError), ("none,bias", InputError)])
def test_a_misspelt_step_ends_the_run_before_it_starts(settings: Any, text: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        run_settings(settings(refine=text), SilentWatcher())


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_refined_models_run_in_int8(settings: Any, backend: str, symmetric: bool) -> None:
    pytest.importorskip(backend)
    made = settings(backend=backend, symmetric=symmetric, precisions=("fp32", "int8"))
    record = run_settings(made, SilentWatcher(), latency=False).data
    row = next(row for row in record["engines"] if row["precision"] == "int8")
    assert row["status"] == "ok"
    assert row["int8_ops"] == 16
    assert row["against_fp32"]["agreement"] >= 0.98


def test_the_grid_follows_the_steps(settings: Any, tmp_path: Path) -> None:
    for changes, symmetric in (
        ({}, True),
        ({"refine": "none"}, False),
        ({"refine": "round,bias"}, False),
        ({"refine": "smooth,shift"}, True),
        ({"table": tmp_path / "t.json"}, False),
        ({"table": tmp_path / "t.json", "refine": "all"}, True),
        ({"symmetric": False}, False),
        ({"refine": "none", "symmetric": True}, True),
    ):
        assert settings(**changes).around_zero is symmetric, changes

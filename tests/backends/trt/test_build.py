"""The build, in this process: flags, profiles, calibrator protocol, missing scales, errors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from quantkit.backends import get_backend
from quantkit.backends.trt import build
from quantkit.backends.trt.backend import store_batches
from quantkit.backends.trt.options import BuildOptions, CalibratorOptions, Job, Outcome, ShapeRange, Source
from quantkit.backends.trt.parsable import parsable
from quantkit.errors import BackendError, CalibrationError, InputError, TableError
from quantkit.network.precision import PrecisionPlan
from quantkit.network.qdq import insert_qdq
from quantkit.tables.table import CalibrationTable, Entry, load_table

RANGE = ShapeRange((1, 8), (4, 16), (8, 32))


class Batches:
    """Feeds as a BatchSource."""

    def __init__(self, feeds) -> None:
        self.feeds = list(feeds)

    def __len__(self) -> int:
        return len(self.feeds)

    def __iter__(self):
        return iter(self.feeds)


@pytest.fixture
def folder(fake_trt, tmp_path, network) -> Path:
    """A job's folder with the tiny BERT at 4 x 16."""
    (tmp_path / "model.onnx").write_bytes(network.fixed(4, 16).SerializeToString())
    (tmp_path / "dynamic.onnx").write_bytes(parsable(network.proto).SerializeToString())
    return tmp_path


def run(folder: Path, options: BuildOptions, source: str = "model.onnx", **job) -> tuple[Outcome, dict, list[str]]:
    """Outcome, the stand-in's plan as JSON, and the steps."""
    steps: list[str] = []

    def leave(outcome: Outcome) -> None:
        raise AssertionError("left early")

    outcome = build.run(Job(Source(source), options, **job), folder, steps.append, leave)
    return outcome, json.loads((folder / build.PLAN).read_bytes()), steps


def table_of(names, scale: float = 0.05) -> CalibrationTable:
    """The same scale for every name."""
    return CalibrationTable({name: Entry(np.float32(scale)) for name in names}, "minmax")


@pytest.mark.parametrize(
    "precision, flags",
    [
        ("fp32", []),
        ("tf32", ["TF32"]),
        ("fp16", ["FP16", "TF32"]),
        ("int8", ["FP16", "INT8", "TF32"]),
        ("int8+fp16", ["FP16", "INT8", "TF32"]),
        ("int8+fp32", ["INT8"]),
    ],
)
def test_precisions_become_flags(folder, precision, flags) -> None:
    ranges = "qdq" if precision.startswith("int8") else ""
    outcome, plan, steps = run(folder, BuildOptions(precision, ranges=ranges))
    assert plan["precision"] == flags
    assert plan["verbosity"] == "DETAILED"
    assert outcome.version == "8.6.0"
    assert outcome.tensors > 80
    assert steps == [
        "load TensorRT",
        "parse the graph",
        "configure the builder",
        "build the engine",
        "write the engine",
    ]


@pytest.mark.parametrize("version", ["10.3.0", "11.0.0"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int8+fp32"])
def test_later_versions(tmp_path, network, make_feed, monkeypatch, request, version, precision) -> None:
    monkeypatch.setenv("FAKE_TRT", version)
    request.getfixturevalue("fake_trt")
    from quantkit.backends.trt.backend import TensorRTBackend

    graph, ranges = network.fixed(4, 16), ""
    if precision.startswith("int8"):
        plan = PrecisionPlan("gemm", symmetric=True)
        graph, ranges = insert_qdq(graph, table_of(network.activations(), 0.03), plan).proto, "qdq"
    backend = TensorRTBackend(audit=False)
    with backend.build(graph, BuildOptions(precision, ranges=ranges)) as engine:
        flags = set(engine.plan._engine._frozen["precision"])
        logits = engine.infer(make_feed(4, 16))["logits"]
    with get_backend("onnxruntime").compile(graph, "fp32") as cpu:
        expected = cpu.infer(make_feed(4, 16))["logits"]
    typed = version.startswith("11")
    assert ("INT8" in flags) == (precision.startswith("int8") and not typed)
    assert ("FP16" in flags) == (precision in ("fp16", "int8") and not typed)
    difference = np.abs(logits - expected).max()
    assert difference < 0.1
    # With strong types the graph itself is float16; the stand-in computes what the graph says.
    assert (difference > 1e-5) == (typed and precision in ("fp16", "int8"))


def test_profiles_cover_every_dynamic_input(folder) -> None:
    profiles = (RANGE, ShapeRange.fixed(1, 8))
    _, plan, _ = run(folder, BuildOptions(profiles=profiles), "dynamic.onnx")
    assert [set(profile) for profile in plan["profiles"]] == [{"input_ids", "attention_mask", "token_type_ids"}] * 2
    assert plan["profiles"][0]["input_ids"] == [[1, 8], [4, 16], [8, 32]]
    _, fixed, _ = run(folder, BuildOptions(profiles=profiles))
    assert fixed["profiles"] == []


def test_a_dynamic_network_needs_a_range(folder) -> None:
    with pytest.raises(InputError, match="dynamic shapes and no range"):
        run(folder, BuildOptions(), "dynamic.onnx")


def test_the_parser_s_complaint_is_told(folder) -> None:
    (folder / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(BackendError, match="ONNX parser refuses the model: node -1"):
        run(folder, BuildOptions(), "broken.onnx")


def test_a_failed_build_tells_tensorrt_s_first_error(folder, monkeypatch) -> None:
    monkeypatch.setenv("FAKE_OUT_OF_MEMORY", "1")
    with pytest.raises(BackendError, match="out of memory") as caught:
        run(folder, BuildOptions())
    assert "Free GPU memory" in caught.value.hint


@pytest.mark.parametrize("ranges", ["cache", "dynamic_range"])
def test_a_table_is_used_and_what_it_lacks_is_listed(folder, network, ranges) -> None:
    names = network.activations()
    table_of([*names[:30], "of nothing"]).save(folder / build.TABLE)
    outcome, _, steps = run(folder, BuildOptions("int8", ranges=ranges))
    assert outcome.used == names[:30]
    assert outcome.missing == names[30:]
    assert outcome.unused == ["of nothing"]
    assert "fit the table" in steps
    if ranges == "cache":
        assert outcome.fallback == names[30:]


def test_another_model_s_table_is_refused(folder) -> None:
    table_of(["a", "b"]).save(folder / build.TABLE)
    with pytest.raises(TableError, match=r"another model's: none of its 2 tensors is among the network's"):
        run(folder, BuildOptions("int8", ranges="cache"))


def test_a_zero_scale_gets_no_dynamic_range(folder, network) -> None:
    names = network.activations()
    entries = {name: Entry(np.float32(0.0 if i == 3 else 0.1)) for i, name in enumerate(names)}
    CalibrationTable(entries).save(folder / build.TABLE)
    outcome, _, _ = run(folder, BuildOptions("int8", ranges="dynamic_range"))
    assert names[3] not in outcome.used
    assert len(outcome.used) == len(names) - 1


@pytest.mark.parametrize("algorithm", ["entropy2", "entropy", "minmax", "legacy"])
def test_calibrators_see_every_batch(folder, make_feed, network, algorithm) -> None:
    feeds = [make_feed(4, 16, seed) for seed in range(3)]
    count = store_batches(folder / build.BATCHES, Batches(feeds), list(network.input_names))
    assert count == 3
    options = BuildOptions("int8", ranges="calibrate")
    _, _, steps = run(folder, options, calibrator=CalibratorOptions(algorithm, 0.99, 0.5), batches=count)
    assert [s for s in steps if "batch" in s] == [f"calibrate (batch {i} of 3)" for i in (1, 2, 3)]
    table = load_table(folder / build.CACHE)
    with get_backend("onnxruntime").tap(network.fixed(4, 16), ["embeddings.norm"]) as tap:
        largest = max(np.abs(tap.infer(feed)["embeddings.norm"]).max() for feed in feeds)
    assert table["embeddings.norm"].amax == pytest.approx(largest, rel=1e-5)
    assert (folder / build.HISTOGRAMS).is_file() == (algorithm == "legacy")
    if algorithm == "legacy":
        assert table.parameters == {"quantile": 0.99, "regression_cutoff": 0.5}


def test_the_histogram_cache_is_read_back(folder, make_feed, network) -> None:
    from quantkit.collect.store import load_trt_histogram_cache

    count = store_batches(folder / build.BATCHES, Batches([make_feed(4, 16)]), list(network.input_names))
    run(folder, BuildOptions("int8", ranges="calibrate"), calibrator=CalibratorOptions("legacy"), batches=count)
    found = load_trt_histogram_cache((folder / build.HISTOGRAMS).read_bytes())
    assert set(network.activations()) <= set(found)


def test_calibration_alone_leaves_before_the_build_goes_on(folder, make_feed, network) -> None:
    class LeftError(Exception):
        pass

    def leave(outcome: Outcome) -> None:
        raise LeftError

    store_batches(folder / build.BATCHES, Batches([make_feed(4, 16)]), list(network.input_names))
    job = Job(
        Source("model.onnx"),
        BuildOptions("int8", ranges="calibrate"),
        CalibratorOptions("minmax"),
        1,
        stop_after_calibration=True,
    )
    with pytest.raises(LeftError):
        build.run(job, folder, lambda step: None, leave)
    assert len(load_table(folder / build.CACHE)) > 80


def test_calibration_wants_fixed_shapes(folder, make_feed, network) -> None:
    store_batches(folder / build.BATCHES, Batches([make_feed(4, 16)]), list(network.input_names))
    options = BuildOptions("int8", ranges="calibrate", profiles=(RANGE,))
    with pytest.raises(BackendError, match="need a network of fixed shapes"):
        run(folder, options, "dynamic.onnx", calibrator=CalibratorOptions("minmax"))


def test_a_bad_batch_in_the_file_is_raised_after_the_build_and_no_cache_is_kept(folder, make_feed) -> None:
    feed = make_feed(4, 16)
    arrays = {name: np.stack([array, array]).astype(np.int64) for name, array in feed.items()}
    arrays["input_ids"][1, 0, 0] = 1 << 40
    np.savez(folder / build.BATCHES, **arrays)
    with pytest.raises(CalibrationError, match=r"batch 1 holds values in 'input_ids' that int32 cannot hold"):
        run(folder, BuildOptions("int8", ranges="calibrate"), calibrator=CalibratorOptions("minmax"))
    assert not (folder / build.CACHE).exists()


def test_batches_of_another_shape_are_refused_when_they_are_stored(tmp_path, make_feed) -> None:
    feeds = Batches([make_feed(4, 16), make_feed(4, 16), make_feed(3, 16)])
    with pytest.raises(CalibrationError, match=r"batch 2 has the shape \(3, 16\) for 'input_ids'; expected \(4, 16\)"):
        store_batches(tmp_path / "b.npz", feeds, ["input_ids"])
    with pytest.raises(CalibrationError, match="batch 0 has no 'position_ids'"):
        store_batches(tmp_path / "b.npz", feeds, ["position_ids"])
    with pytest.raises(CalibrationError, match="no calibration batches"):
        store_batches(tmp_path / "b.npz", Batches([]), ["input_ids"])


def test_masked_lm_by_the_api_says_which_weights_are_missing(folder, tiny_bert_dir) -> None:
    from quantkit.errors import ModelError

    job = Job(Source(model=str(tiny_bert_dir), head="masked-lm"), BuildOptions("fp32", "api", profiles=(RANGE,)))
    with pytest.raises(ModelError, match=r"cls\.predictions"):
        build.run(job, folder, lambda step: None, lambda outcome: None)


def test_tensors_that_tensorrt_names_itself_are_not_missing(folder, network, monkeypatch) -> None:
    unnamed = "(Unnamed Layer* 35) [Shuffle]_output"
    monkeypatch.setattr(build, "float_tensors", lambda trt, made: [*network.activations(), unnamed])
    table_of(network.activations()[:30]).save(folder / build.TABLE)
    outcome, _, _ = run(folder, BuildOptions("int8", ranges="dynamic_range"))
    assert outcome.missing == network.activations()[30:]

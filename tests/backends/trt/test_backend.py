"""The backend: what it says of itself, plan cache, calibration, tables, options."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from quantkit.backends import get_backend
from quantkit.backends.trt import plans
from quantkit.backends.trt.backend import TensorRTBackend
from quantkit.backends.trt.options import BuildOptions, CalibratorOptions, ShapeRange, Source
from quantkit.errors import (
    BackendError,
    CalibrationError,
    InputError,
    MissingDependencyError,
    StorageError,
    UnknownNameError,
)
from quantkit.network.precision import PrecisionPlan
from quantkit.network.qdq import insert_qdq
from quantkit.tables.table import CalibrationTable, Entry


class Batches:
    """Feeds as a BatchSource."""

    def __init__(self, feeds) -> None:
        self.feeds = list(feeds)

    def __len__(self) -> int:
        return len(self.feeds)

    def __iter__(self):
        return iter(self.feeds)


@pytest.fixture
def backend(fake_trt) -> TensorRTBackend:
    return TensorRTBackend()


@pytest.fixture
def table(network) -> CalibrationTable:
    return CalibrationTable({name: Entry(np.float32(0.05)) for name in network.activations()}, "minmax")


def count_builds(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """A list that grows with every child process."""
    from quantkit.backends.trt import child

    jobs: list[object] = []
    run_job = child.run_job

    def counted(job, folder, **options):
        jobs.append(job)
        return run_job(job, folder, **options)

    monkeypatch.setattr(child, "run_job", counted)
    return jobs


def test_without_tensorrt_it_says_how_to_install_it() -> None:
    backend = get_backend("tensorrt")
    assert backend.available().startswith("tensorrt and pycuda not installed: pip install")
    assert backend.precisions() == ()
    with pytest.raises(MissingDependencyError, match="not installed"):
        backend.describe()


def test_without_a_gpu_it_says_so(backend, monkeypatch) -> None:
    monkeypatch.setenv("FAKE_NO_GPU", "1")
    assert backend.available() == "There is no CUDA device: engines can be neither built nor run."


def test_a_gpu_that_this_tensorrt_does_not_know(backend, monkeypatch) -> None:
    monkeypatch.setenv("FAKE_GPU", "NVIDIA B200")
    monkeypatch.setenv("FAKE_CC", "10.0")
    assert backend.available() == "NVIDIA B200 (compute capability 10.0) needs TensorRT 10.8.0 or later."


def test_what_it_says_of_itself(backend) -> None:
    facts = backend.describe()
    assert facts["version"] == "8.6.0"
    assert facts["gpu"]["compute_capability"] == "9.0"
    assert facts["capabilities"] == ["FP32", "TF32", "FP16", "INT8"]
    assert {row["name"] for row in facts["table"]} >= {"fp32", "calibrators", "qdq", "cuda graphs"}
    json.dumps(facts)
    assert backend.precisions() == ("fp32", "fp16", "int8", "tf32", "int8+fp16", "int8+fp32")


def test_a_version_without_calibrators_is_a_sentence(backend, network, make_feed, monkeypatch) -> None:
    monkeypatch.setenv("FAKE_TRT", "11.0.0")
    from quantkit.backends.trt import runtime

    monkeypatch.setattr(runtime.load(), "__version__", "11.0.0")
    with pytest.raises(BackendError, match=r"has no calibrators: they were removed in 11\.0\.0"):
        backend.calibrate(network.fixed(4, 16), Batches([make_feed(4, 16)]), CalibratorOptions())
    options = BuildOptions("int8", ranges="cache")
    with pytest.raises(BackendError, match="has no calibration caches"):
        backend.build(network.fixed(4, 16), options, CalibrationTable({"a": Entry(np.float32(1))}))


def test_a_plan_is_built_once_and_found_again(backend, network, make_feed, monkeypatch) -> None:
    jobs = count_builds(monkeypatch)
    feed = make_feed(4, 16)
    with backend.compile(network.fixed(4, 16), "fp32") as first:
        logits = first.infer(feed)["logits"]
        assert first.compute == "f32"
        assert first.size_bytes > 1000
        assert Path(first.details["plan"]).is_file()
    with backend.compile(network.fixed(4, 16), "fp32") as second:
        np.testing.assert_array_equal(second.infer(feed)["logits"], logits)
    assert len(jobs) == 1
    backend.compile(network.fixed(4, 16), "fp16").close()
    backend.compile(network.fixed(2, 16), "fp32").close()
    replace(backend, workspace_mb=64).compile(network.fixed(4, 16), "fp32").close()
    assert len(jobs) == 4
    replace(backend, reuse=False).compile(network.fixed(4, 16), "fp32").close()
    assert len(jobs) == 5


def test_a_damaged_plan_is_not_loaded_but_built_again(backend, network, monkeypatch) -> None:
    jobs = count_builds(monkeypatch)
    with backend.compile(network.fixed(4, 16), "fp32") as engine:
        path = Path(engine.details["plan"])
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(StorageError, match="is damaged"):
        backend.load(path)
    with backend.compile(network.fixed(4, 16), "fp32") as engine:
        assert any("is damaged" in note for note in engine.notes)
    assert len(jobs) == 2


def test_a_plan_of_another_gpu_is_built_again(backend, network, monkeypatch) -> None:
    from quantkit.backends.trt import cuda

    jobs = count_builds(monkeypatch)
    with backend.compile(network.fixed(4, 16), "fp32") as engine:
        path = Path(engine.details["plan"])
    monkeypatch.setenv("FAKE_GPU", "NVIDIA H200")
    cuda.device.cache_clear()
    with pytest.raises(BackendError, match="was built for NVIDIA H100"):
        backend.load(path)
    backend.compile(network.fixed(4, 16), "fp32").close()
    assert len(jobs) == 2


def test_a_plan_from_elsewhere_needs_trust(backend, network, make_feed, tmp_path) -> None:
    with backend.compile(network.fixed(4, 16), "fp32") as engine:
        shutil.copyfile(engine.details["plan"], tmp_path / "stranger.plan")
    with pytest.raises(BackendError, match="was not built by this user"):
        backend.load(tmp_path / "stranger.plan")
    with backend.load(tmp_path / "stranger.plan", trust=True) as engine:
        assert engine.infer(make_feed(4, 16))["logits"].shape == (4, 2)
        assert engine.int8_ops == 0


def test_tables_are_used_both_ways_and_what_is_missing_is_data(backend, network, table, make_feed, tiny_bert_dir):
    names = network.activations()
    some = CalibrationTable({name: table[name] for name in names[:40]}, "minmax")
    feed = make_feed(4, 16)
    for ranges in ("cache", "dynamic_range"):
        with backend.build(network.fixed(4, 16), BuildOptions("int8", ranges=ranges), some) as engine:
            assert engine.audit.scales_missing == tuple(names[40:])
            assert len(engine.audit.scales_used) == 40
            assert engine.details["audit"]["scales_missing"] == names[40:]
            assert "Nothing in this engine is INT8" in engine.notes[0]
            engine.infer(feed)
    source = Source(model=str(tiny_bert_dir), batch=4, seq_len=16)
    with backend.build(
        source, BuildOptions("int8", "api", "dynamic_range", dense="convolution", fuse_qkv=True), table
    ) as engine:
        assert engine.audit.scales_missing == ()
        assert set(names) <= set(engine.audit.scales_used)
        assert "layer0.attention.qkv.matmul@inner" in engine.audit.scales_used


def test_a_table_is_needed_where_tensorrt_places_int8(backend, network) -> None:
    with pytest.raises(InputError, match="needs a calibration table"):
        backend.build(network.fixed(4, 16), BuildOptions("int8", ranges="cache"))
    with pytest.raises(BackendError, match="no Q/DQ pairs and no table"):
        backend.compile(network.fixed(4, 16), "int8")


def test_q_dq_graphs_are_compiled(backend, network, table, make_feed) -> None:
    graph = insert_qdq(network.fixed(4, 16), table, PrecisionPlan("gemm", symmetric=True)).proto
    for precision in ("int8", "int8+fp16", "int8+fp32"):
        with backend.compile(graph, precision) as engine:
            assert engine.precision == precision
            assert engine.infer(make_feed(4, 16))["logits"].shape == (4, 2)


def test_calibration_gives_a_table_and_keeps_no_engine(backend, network, make_feed) -> None:
    feeds = [make_feed(4, 16, seed) for seed in range(2)]
    found = backend.calibrate(network.fixed(4, 16), Batches(feeds), CalibratorOptions("minmax"))
    assert found.cache.startswith(b"TRT-8600-MinMaxCalibration\n")
    assert set(network.activations()) <= set(found.table.names)
    assert found.histograms == {}
    legacy = backend.calibrate(network.fixed(4, 16), Batches(feeds), CalibratorOptions("legacy", 0.5))
    assert legacy.table.parameters["quantile"] == 0.5
    assert set(legacy.histograms) == set(legacy.table.names)
    assert not list(plans.folder().glob("*.plan"))


def test_a_loader_that_breaks_is_told_before_the_build(backend, network, make_feed) -> None:
    with pytest.raises(CalibrationError, match=r"batch 1 has the shape \(2, 16\)"):
        feeds = Batches([make_feed(4, 16), make_feed(2, 16)])
        backend.calibrate(network.fixed(4, 16), feeds, CalibratorOptions())


def test_a_crash_keeps_what_was_calibrated(backend, network, make_feed, monkeypatch, tmp_path) -> None:
    from quantkit.backends.trt.options import Job
    from quantkit.tables.table import load_table

    monkeypatch.setenv("FAKE_CRASH_AFTER_CALIBRATION", "1")
    from quantkit.backends.trt.backend import store_batches

    (tmp_path / "model.onnx").write_bytes(network.fixed(4, 16).SerializeToString())
    count = store_batches(tmp_path / "batches.npz", Batches([make_feed(4, 16)]), list(network.input_names))
    options = BuildOptions("int8", ranges="calibrate")
    job = Job(Source("model.onnx"), options, CalibratorOptions("minmax"), count)
    with pytest.raises(BackendError, match="crashed with a segmentation fault at the step 'build the engine with") as e:
        backend._run(job, tmp_path)
    kept = Path(e.value.hint.rpartition("is kept: ")[2].rstrip("."))
    assert len(load_table(kept)) >= len(network.activations())


def test_the_tap_gives_every_activation(backend, network, make_feed) -> None:
    names, feed = network.activations(), make_feed(4, 16)
    with get_backend("onnxruntime").tap(network.fixed(4, 16), names) as cpu:
        expected = {name: array.copy() for name, array in cpu.infer(feed).items()}
    with backend.tap(network.fixed(4, 16), names) as tap:
        found = tap.infer(feed)
    assert list(found) == names
    for name in names:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5, err_msg=name)


def files(path: Path):
    """Where the model lies, as the pipeline tells it."""
    return lambda: (path, None)


def test_options_of_its_own(backend, tiny_bert_dir) -> None:
    assert backend.configured({}, files(tiny_bert_dir)) == backend
    shaped = backend.configured({"shapes": "1x8:4x16:8x32,1x8", "cuda_graphs": True}, files(tiny_bert_dir))
    assert shaped.profiles == (ShapeRange((1, 8), (4, 16), (8, 32)), ShapeRange.fixed(1, 8))
    assert shaped.graphs
    assert shaped.dynamic
    api = backend.configured({"network": "api"}, files(tiny_bert_dir))
    assert (api.network, api.ranges, api.model) == ("api", "cache", str(tiny_bert_dir))
    assert api.places_int8
    assert not backend.places_int8


@pytest.mark.parametrize(
    "options, error",
    [
        ({"network": "caffe"}, UnknownNameError),
        ({"ranges": "guess"}, UnknownNameError),
        ({"shapes": "big"}, InputError),
        ({"colour": "red"}, InputError),
    ],
)
def test_bad_options_are_errors(backend, tiny_bert_dir, options, error) -> None:
    with pytest.raises(error):
        backend.configured(options, files(tiny_bert_dir))


def test_the_network_api_needs_a_folder(backend, tiny_bert_dir) -> None:
    with pytest.raises(InputError, match="needs a model folder"):
        backend.configured({"network": "api"}, files(tiny_bert_dir / "config.json"))
    with pytest.raises(InputError, match="has no option 'network'"):
        get_backend("onnxruntime").configured({"network": "api"}, files(tiny_bert_dir))


def test_compile_through_the_network_api(backend, network, tiny_bert_dir, table, make_feed) -> None:
    api = backend.configured({"network": "api"}, files(tiny_bert_dir))
    feed = make_feed(4, 16)
    with get_backend("onnxruntime").compile(network.fixed(4, 16), "fp32") as cpu:
        expected = cpu.infer(feed)["logits"]
    with api.compile(network.fixed(4, 16), "fp32") as engine:
        np.testing.assert_allclose(engine.infer(feed)["logits"], expected, atol=1e-5)
        with pytest.raises(BackendError, match="table has the rows"):
            engine.infer({**feed, "input_ids": feed["input_ids"] + 10_000})
    with api.compile(network.fixed(4, 16), "int8", table=table) as engine:
        assert engine.precision == "int8"


def test_what_was_found_out_when_it_was_built_needs_no_second_look(backend, network, monkeypatch) -> None:
    from quantkit.backends.trt import child

    with backend.compile(network.fixed(4, 16), "fp16") as engine:
        path, notes = Path(engine.details["plan"]), engine.audit.verdict
    monkeypatch.setattr(child, "inspect_in_child", None)
    audit, told = backend.inspect(path)
    assert audit.verdict == notes
    assert told["precision"] == "fp16"


def test_a_plan_without_an_inspection_is_looked_into(backend, network) -> None:
    with replace(backend, audit=False).compile(network.fixed(4, 16), "fp16") as engine:
        path = Path(engine.details["plan"])
        assert engine.audit.layers == ()
    audit, _ = backend.inspect(path)
    assert len(audit.layers) == 2

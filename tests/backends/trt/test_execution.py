"""The runner: shapes, types, buffers, contexts, threads."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from quantkit.backends.trt import build
from quantkit.backends.trt.cuda import device
from quantkit.backends.trt.engine import TrtEngine
from quantkit.backends.trt.execution import KEPT_LAYOUTS
from quantkit.backends.trt.options import BuildOptions, Job, ShapeRange, Source
from quantkit.backends.trt.plan import LoadedPlan, example_feed
from quantkit.backends.trt.rules import Rules
from quantkit.errors import BackendError

RANGE = ShapeRange((1, 8), (4, 16), (8, 32))


def make_engine(folder, network, tiny_bert_dir, profiles=(RANGE,), shape=(0, 0), graphs=False) -> TrtEngine:
    """An engine of the network API, which the stand-in computes quickly."""
    from quantkit.backends.base import EngineInfo

    source = Source(model=str(tiny_bert_dir), batch=shape[0], seq_len=shape[1])
    job = Job(source, BuildOptions("fp32", "api", profiles=profiles))
    build.run(job, folder, lambda step: None, lambda outcome: None)
    plan = LoadedPlan((folder / build.PLAN).read_bytes(), device())
    rules = Rules.of_graph(network.proto)
    return TrtEngine(EngineInfo("fp32", "f32", plan.size_bytes), plan, device(), rules, graphs=graphs)


@pytest.fixture
def engine(fake_trt, tmp_path, network, tiny_bert_dir):
    with make_engine(tmp_path, network, tiny_bert_dir) as made:
        yield made


@pytest.fixture
def reference(network):
    from quantkit.backends import get_backend

    def run(feed):
        with get_backend("onnxruntime").compile(network.fixed(*feed["input_ids"].shape), "fp32") as cpu:
            return cpu.infer(feed)["logits"]

    return run


def test_tensors_are_known_by_name(engine) -> None:
    assert [(s.name, s.dtype, s.shape) for s in engine.inputs] == [
        (name, np.dtype(np.int32), (-1, -1)) for name in ("input_ids", "attention_mask", "token_type_ids")
    ]
    assert [(s.name, s.dtype, s.shape) for s in engine.outputs] == [("logits", np.dtype(np.float32), (-1, 2))]


@pytest.mark.parametrize("shape", [(1, 8), (4, 16), (8, 32), (3, 9)])
def test_any_shape_of_the_profile(engine, make_feed, reference, shape) -> None:
    feed = make_feed(*shape)
    np.testing.assert_allclose(engine.infer(feed)["logits"], reference(feed), atol=1e-5)


@pytest.mark.parametrize("shape", [(9, 16), (4, 33), (1, 7)])
def test_a_shape_outside_the_profile_is_a_sentence(engine, make_feed, shape) -> None:
    message = rf"shape \({shape[0]}, {shape[1]}\); the engine takes \(1, 8\) to \(8, 32\)\."
    with pytest.raises(BackendError, match=message) as caught:
        engine.infer(make_feed(*shape))
    assert "--shapes" in caught.value.hint
    assert engine.infer(make_feed(2, 8))["logits"].shape == (2, 2)


def test_wrong_types_and_names_are_sentences(engine, make_feed) -> None:
    feed = make_feed(2, 8)
    with pytest.raises(BackendError, match="type float64; expected int32"):
        engine.infer({**feed, "input_ids": feed["input_ids"].astype(float)})
    with pytest.raises(BackendError, match="without 'attention_mask'"):
        engine.infer({"input_ids": feed["input_ids"]})
    with pytest.raises(BackendError, match="values beyond int32"):
        engine.infer({**feed, "attention_mask": feed["attention_mask"] << 40})
    with pytest.raises(BackendError, match="table has the rows"):
        engine.infer({**feed, "input_ids": feed["input_ids"] + 10_000})
    with pytest.raises(BackendError, match="has 9 for the dimension 'sequence'; expected 8"):
        engine.infer({**feed, "attention_mask": np.ones((2, 9), np.int64)})


def test_results_belong_to_the_caller(engine, make_feed) -> None:
    first = engine.infer(make_feed(4, 16, 1))["logits"]
    kept = first.copy()
    engine.infer(make_feed(4, 16, 2))
    np.testing.assert_array_equal(first, kept)


def test_profiles_are_switched(fake_trt, tmp_path, network, tiny_bert_dir, make_feed, reference) -> None:
    profiles = (ShapeRange.fixed(1, 8), ShapeRange((2, 8), (4, 16), (8, 32)))
    with make_engine(tmp_path, network, tiny_bert_dir, profiles) as engine:
        for shape in ((1, 8), (8, 32), (1, 8), (2, 8)):
            feed = make_feed(*shape)
            np.testing.assert_allclose(engine.infer(feed)["logits"], reference(feed), atol=1e-5)
        with pytest.raises(BackendError, match=r"takes \(1, 8\) or \(2, 8\) to \(8, 32\)\."):
            engine.infer(make_feed(1, 9))


def test_buffers_are_allocated_once(engine, make_feed) -> None:
    import pycuda.driver as cuda

    engine.infer(make_feed(1, 8))
    held = sorted(cuda.blocks), list(cuda.pinned)
    for i in range(40):
        engine.infer(make_feed(1 + i % 8, 8 + i % 25, i))
    assert (sorted(cuda.blocks), list(cuda.pinned)) == held


def test_closing_gives_all_memory_back(fake_trt, tmp_path, network, tiny_bert_dir, make_feed) -> None:
    import pycuda.driver as cuda

    before = len(cuda.blocks), len(cuda.pinned)
    engine = make_engine(tmp_path, network, tiny_bert_dir)
    runner = engine.runner()
    runner.infer(make_feed(2, 8))
    assert len(cuda.blocks) == before[0] + 4
    engine.close()
    engine.close()
    assert (len(cuda.blocks), len(cuda.pinned)) == before
    assert runner.closed
    for call in (lambda: engine.infer(make_feed(2, 8)), engine.runner, lambda: engine.measure(make_feed(2, 8))):
        with pytest.raises(BackendError, match="is closed"):
            call()


def test_more_shapes_than_are_kept(engine, make_feed, reference) -> None:
    for i in range(KEPT_LAYOUTS + 10):
        engine.infer(make_feed(1 + i % 8, 8 + i % 25))
    feed = make_feed(1, 8)
    np.testing.assert_allclose(engine.infer(feed)["logits"], reference(feed), atol=1e-5)
    assert len(engine._execution._layouts) <= KEPT_LAYOUTS


def test_a_context_for_each_thread(engine, make_feed, reference) -> None:
    feeds = [make_feed(1 + i, 8 + i, i) for i in range(4)]
    expected = [reference(feed) for feed in feeds]
    failures: list[str] = []

    def work(number: int) -> None:
        with engine.runner() as runner:
            for _ in range(5):
                for feed, want in zip(feeds, expected, strict=True):
                    if not np.allclose(runner.infer(feed)["logits"], want, atol=1e-5):
                        failures.append(str(number))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_no_context_left_is_a_sentence(engine, monkeypatch) -> None:
    monkeypatch.setenv("FAKE_NO_CONTEXT", "1")
    with pytest.raises(BackendError, match="No execution context of 1 MiB can be made: Cuda Runtime"):
        engine.runner()


def test_without_a_driver_library_graphs_are_done_without(
    fake_trt, tmp_path, network, tiny_bert_dir, make_feed
) -> None:
    from quantkit.backends.trt import graphs

    graphs._library.cache_clear()
    monkey = pytest.MonkeyPatch()
    monkey.setattr(graphs, "LIBRARY", "libnothing-at-all.so")
    try:
        with make_engine(tmp_path, network, tiny_bert_dir, graphs=True) as engine:
            first = [engine.infer(make_feed(2, 8))["logits"] for _ in range(4)]
            assert "CUDA graphs cannot be used" in engine.graph_refusal
        assert all((one == first[0]).all() for one in first)
    finally:
        monkey.undo()
        graphs._library.cache_clear()


def test_phases_are_measured(engine, make_feed) -> None:
    phases = engine.measure(make_feed(4, 16))
    assert 0 < phases.compute <= phases.host
    assert min(phases.h2d, phases.d2h, phases.enqueue) > 0


def test_layers_are_profiled(engine) -> None:
    from quantkit.backends.trt.inspection import layer_times

    times = layer_times(engine.plan, device())
    assert times
    assert all(ms > 0 for ms in times.values())


def test_an_example_fits_the_engine(engine) -> None:
    feed = example_feed(engine.plan)
    assert feed["input_ids"].shape == (4, 16)
    assert feed["attention_mask"].all()
    assert np.isfinite(engine.infer(feed)["logits"]).all()


def test_bytes_that_are_no_plan(fake_trt) -> None:
    with pytest.raises(BackendError, match="cannot be loaded: Magic tag does not match"):
        LoadedPlan(b"nothing", device())

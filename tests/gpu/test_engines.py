"""Engines on the GPU: two ways in, precisions, shapes, threads, CUDA graphs, memory."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest

from quantkit.backends.trt.options import DENSE, NORMS, BuildOptions, ShapeRange, Source
from quantkit.errors import BackendError

pytestmark = pytest.mark.gpu
RANGE = ShapeRange((1, 8), (4, 16), (8, 32))


@pytest.mark.parametrize("precision, tolerance", [("fp32", 1e-3), ("tf32", 2e-2), ("fp16", 3e-2)])
def test_an_imported_graph_gives_the_cpu_s_logits(backend, network, feed, reference, precision, tolerance) -> None:
    given = feed(4, 16)
    with backend.compile(network.fixed(4, 16), precision) as engine:
        assert np.abs(engine.infer(given)["logits"] - reference(given)).max() < tolerance
        assert engine.size_bytes > 1000


@pytest.mark.parametrize("dense", DENSE)
@pytest.mark.parametrize("norm", NORMS)
def test_the_network_api_gives_the_cpu_s_logits(backend, tiny_bert_dir, feed, reference, dense, norm) -> None:
    given = feed(4, 16)
    options = BuildOptions("fp32", "api", dense=dense, norm=norm, level=0)
    with backend.build(Source("", str(tiny_bert_dir), batch=4, seq_len=16), options) as engine:
        assert np.abs(engine.infer(given)["logits"] - reference(given)).max() < 1e-3


@pytest.mark.parametrize("network_way", ["onnx", "api"])
def test_any_shape_inside_the_profile(backend, network, tiny_bert_dir, feed, reference, network_way) -> None:
    options = BuildOptions("fp32", network_way, profiles=(RANGE,), level=0)
    source = network.proto if network_way == "onnx" else Source("", str(tiny_bert_dir))
    with backend.build(source, options) as engine:
        for shape in ((1, 8), (4, 16), (8, 32), (3, 9), (1, 32)):
            given = feed(*shape)
            assert np.abs(engine.infer(given)["logits"] - reference(given)).max() < 1e-3
        with pytest.raises(BackendError, match=r"shape \(9, 16\); the engine takes \(1, 8\) to \(8, 32\)"):
            engine.infer(feed(9, 16))
        assert engine.infer(feed(2, 16))["logits"].shape == (2, 2)


def test_two_profiles(backend, network, feed, reference) -> None:
    options = BuildOptions("fp32", profiles=(ShapeRange.fixed(1, 8), ShapeRange((2, 8), (4, 16), (8, 32))), level=0)
    with backend.build(network.proto, options) as engine:
        for shape in ((1, 8), (8, 32), (1, 8), (2, 8)):
            given = feed(*shape)
            assert np.abs(engine.infer(given)["logits"] - reference(given)).max() < 1e-3


def test_masked_lm_head_agrees_with_the_cpu(backend, tmp_path, tiny_bert_dir, feed) -> None:
    from safetensors.numpy import load_file, save_file

    from quantkit.backends import get_backend
    from quantkit.network.model import load_model

    for file in tiny_bert_dir.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tiny_bert_dir / "model.safetensors")
    vocab, hidden = weights["bert.embeddings.word_embeddings.weight"].shape
    draw = np.random.default_rng(1)
    head = "cls.predictions.transform"
    weights[f"{head}.dense.weight"] = (draw.standard_normal((hidden, hidden)) * 0.2).astype(np.float32)
    weights[f"{head}.dense.bias"] = np.zeros(hidden, np.float32)
    weights[f"{head}.LayerNorm.weight"] = np.ones(hidden, np.float32)
    weights[f"{head}.LayerNorm.bias"] = np.zeros(hidden, np.float32)
    weights["cls.predictions.bias"] = np.zeros(vocab, np.float32)
    save_file(weights, tmp_path / "model.safetensors")
    given = feed(2, 16)
    graph = load_model(tmp_path, head="masked-lm").fixed(2, 16)
    with get_backend("onnxruntime").compile(graph, "fp32") as cpu:
        expected = cpu.infer(given)["logits"]
    source = Source("", str(tmp_path), head="masked-lm", batch=2, seq_len=16)
    with backend.build(source, BuildOptions("fp32", "api", level=0)) as engine:
        logits = engine.infer(given)["logits"]
        assert logits.shape == (2, 16, vocab)
        assert np.abs(logits - expected).max() < 1e-3


def test_cuda_graphs_give_the_same(backend, network, feed) -> None:
    options = BuildOptions("fp32", profiles=(RANGE,), level=0)
    given = [feed(*shape) for shape in ((1, 8), (4, 16), (8, 32), (3, 9), (2, 16), (4, 16))]
    with backend.build(network.proto, options) as plain:
        expected = [plain.infer(one)["logits"] for one in given]
    with replace(backend, graphs=True).build(network.proto, options) as engine:
        for _ in range(4):
            for one, want in zip(given, expected, strict=True):
                np.testing.assert_allclose(engine.infer(one)["logits"], want, atol=1e-6)
        assert engine.graph_refusal == ""


def test_threads_with_a_context_each(backend, network, feed) -> None:
    options = BuildOptions("fp32", profiles=(RANGE,), level=0)
    with backend.build(network.proto, options) as engine:
        feeds = [feed(1 + i % 8, 8 + i, i) for i in range(12)]
        expected = [engine.infer(one)["logits"] for one in feeds]
        wrong: list[str] = []

        def work(number: int) -> None:
            with engine.runner() as runner:
                for _ in range(20):
                    for one, want in zip(feeds, expected, strict=True):
                        if not np.allclose(runner.infer(one)["logits"], want, atol=1e-6):
                            wrong.append(f"thread {number}")

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong


def test_device_memory_stays(backend, network, feed) -> None:
    from quantkit.backends.trt.cuda import device

    options = BuildOptions("fp32", profiles=(RANGE,), level=0)
    with backend.build(network.proto, options) as engine:
        feeds = [feed(1 + i % 8, 8 + 2 * i, i) for i in range(12)]
        for one in feeds:
            engine.infer(one)
        before = device().free_bytes()
        for _ in range(100):
            for one in feeds:
                engine.infer(one)
        assert device().free_bytes() == before


def test_phases_add_up(backend, network, feed) -> None:
    with backend.compile(network.fixed(4, 16), "fp32") as engine:
        engine.infer(feed(4, 16))
        phases = engine.measure(feed(4, 16))
        assert 0 < phases.compute < phases.host
        assert phases.h2d > 0
        assert phases.d2h > 0


def test_a_tap_gives_what_the_cpu_computes(backend, network, feed) -> None:
    from quantkit.backends import get_backend

    given, names = feed(4, 16), network.activations()
    with get_backend("onnxruntime").tap(network.fixed(4, 16), names) as cpu:
        expected = {name: array.copy() for name, array in cpu.infer(given).items()}
    with backend.tap(network.fixed(4, 16), names) as tap:
        found = tap.infer(given)
    assert list(found) == names
    worst = max(float(np.abs(found[name] - expected[name]).max()) for name in names if "mask" not in name)
    assert worst < 5e-3

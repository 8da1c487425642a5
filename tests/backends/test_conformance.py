"""What every backend promises, over everything that is registered and installed, and over the fake one."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest
from onnx import TensorProto, helper

from quantkit.backends import BACKENDS, get_backend
from quantkit.backends.base import PRECISIONS, Engine
from quantkit.errors import BackendError, UnknownNameError
from quantkit.types import Runner

REAL = [name for name in BACKENDS if get_backend(name).available() is None]
ALL = [*REAL, "fake"]
all_backends = pytest.mark.parametrize("name", ALL)
real_backends = pytest.mark.parametrize("name", REAL)


INT8_KERNELS = ("FullyConnected i8", "MatMulIntegerToFloat")


@pytest.fixture(scope="module")
def dynamic(make_transformer):
    return make_transformer()


@pytest.fixture(scope="module")
def fixed(make_transformer):
    return make_transformer(4, 8)


@pytest.fixture(scope="module")
def engines(dynamic, fixed):
    """One engine a backend for dynamic and for fixed shapes, shared by the tests that do not close it."""
    made = {
        (name, kind): get_backend(name).compile(graph.proto, "fp32", threads=1)
        for name in ALL
        for kind, graph in (("dynamic", dynamic), ("fixed", fixed))
    }
    yield made
    for engine in made.values():
        engine.close()


def test_at_least_the_default_backend_is_here():
    assert "openvino" in REAL


@all_backends
class TestEngine:
    def test_says_what_it_takes_and_gives(self, name, engines):
        engine = engines[name, "dynamic"]
        assert isinstance(engine, Engine)
        _: Runner = engine
        assert {s.name: (s.dtype, s.shape) for s in engine.inputs} == {
            n: (np.dtype(np.int64), (-1, -1)) for n in ("input_ids", "attention_mask", "token_type_ids")
        }
        assert [(s.name, s.dtype, s.shape) for s in engine.outputs] == [("logits", np.dtype(np.float32), (-1, 3))]
        assert engines[name, "fixed"].inputs[0].shape == (4, 8)
        assert engines[name, "fixed"].outputs[0].shape == (4, 3)

    def test_says_what_it_is(self, name, engines, dynamic):
        engine = engines[name, "dynamic"]
        assert (engine.backend, engine.precision, engine.compute) == (name, "fp32", "f32")
        assert engine.size_bytes == len(dynamic.proto.SerializeToString())
        assert isinstance(engine.notes, tuple)
        assert engine.int8_ops == 0
        assert engine.float_ops == 9

    @pytest.mark.parametrize(("batch", "sequence"), [(1, 1), (4, 8), (3, 5), (4, 8)])
    def test_any_shape_of_a_dynamic_graph(self, name, engines, make_feed, batch, sequence):
        logits = engines[name, "dynamic"].infer(make_feed(batch, sequence))["logits"]
        assert (logits.shape, logits.dtype) == ((batch, 3), np.float32)
        assert np.isfinite(logits).all()

    def test_padding_changes_nothing(self, name, engines, make_feed):
        short, engine = make_feed(4, 5), engines[name, "dynamic"]
        padded = {key: np.pad(array, ((0, 0), (0, 3))) for key, array in short.items()}
        np.testing.assert_allclose(engine.infer(padded)["logits"], engine.infer(short)["logits"], atol=2e-5)

    def test_results_do_not_depend_on_what_ran_before_and_may_be_kept(self, name, engines, make_feed):
        engine, first, second = engines[name, "fixed"], make_feed(seed=1), make_feed(seed=2)
        kept = engine.infer(first)["logits"]
        copy = kept.copy()
        other = engine.infer(second)["logits"]
        assert not np.array_equal(kept, other)
        np.testing.assert_array_equal(kept, copy)
        np.testing.assert_array_equal(engine.infer(first)["logits"], copy)
        kept[:] = 0  # the caller's own memory

    def test_feed_is_left_alone(self, name, engines, make_feed):
        feed = make_feed()
        copies = {key: array.copy() for key, array in feed.items()}
        for array in feed.values():
            array.flags.writeable = False
        engines[name, "fixed"].infer(feed)
        for key, array in copies.items():
            np.testing.assert_array_equal(feed[key], array)

    def test_int32_and_strided_arrays_are_the_same_feed(self, name, engines, make_feed):
        engine, feed = engines[name, "fixed"], make_feed()
        expected = engine.infer(feed)["logits"]
        narrow = {key: array.astype(np.int32) for key, array in feed.items()}
        strided = {key: np.asfortranarray(array) for key, array in feed.items()}
        np.testing.assert_array_equal(engine.infer(narrow)["logits"], expected)
        np.testing.assert_array_equal(engine.infer(strided)["logits"], expected)

    def test_segments_may_be_left_out(self, name, engines, make_feed):
        engine, feed = engines[name, "fixed"], make_feed()
        feed["token_type_ids"] = np.zeros_like(feed["token_type_ids"])
        expected = engine.infer(feed)["logits"]
        del feed["token_type_ids"]
        np.testing.assert_array_equal(engine.infer(feed)["logits"], expected)

    def test_segments_are_ignored_by_a_graph_without_them(self, name, make_transformer, make_feed):
        feed = make_feed()
        with get_backend(name).compile(make_transformer(segments=False).proto, "fp32", threads=1) as engine:
            with_segments = engine.infer(feed)["logits"]
            del feed["token_type_ids"]
            np.testing.assert_array_equal(engine.infer(feed)["logits"], with_segments)

    def test_threads_share_an_engine(self, name, engines, make_feed):
        engine = engines[name, "fixed"]
        feeds = [make_feed(seed=seed) for seed in range(4)]
        expected = [engine.infer(feed)["logits"] for feed in feeds]
        wrong = []

        def work(index: int) -> None:
            for _ in range(5):
                if not np.array_equal(engine.infer(feeds[index])["logits"], expected[index]):
                    wrong.append(index)

        workers = [threading.Thread(target=work, args=(index,)) for index in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert wrong == []


@all_backends
class TestFeedErrors:
    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"attention_mask": None}, ["without 'attention_mask'", "'input_ids'"]),
            ({"position_ids": np.zeros((4, 8), np.int64)}, ["with 'position_ids'"]),
            ({"input_ids": np.zeros(8, np.int64)}, ["'input_ids'", "(8,)", "(4, 8)"]),
            ({"input_ids": np.zeros((4, 9), np.int64)}, ["(4, 9)", "(4, 8)"]),
            ({"input_ids": np.zeros((4, 8), np.float32)}, ["float32", "int64"]),
            ({"input_ids": [[1] * 8] * 4}, ["list", "NumPy array"]),
            ({"input_ids": np.full((4, 8), 50)}, ["'input_ids' holds 50", "0 to 49"]),
            ({"input_ids": np.full((4, 8), -1)}, ["'input_ids' holds -1"]),
            ({"token_type_ids": np.full((4, 8), 2)}, ["'token_type_ids' holds 2", "0 to 1"]),
        ],
    )
    def test_names_types_and_shapes(self, name, engines, make_feed, change, words):
        feed = {**make_feed(), **change}
        feed = {key: array for key, array in feed.items() if array is not None}
        with pytest.raises(BackendError) as caught:
            engines[name, "fixed"].infer(feed)
        for word in words:
            assert word in caught.value.message
        engines[name, "fixed"].infer(make_feed())  # still usable

    def test_batches_that_disagree(self, name, engines, make_feed):
        feed = {**make_feed(), "attention_mask": np.ones((1, 8), np.int64)}
        with pytest.raises(BackendError, match=r"1 for the dimension 'batch'; expected 4, as 'input_ids'"):
            engines[name, "dynamic"].infer(feed)

    def test_an_empty_batch(self, name, engines):
        empty = {key: np.zeros((0, 8), np.int64) for key in ("input_ids", "attention_mask", "token_type_ids")}
        with pytest.raises(BackendError, match="empty"):
            engines[name, "dynamic"].infer(empty)


@all_backends
class TestLife:
    def test_closed_by_the_block_and_again(self, name, fixed, make_feed):
        with get_backend(name).compile(fixed.proto, "fp32", threads=1) as engine:
            engine.infer(make_feed())
        assert engine.closed
        engine.close()
        with pytest.raises(BackendError, match="closed"):
            engine.infer(make_feed())

    def test_closed_when_the_block_fails(self, name, fixed):
        with (
            pytest.raises(ZeroDivisionError),
            get_backend(name).compile(fixed.proto, "fp32", threads=1) as engine,
        ):
            _ = 1 / 0
        assert engine.closed

    def test_many_engines_at_once(self, name, engines, fixed, make_feed):
        expected = engines[name, "fixed"].infer(make_feed())["logits"]
        made = [get_backend(name).compile(fixed.proto, "fp32", threads=1) for _ in range(3)]
        made[0].close()
        for engine in made[1:]:
            np.testing.assert_array_equal(engine.infer(make_feed())["logits"], expected)
            engine.close()

    def test_compile_refuses(self, name, fixed):
        backend = get_backend(name)
        with pytest.raises(UnknownNameError, match="Did you mean fp16"):
            backend.compile(fixed.proto, "fp61")
        with pytest.raises(BackendError, match="0 threads"):
            backend.compile(fixed.proto, "fp32", threads=0)

    def test_every_precision_compiles_or_says_why_not(self, name, fixed, make_transformer, make_feed):
        backend, quantized = get_backend(name), make_transformer(4, 8, quantized=True)
        assert "fp32" in backend.precisions()
        for precision in PRECISIONS:
            proto = quantized.proto if precision == "int8" else fixed.proto
            reason = backend.unsupported(precision)
            assert (reason is None) == (precision in backend.precisions())
            if reason:
                with pytest.raises(BackendError) as caught:
                    backend.compile(proto, precision)
                assert caught.value.message == reason
                continue
            with backend.compile(proto, precision, threads=1) as engine:
                assert engine.precision == precision
                assert engine.infer(make_feed())["logits"].dtype == np.float32

    def test_describe(self, name):
        facts = get_backend(name).describe()
        assert {"version", "device", "capabilities", "threads"} <= set(facts)
        assert json.loads(json.dumps(facts)) == facts
        assert facts["threads"] >= 1
        assert facts["device"]


@all_backends
class TestTap:
    def test_gives_the_named_tensors_and_nothing_else(self, name, fixed, make_feed):
        names = ["probs", "embeddings.word", "gelu"]
        with get_backend(name).tap(fixed.proto, names, threads=1) as tap:
            _: Runner = tap
            assert [spec.name for spec in tap.outputs] == names
            assert tap.outputs[0].shape == (4, 2, 8, 8)
            arrays = tap.infer(make_feed())
            assert list(arrays) == names
            assert {a.dtype for a in arrays.values()} == {np.dtype(np.float32)}
            assert arrays["probs"].shape == (4, 2, 8, 8)
            assert arrays["gelu"].shape == (4, 8, 64)

    def test_dynamic_shapes_one_after_the_other(self, name, dynamic, make_feed):
        with get_backend(name).tap(dynamic.proto, ["probs"], threads=1) as tap:
            for batch, sequence in ((4, 8), (2, 3), (4, 8)):
                assert tap.infer(make_feed(batch, sequence))["probs"].shape == (batch, 2, sequence, sequence)

    def test_same_feed_same_tensors(self, name, fixed, make_feed):
        with get_backend(name).tap(fixed.proto, fixed.floats, threads=1) as tap:
            first = {key: array.copy() for key, array in tap.infer(make_feed(seed=1)).items()}
            second = {key: array.copy() for key, array in tap.infer(make_feed(seed=2)).items()}
            assert not np.array_equal(first["gelu"], second["gelu"])
            for key, array in tap.infer(make_feed(seed=1)).items():
                np.testing.assert_array_equal(array, first[key], err_msg=key)

    def test_refuses(self, name, fixed, make_feed, make_one_node):
        backend = get_backend(name)
        with pytest.raises(BackendError, match=r"no tensor 'gelo' \(1 of 2 names"):
            backend.tap(fixed.proto, ["gelu", "gelo"])
        with pytest.raises(BackendError, match="empty"):
            backend.tap(fixed.proto, [])
        with pytest.raises(BackendError, match="'gelu' is to be tapped twice"):
            backend.tap(fixed.proto, ["gelu", "probs", "gelu"])
        whole = make_one_node(helper.make_node("Add", ["x", "x"], ["y"]), TensorProto.INT64)
        with pytest.raises(BackendError, match=r"'y'.*float32"):
            backend.tap(whole, ["y"])

    def test_checks_its_feed_and_closes(self, name, fixed, make_feed):
        tap = get_backend(name).tap(fixed.proto, ["gelu"], threads=1)
        with pytest.raises(BackendError, match=r"\(4, 9\)"):
            tap.infer(make_feed(4, 9))
        tap.close()
        tap.close()
        with pytest.raises(BackendError, match="closed"):
            tap.infer(make_feed())


@real_backends
class TestArithmetic:
    @pytest.mark.parametrize("kind", ["fixed", "dynamic"])
    def test_fp32_engine_is_the_graph(self, name, kind, engines, dynamic, reference, make_feed):
        feed = make_feed()
        expected = reference(dynamic, feed)["logits"]
        np.testing.assert_allclose(engines[name, kind].infer(feed)["logits"], expected, atol=1e-5)

    @pytest.mark.parametrize("kind", ["fixed", "dynamic"])
    def test_every_tapped_tensor_is_the_graphs(self, name, kind, fixed, dynamic, reference, make_feed):
        graph = {"fixed": fixed, "dynamic": dynamic}[kind]
        feed = make_feed()
        expected = reference(graph, feed)
        with get_backend(name).tap(graph.proto, graph.floats, threads=1) as tap:
            for _ in range(2):  # the second time into memory that is there already
                arrays = tap.infer(feed)
                for key in graph.floats:
                    np.testing.assert_allclose(arrays[key], expected[key], atol=2e-5, rtol=2e-6, err_msg=key)

    def test_memory_is_that_of_one_batch(self, name, fixed, make_feed):
        with get_backend(name).tap(fixed.proto, fixed.floats, threads=1) as tap:
            places = [tap.infer(make_feed(seed=seed))["gelu"].ctypes.data for seed in range(8)]
        assert len(set(places)) <= 2

    def test_int8_runs_int8(self, name, make_transformer, make_feed, reference):
        graph = make_transformer(4, 8, quantized=True)
        with get_backend(name).compile(graph.proto, "int8", threads=1) as engine:
            assert engine.compute == "int8+f32"
            assert (engine.int8_ops, engine.float_ops) == (6, 3)
            audit = engine.details["audit"]
            named = sorted(part.partition("/")[0].partition(".")[0] for part in audit["float_products"])
            assert named == ["context_heads", "logits", "scores"]
            assert sum(n for kind, n in audit["kernel_counts"].items() if kind.startswith(INT8_KERNELS)) == 6
            logits = engine.infer(make_feed())["logits"]
        expected = reference(graph, make_feed())["logits"]
        assert np.abs(logits - expected).max() < 0.05 * np.abs(expected).max()

    def test_int8_of_a_float_graph_says_so(self, name, fixed):
        with get_backend(name).compile(fixed.proto, "int8", threads=1) as engine:
            assert (engine.compute, engine.int8_ops, engine.float_ops) == ("f32", 0, 9)
            assert "No matrix product runs in INT8" in engine.notes[0]

    @pytest.mark.parametrize(
        "node",
        [
            helper.make_node("NoSuchOperation", ["x"], ["y"]),
            helper.make_node("MatMul", ["x", "x"], ["y"]),
            helper.make_node("Add", ["x", "nothing"], ["y"]),
        ],
        ids=["unknown operation", "shapes that do not fit", "missing tensor"],
    )
    def test_a_bad_graph_is_one_sentence(self, name, node, make_one_node):
        with pytest.raises(BackendError) as caught:
            get_backend(name).compile(make_one_node(node), "fp32")
        message = caught.value.message
        assert "\n" not in message
        assert "src/" not in message
        assert 30 < len(message) < 400
        assert caught.value.__cause__ is not None

"""What the fake backend adds: a function in place of the network, failures and delays on demand."""

from __future__ import annotations

import time

import numpy as np
import pytest

from quantkit.backends.fake import FakeBackend, hashed_logits
from quantkit.errors import BackendError


def test_rows_are_hashed_one_by_one(make_feed):
    feed = make_feed(6, 8)
    logits = hashed_logits(feed, 3)
    assert logits.dtype == np.float32
    assert (np.abs(logits) <= 1).all()
    alone = hashed_logits({key: array[2:3] for key, array in feed.items()}, 3)
    np.testing.assert_array_equal(alone[0], logits[2])
    assert len({row.tobytes() for row in logits}) == 6


def test_the_hash_is_the_same_everywhere():
    feed = {"input_ids": np.array([[1, 2, 3]]), "attention_mask": np.array([[1, 1, 0]])}
    expected = hashed_logits({"input_ids": np.array([[1, 2]], np.int32), "attention_mask": np.array([[1, 1]])}, 2)
    np.testing.assert_array_equal(hashed_logits(feed, 2), expected)
    np.testing.assert_allclose(expected, [[-0.8792666, -0.0589904]], atol=1e-6)


def test_precisions_differ_a_little(make_transformer, make_feed):
    proto, feed = make_transformer(4, 8).proto, make_feed()
    logits = {}
    for precision, compute in (("fp32", "f32"), ("fp16", "f16"), ("int8", "int8+f32")):
        with FakeBackend().compile(proto, precision) as engine:
            assert engine.compute == compute
            logits[precision] = engine.infer(feed)["logits"]
    near = np.abs(logits["fp16"] - logits["fp32"]).max()
    far = np.abs(logits["int8"] - logits["fp32"]).max()
    assert 0 < near <= 2**-9
    assert near < far <= 2**-5


def test_a_function_answers(make_transformer, make_feed):
    backend = FakeBackend(function=lambda feed: {"logits": feed["input_ids"][:, :3]})
    with backend.compile(make_transformer(4, 8).proto, "fp32") as engine:
        feed = make_feed()
        logits = engine.infer(feed)["logits"]
        assert logits.dtype == np.float32
        np.testing.assert_array_equal(logits, feed["input_ids"][:, :3])


def test_a_function_that_forgets_an_output(make_transformer, make_feed):
    with (
        FakeBackend(function=lambda feed: {"scores": feed["input_ids"]}).compile(
            make_transformer(4, 8).proto, "fp32"
        ) as engine,
        pytest.raises(BackendError, match=r"no 'logits'; it returned \['scores'\]"),
    ):
        engine.infer(make_feed())


def test_refused_precisions_and_delay(make_transformer, make_feed):
    backend = FakeBackend(refused=(("int8", "No INT8 on Sundays."),), latency_s=0.02)
    assert backend.precisions() == ("fp32", "fp16")
    with pytest.raises(BackendError, match="Sundays"):
        backend.compile(make_transformer(4, 8).proto, "int8")
    with backend.compile(make_transformer(4, 8).proto, "fp32") as engine:
        start = time.perf_counter()
        engine.infer(make_feed())
        assert time.perf_counter() - start >= 0.02


def test_tapped_tensors_differ_by_name_and_tokens(make_transformer, make_feed):
    graph = make_transformer()
    with FakeBackend().tap(graph.proto, ["query", "key", "probs"]) as tap:
        first, second = tap.infer(make_feed(seed=1)), tap.infer(make_feed(seed=2))
        assert not np.array_equal(first["query"], first["key"])
        assert not np.array_equal(first["query"], second["query"])
        assert tap.outputs[2].shape[1] == 2
        assert first["probs"].shape == (4, 2, 8, 8)

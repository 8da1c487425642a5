"""Judge and clock over the fake backend: what is computed, and that it is computed once."""

from __future__ import annotations

import numpy as np
import pytest

from quantkit.backends.base import Backend
from quantkit.backends.fake import FakeBackend
from quantkit.data.batches import TokenBatches
from quantkit.data.tokenize import encode, load_tokenizer
from quantkit.errors import BackendError
from quantkit.network.model import load_model
from quantkit.network.precision import PrecisionPlan
from quantkit.network.qdq import insert_qdq
from quantkit.search.clock import TOGETHER, Clock, Timed
from quantkit.search.judge import BEST_DB, Judge
from quantkit.search.store import Store
from quantkit.tables.table import CalibrationTable, Entry


class Task:
    labels = ("negative", "positive")
    metrics = ("accuracy",)


class Counting(FakeBackend):
    """The fake backend, with a list of what it compiled."""

    def __init__(self, **options) -> None:
        super().__init__(**options)
        object.__setattr__(self, "compiled", [])

    def _compile(self, proto, precision, threads):
        self.compiled.append(precision)
        return super()._compile(proto, precision, threads)


@pytest.fixture(scope="module")
def network(tiny_bert_dir):
    return load_model(tiny_bert_dir)


@pytest.fixture
def build(network):
    table = CalibrationTable({name: Entry(np.float32(0.02), -2.0, 2.5) for name in network.activations()})
    return lambda plan: network.proto if plan is None else insert_qdq(network.proto, table, plan).proto


@pytest.fixture(scope="module")
def batches(tiny_bert_dir):
    texts = [(f"a {word} film",) for word in ["good", "bad", "great", "dull", "funny", "sad", "long", "short"] * 5]
    return TokenBatches(encode(load_tokenizer(tiny_bert_dir), texts, 16), 8)


LABELS = np.arange(40) % 2


def judge(build, batches, store, backend: Backend) -> Judge:
    return Judge(build, backend, batches, LABELS, Task(), store, 1)


def test_a_plan_is_judged_against_fp32_on_the_same_rows(build, batches):
    found = judge(build, batches, Store(None, {}), FakeBackend()).judge(PrecisionPlan())
    assert found.rows == 40
    assert (found.metric, found.failed) == ("accuracy", "")
    assert 20 < found.sqnr_db < 60  # the fake INT8 engine rounds logits to sixteenths
    assert 0 < found.agreement <= 1
    assert abs(found.drop) <= 100 * (1 - found.agreement)
    assert found.keeps(found.drop + found.drop_stderr)
    assert not found.keeps(found.drop + found.drop_stderr - 0.1)


def test_equal_logits_are_judged_equal(build, batches):
    same = FakeBackend(function=lambda feed: {"logits": np.tile(np.float32([0, 1]), (len(feed["input_ids"]), 1))})
    found = judge(build, batches, Store(None, {}), same).judge(PrecisionPlan())
    assert (found.sqnr_db, found.agreement, found.drop, found.drop_stderr) == (BEST_DB, 1, 0, 0)


def test_what_was_judged_is_not_compiled_again(build, batches, tmp_path):
    store, backend = Store(tmp_path, {"model": "m"}), Counting()
    first = judge(build, batches, store, backend).judge(PrecisionPlan())
    assert sorted(backend.compiled) == ["fp32", "int8"]
    again = judge(build, batches, store, backend)
    assert again.judge(PrecisionPlan()) == first
    assert len(backend.compiled) == 2
    again.judge(PrecisionPlan("ffn-only"))
    assert backend.compiled[2:] == ["int8"], "the kept FP32 logits serve for another plan"
    judge(build, batches, Store(tmp_path, {"model": "other"}), backend).judge(PrecisionPlan())
    assert sorted(backend.compiled[3:]) == ["fp32", "int8"]


def test_a_plan_that_cannot_be_built_is_judged_failed_and_tried_again(build, batches, tmp_path):
    store = Store(tmp_path, {})
    broken = FakeBackend(refused=(("int8", "no INT8 here."),))
    found = judge(build, batches, store, broken).judge(PrecisionPlan())
    assert "no INT8 here" in found.failed
    assert not found.keeps(100)
    assert not judge(build, batches, store, FakeBackend()).judge(PrecisionPlan()).failed


def test_the_clock_times_plans_beside_the_first(build, batches, tmp_path):
    backend = Counting()
    clock = Clock(build, backend, list(batches), Store(tmp_path, {}), 1)
    plans = [PrecisionPlan(skip=frozenset({f"x{i}"})) for i in range(TOGETHER + 1)]
    first, others = clock.times(None, plans, 3)
    assert first.ms > 0
    assert len(others) == len(plans)
    assert all(timed.ms > 0 and timed.ratio > 0 for timed in others)
    assert len(backend.compiled) == len(plans) + 2, "FP32 is compiled for each of the two groups"
    assert clock.times(None, plans, 3) == (first, others)
    assert len(backend.compiled) == len(plans) + 2


def test_what_a_timing_cannot_tell_apart_is_equally_fast():
    assert Timed(10, 2.97).as_fast_as(Timed(10, 3.0))
    assert not Timed(10, 2.8).as_fast_as(Timed(10, 3.0))
    assert Timed(10, 2.8, 0.1).as_fast_as(Timed(10, 3.0, 0.1))
    assert not Timed(10, 2.8, 0.02).as_fast_as(Timed(10, 3.0, 0.02))


def test_a_measured_ratio_has_a_standard_error(build, batches):
    slow = Clock(build, FakeBackend(latency_s=0.002), list(batches), Store(None, {}), 1)
    _, [few] = slow.times(None, [PrecisionPlan()], 4)
    assert 0 < few.ratio_stderr < few.ratio


def test_an_engine_that_cannot_be_built_cannot_be_timed(build, batches):
    clock = Clock(build, FakeBackend(refused=(("int8", "no INT8 here."),)), list(batches), Store(None, {}), 1)
    with pytest.raises(BackendError, match="no INT8 here"):
        clock.times(None, [PrecisionPlan()])

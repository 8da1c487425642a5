"""Plan files: round trip, and one sentence for every way to get one wrong."""

from __future__ import annotations

import json

import pytest

from quantkit.errors import InputError, StorageError, UnknownNameError
from quantkit.network.model import load_model
from quantkit.network.plan_file import PlanFile, idle_patterns, load_plan, plan_from_json, plan_to_json
from quantkit.network.precision import PrecisionPlan

PLAN = PrecisionPlan("gemm+residual", frozenset({"layer1.ffn.output.matmul", "0"}), False)


def test_round_trip(tmp_path):
    given = PlanFile(PLAN, "ab" * 32, {"layer1.ffn2": "it costs 2 points"}, {"goal": {"max_drop": 0.5}})
    assert load_plan(given.save(tmp_path / "plan.json")) == given
    assert plan_from_json(plan_to_json(PLAN)) == PLAN
    assert plan_from_json({"mode": "ffn-only"}) == PrecisionPlan("ffn-only")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"_type": "x"}, "no plan file"),
        ({"_version": 2}, "no plan file of version 1"),
        ({"plan": None}, "no JSON object"),
        ({"plan": {"mood": "gemm"}}, "unknown field 'mood'"),
        ({"plan": {"skip": "layer0"}}, "skip is 'layer0'; expected a list of texts"),
        ({"plan": {"skip": [3]}}, "expected a list of texts"),
        ({"plan": {"symmetric": 1}}, "symmetric is 1; expected true or false"),
        ({"model_sha256": 5}, "model_sha256 is 5"),
        ({"reasons": []}, "reasons is"),
    ],
)
def test_what_is_refused(tmp_path, change, says):
    path = PlanFile(PLAN).save(tmp_path / "plan.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=says):
        load_plan(path)


def test_other_ways_to_fail(tmp_path):
    path = tmp_path / "plan.json"
    with pytest.raises(StorageError, match="no file"):
        load_plan(path)
    path.write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        load_plan(path)
    path.write_text(json.dumps({"_type": "quantkit.PrecisionPlan", "_version": 1, "plan": {"mode": "gem"}}))
    with pytest.raises(UnknownNameError, match="gemm"):
        load_plan(path)


def test_patterns_that_name_nothing(tiny_bert_dir):
    index = load_model(tiny_bert_dir).index
    good = {"1", "layer0.*", "layer1.ffn.output.matmul", "layer0.attention.probs", "*.ffn.gelu"}
    assert idle_patterns(PrecisionPlan(skip=frozenset(good)), index) == []
    bad = {"2", "layer7.*", "encoder.ffn"}
    assert idle_patterns(PrecisionPlan(skip=frozenset(good | bad)), index) == sorted(bad)

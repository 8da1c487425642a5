"""The search itself, on models made of numbers: every unit has a noise, a time and a drop."""

from __future__ import annotations

import math

import pytest

from quantkit.network.precision import PrecisionPlan
from quantkit.search.judge import Judged
from quantkit.search.mixed_precision import keep_accuracy, keep_speed
from quantkit.search.sensitivity import Sensitivity, UnitCost
from quantkit.search.units import Unit

UNITS = [Unit(layer, group, (f"{layer}{group}",)) for layer in range(3) for group in ("qkv", "output", "ffn1", "ffn2")]
MS = {"qkv": 3.0, "output": 1.0, "ffn1": 4.0, "ffn2": 4.0}
FP32_MS, WHOLE_MS = 60.0, 24.0


class Model:
    """A model whose drop is the sum of its INT8 units' drops; it counts how often it is judged."""

    def __init__(self, drops: dict[str, float]) -> None:
        self.drops, self.judged, self.plan = drops, 0, PrecisionPlan()

    def judge(self, plan: PrecisionPlan) -> Judged:
        self.judged += 1
        quantized = [unit for unit in UNITS if unit.names[0] not in plan.skip]
        drop = sum(self.drops.get(unit.name, 0.01) for unit in quantized)
        return Judged(-10 * math.log10(max(drop, 1e-9)), 0.99, "accuracy", 0.9, 0.01, drop, 0.05, 1000)

    def ms(self, plan: PrecisionPlan) -> float:
        return WHOLE_MS + sum(MS[unit.group] for unit in UNITS if unit.names[0] in plan.skip)

    def speed(self, plan: PrecisionPlan) -> float:
        return FP32_MS / self.ms(plan)

    def sensitivity(self) -> Sensitivity:
        costs = []
        for unit in UNITS:
            drop = self.drops.get(unit.name, 0.01)
            alone = Judged(-10 * math.log10(drop), 1.0, "accuracy", 0.9, 0.01, drop, 0.05, 500)
            costs.append(UnitCost(unit, alone, MS[unit.group], MS[unit.group], 0.24))
        return Sensitivity(self.plan, self.judge(self.plan), WHOLE_MS, tuple(costs))


def test_nothing_goes_to_float_where_the_whole_plan_keeps_the_accuracy():
    model = Model({})
    found = keep_accuracy(model.sensitivity(), model.judge, 0.5)
    assert (found.plan, found.reasons, model.judged) == (model.plan, {}, 1)


def test_exactly_the_unit_that_hurts_goes_to_float_and_the_reason_is_what_it_would_cost():
    model = Model({"layer2.ffn2": 2.0})
    found = keep_accuracy(model.sensitivity(), model.judge, 0.5)
    assert found.plan.skip == {"2ffn2"}
    assert found.judged.drop == pytest.approx(0.11)
    assert found.reasons.keys() == {"layer2.ffn2"}
    assert "with it in INT8 as well the drop is 2.11 ± 0.05 points, and 0.5 is allowed" in found.reasons["layer2.ffn2"]


def test_a_unit_that_is_dear_but_harmless_goes_back_to_int8():
    # The order puts layer0.output first (it saves least); the metric says that only the other two matter.
    model = Model({"layer0.output": 0.4, "layer1.ffn2": 0.6, "layer2.qkv": 0.6})
    sensitivity = model.sensitivity()
    assert sensitivity.ranked[0].unit.name == "layer0.output"
    found = keep_accuracy(sensitivity, model.judge, 0.6)
    assert found.plan.skip == {"1ffn2", "2qkv"}
    assert found.reasons.keys() == {"layer1.ffn2", "layer2.qkv"}


def test_the_standard_error_counts_against_a_plan():
    model = Model({"layer0.qkv": 0.35})
    drop = model.judge(model.plan).drop
    assert keep_accuracy(model.sensitivity(), model.judge, drop + 0.06).reasons == {}
    assert keep_accuracy(model.sensitivity(), model.judge, drop + 0.04).reasons.keys() == {"layer0.qkv"}


def test_no_plan_where_even_one_unit_is_too_much():
    model = Model({unit.name: 2.0 for unit in UNITS})
    found = keep_accuracy(model.sensitivity(), model.judge, 0.5)
    assert (found.plan, found.judged) == (None, None)


def test_speed_is_spent_on_the_dearest_units():
    model = Model({"layer1.output": 3.0, "layer0.ffn1": 5.0, "layer2.ffn2": 4.0})
    found = keep_speed(model.sensitivity(), model.judge, model.speed, 1.9, FP32_MS / WHOLE_MS)
    assert found.plan.skip == {"1output", "0ffn1"}  # 29 ms; a third unit would make 33, and 60 / 1.9 is 31.6
    assert model.speed(found.plan) >= 1.9
    assert "number 1 of 12" in found.reasons["layer1.output"]


def test_what_is_foretold_is_measured_and_given_up_when_it_does_not_hold():
    model = Model({"layer1.output": 3.0, "layer0.ffn1": 5.0})
    slower = keep_speed(model.sensitivity(), model.judge, lambda plan: model.speed(plan) - 0.25, 1.9, 2.5)
    assert slower.plan.skip == {"1output"}


def test_no_plan_where_the_fastest_is_too_slow():
    model = Model({})
    assert keep_speed(model.sensitivity(), model.judge, model.speed, 3.0, 2.5).plan is None


def test_a_bisection_judges_few_plans():
    model = Model({"layer2.ffn2": 2.0})
    sensitivity = model.sensitivity()
    model.judged = 0
    keep_accuracy(sensitivity, model.judge, 0.5)
    assert model.judged <= 5


def test_a_time_that_is_noise_makes_no_unit_dear():
    def cost(name, drop, ms):
        return UnitCost(Unit(0, name, (name,)), Judged(-10 * math.log10(drop)), ms, ms, 0.24)

    found = Sensitivity(PrecisionPlan(), Judged(), WHOLE_MS, (cost("tiny", 1e-5, -0.01), cost("real", 1e-3, 4.0)))
    assert [one.unit.group for one in found.ranked] == ["real", "tiny"]

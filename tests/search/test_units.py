"""Units: what they are, and that a plan with one unit quantizes exactly that unit."""

from __future__ import annotations

import numpy as np
import pytest

from quantkit.network.model import load_model
from quantkit.network.precision import PrecisionPlan
from quantkit.network.qdq import insert_qdq
from quantkit.search.units import GROUPS, only, units_of, without
from quantkit.tables.table import CalibrationTable, Entry

PRODUCTS = {"qkv": 3, "products": 2, "output": 1, "ffn1": 1, "ffn2": 1}


@pytest.fixture(scope="module")
def network(tiny_bert_dir):
    return load_model(tiny_bert_dir)


@pytest.fixture(scope="module")
def table(network):
    return CalibrationTable({name: Entry(np.float32(0.02), -2.0, 2.5) for name in network.activations()})


def test_the_units_of_a_mode(network):
    everything = units_of(network.proto, PrecisionPlan("gemm+residual+mha"))
    assert [unit.name for unit in everything] == [f"layer{i}.{group}" for i in range(2) for group in GROUPS]
    assert {unit.group for unit in units_of(network.proto, PrecisionPlan("gemm"))} == {"qkv", "output", "ffn1", "ffn2"}
    assert {unit.group for unit in units_of(network.proto, PrecisionPlan("ffn-only"))} == {"ffn1", "ffn2"}
    assert {u.layer for u in units_of(network.proto, PrecisionPlan(skip=frozenset({"1"})))} == {0}


@pytest.mark.parametrize("mode", ["gemm", "gemm+mha", "gemm+residual+mha"])
def test_one_unit_in_int8_is_that_unit_and_no_other(network, table, mode):
    plan = PrecisionPlan(mode)
    units = units_of(network.proto, plan)
    whole = insert_qdq(network.proto, table, plan).quantized
    seen: list[str] = []
    for unit in units:
        alone = insert_qdq(network.proto, table, only(plan, unit, units)).quantized
        assert len(alone) == PRODUCTS[unit.group], unit.name
        rest = insert_qdq(network.proto, table, without(plan, [unit])).quantized
        assert sorted(alone + rest) == sorted(whole), unit.name
        seen += alone
    assert sorted(seen) == sorted(whole)


def test_feed_forward_products_are_told_apart(network):
    units = {unit.name: unit for unit in units_of(network.proto, PrecisionPlan())}
    assert units["layer1.ffn1"].names == ("layer1.ffn.intermediate.matmul",)
    assert units["layer1.ffn2"].names == ("layer1.ffn.output.matmul",)

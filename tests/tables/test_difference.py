"""Difference and union of tables."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantkit.errors import TableError, UnknownNameError
from quantkit.tables import CalibrationTable, Entry, Provenance
from quantkit.tables.compare import diff, merge

ORIGIN = Provenance("a" * 64, "b" * 64, 8, 0, 4, 16, "minmax", {}, "tensorrt", False, "openvino")


def table_of(algorithm: str = "", provenance: Provenance | None = None, **scales: float) -> CalibrationTable:
    entries = {name: Entry(np.float32(scale), method=algorithm) for name, scale in scales.items()}
    return CalibrationTable(entries, algorithm, {}, provenance)


def test_what_two_tables_do_not_share():
    found = diff(table_of(a=1, b=2, c=0, d=4, e=0), table_of(b=1, c=1, d=4, e=0, f=5))
    assert (found.missing, found.extra, found.same) == (("a",), ("f",), 2)
    assert [(c.name, c.ratio) for c in found.changed] == [("c", math.inf), ("b", 0.5)]
    assert found
    assert not diff(table_of(a=1), table_of(a=1))


def test_a_difference_of_the_last_bit_counts_unless_it_is_tolerated():
    near = table_of(a=float(np.nextafter(np.float32(1), np.float32(2))))
    assert diff(table_of(a=1), near).changed
    assert not diff(table_of(a=1), near, tolerance=1e-6)
    assert not diff(near, table_of(a=1), tolerance=1e-6)
    assert diff(table_of(a=1), table_of(a=1.2), tolerance=0.1)
    assert diff(table_of(a=0), table_of(a=1), tolerance=1e9)


SCALES = st.floats(0, 100, width=32).map(abs)
TABLES = st.dictionaries(st.sampled_from("abcdef"), SCALES).map(lambda scales: table_of(**scales))


@given(TABLES, TABLES)
def test_difference_is_symmetric_and_adds_up(first, second):
    one, other = diff(first, second), diff(second, first)
    assert (one.missing, set(one.extra)) == (other.extra, set(other.missing))
    assert {c.name for c in one.changed} == {c.name for c in other.changed}
    assert len(one.missing) + len(one.changed) + one.same == len(first)
    assert bool(one) == (first.scales != second.scales)


@given(st.lists(TABLES, min_size=1, max_size=4))
def test_merged_with_a_preference_has_every_tensor_of_all(tables):
    names = [str(i) for i in range(len(tables))]
    every = {name for table in tables for name in table}
    for prefer, pick in (("first", lambda s: s[0]), ("last", lambda s: s[-1]), ("widest", max)):
        merged = merge(tables, names, prefer)
        assert set(merged) == every
        for name in every:
            assert merged[name].scale == pick([t[name].scale for t in tables if name in t])
        assert not diff(merge([merged, merged], "ab"), merged)


def test_scales_that_differ_are_refused_without_a_preference():
    with pytest.raises(TableError, match=r"one\.cache and two\.cache give 'b' the scales 1 and 2\."):
        merge([table_of(a=1, b=1), table_of(b=2)], ["one.cache", "two.cache"])
    with pytest.raises(UnknownNameError, match="widest"):
        merge([table_of(a=1)], ["x"], "wide")


def test_method_and_provenance_stay_where_all_agree():
    same = merge([table_of("minmax", ORIGIN, a=1), table_of("minmax", ORIGIN, b=1)], "xy")
    assert (same.algorithm, same.provenance) == ("minmax", ORIGIN)
    mixed = merge([table_of("minmax", ORIGIN, a=1), table_of("entropy", b=1)], "xy")
    assert (mixed.algorithm, mixed.provenance) == ("", None)
    assert [entry.method for entry in mixed.entries.values()] == ["minmax", "entropy"]

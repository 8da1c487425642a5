"""Renaming: rules in order, exact or regular expressions, collisions refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantkit.errors import StorageError, TableError
from quantkit.tables import CalibrationTable, Entry
from quantkit.tables.rename import Rule, gather_rules, parse_rule, parse_rules, rename


def table_of(*names: str) -> CalibrationTable:
    return CalibrationTable({name: Entry(np.float32(i + 1)) for i, name in enumerate(names)}, "entropy", {"x": 1})


def test_rules_are_applied_in_order_each_to_what_the_last_one_made():
    table = table_of("bert/encoder/0/MatMul", "a: b", "logits")
    rules = [
        Rule(r"^bert/encoder/(\d+)/", r"/layer_\1/", regex=True),
        Rule("/layer_0/MatMul", "first"),
        Rule("a: b", "second"),
        Rule("nothing", "never"),
    ]
    done = rename(table, rules)
    assert done.table.names == ("first", "second", "logits")
    assert [entry.scale for entry in done.table.entries.values()] == [1, 2, 3]
    assert (done.table.algorithm, done.table.parameters) == ("entropy", {"x": 1})
    assert done.changed == {"bert/encoder/0/MatMul": "first", "a: b": "second"}
    assert done.unused == (rules[3],)


def test_names_may_be_swapped_but_not_shared():
    swap = [Rule("a", "t"), Rule("b", "a"), Rule("t", "b")]
    assert rename(table_of("a", "b"), swap).table.scales == {"b": 1, "a": 2}
    with pytest.raises(TableError, match="'a' and 'b' would both be called 'b'"):
        rename(table_of("a", "b"), [Rule("a", "b")])
    with pytest.raises(TableError, match="'x1' and 'x2' would both be called 'x'"):
        rename(table_of("x1", "x2"), [Rule(r"\d", "", regex=True)])
    with pytest.raises(TableError, match="leave no name for 'x1'"):
        rename(table_of("x1"), [Rule(".*", "", regex=True)])


def test_a_file_of_rules(tmp_path):
    path = tmp_path / "rules.txt"
    path.write_text("# from TensorFlow\n\na: b =>  /a/b \r\nregex: ^bert/(.*)$ => \\1\nregex:_0$ =>\n")
    assert gather_rules(path, ["c=>d"], [r"(\d+) => n\1"]) == [
        Rule("a: b", "/a/b"),
        Rule("^bert/(.*)$", r"\1", regex=True),
        Rule("_0$", "", regex=True),
        Rule("c", "d"),
        Rule(r"(\d+)", r"n\1", regex=True),
    ]
    with pytest.raises(TableError, match="no rule"):
        gather_rules(None, (), ())
    with pytest.raises(StorageError):
        gather_rules(tmp_path / "none", (), ())
    assert parse_rule("regex: a => b", "x", regex=False) == Rule("regex: a", "b")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a", "rules, line 2: expected OLD => NEW, found 'a'"),
        ("a => b => c", "expected OLD => NEW"),
        ("=> b", "is empty"),
        ("a =>", "is empty"),
        ("regex: => b", "is empty"),
        ("regex: ( => b", "is no regular expression"),
        ("regex: a => \\1", "is no regular expression with its replacement: invalid group reference 1"),
        ("regex: a => \\q", "bad escape"),
    ],
)
def test_rules_that_are_none(text, words):
    with pytest.raises(TableError) as caught:
        parse_rules(f"#\n{text}\n", "rules")
    assert words in caught.value.message


@given(st.text(max_size=60))
def test_any_text_is_rules_or_a_table_error(text):
    try:
        rules = parse_rules(text, "rules")
    except TableError:
        return
    assert all(rule.old for rule in rules)

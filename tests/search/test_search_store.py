"""Kept candidates: found again under the same question, and under no other."""

from __future__ import annotations

from quantkit.search.store import Store

QUESTION = {"judge": {"mode": "gemm", "skip": ["a"]}, "rows": "00"}


def test_an_answer_is_found_again(tmp_path):
    store = Store(tmp_path, {"model": "m", "table": "t"})
    assert store.get(QUESTION) is None
    store.put(QUESTION, {"drop": 0.5})
    assert Store(tmp_path, {"table": "t", "model": "m"}).get(dict(reversed(QUESTION.items()))) == {"drop": 0.5}


def test_everything_that_decides_it_is_in_the_key(tmp_path):
    Store(tmp_path, {"model": "m", "table": "t"}).put(QUESTION, {"drop": 0.5})
    assert Store(tmp_path, {"model": "other", "table": "t"}).get(QUESTION) is None
    assert Store(tmp_path, {"model": "m", "table": "t"}).get(QUESTION | {"rows": "01"}) is None
    assert Store(tmp_path, {"model": "m", "table": "t"}).get(QUESTION | {"judge": {"mode": "gemm", "skip": []}}) is None


def test_a_damaged_or_foreign_file_is_no_answer(tmp_path):
    store = Store(tmp_path, {})
    store.put(QUESTION, {"drop": 0.5})
    path = store.path(QUESTION)
    for text in ("{", "[]", '{"question": {}, "answer": {"drop": 1}}', '{"question": 1}'):
        path.write_text(text)
        assert store.get(QUESTION) is None
    assert store.put(QUESTION, {"drop": 0.25}) == {"drop": 0.25}
    assert store.get(QUESTION) == {"drop": 0.25}


def test_without_a_folder_nothing_is_kept():
    store = Store(None, {})
    assert store.put(QUESTION, {"drop": 0.5}) == {"drop": 0.5}
    assert store.get(QUESTION) is None

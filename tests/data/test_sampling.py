"""Calibration samples: seeded, spread over all lengths, and never what is evaluated."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantkit.data.examples import Examples
from quantkit.data.sampling import calibration_sample, check_leak, leaked_rows
from quantkit.errors import DataError, InputError


def texts(*rows: str | tuple[str, ...], split: str = "train") -> Examples:
    return Examples(tuple((row,) if isinstance(row, str) else row for row in rows), None, "rows", split)


def pool(count: int) -> Examples:
    """Rows of 1 to 40 words, all different, the lengths in no order."""
    return texts(*(" ".join([f"row{i}"] * (i * 7 % 40 + 1)) for i in range(count)))


def test_the_seed_decides_the_rows_and_their_order():
    first, again, other = (calibration_sample(pool(300), 32, seed) for seed in (3, 3, 4))
    assert first.indices.tolist() == again.indices.tolist()
    assert first.examples.texts == again.examples.texts
    assert set(first.indices.tolist()) != set(other.indices.tolist())
    assert first.seed == 3


def test_a_seed_means_the_same_rows_on_every_machine():
    assert calibration_sample(pool(100), 8, seed=0).indices.tolist() == [20, 64, 30, 28, 95, 54, 86, 79]


def test_rows_are_drawn_once_and_match_their_numbers():
    examples = pool(200)
    sample = calibration_sample(examples, 64)
    assert len(sample) == len(set(sample.indices.tolist())) == 64
    assert sample.examples.texts == tuple(examples.texts[i] for i in sample.indices)
    assert not sample.short and sample.refused == 0 and sample.requested == 64
    with pytest.raises(ValueError, match="read-only"):
        sample.indices[0] = 1


@given(st.lists(st.integers(1, 60), min_size=1, max_size=200), st.integers(1, 64), st.integers(0, 2**32))
def test_one_row_comes_from_every_stratum_of_lengths(lengths, n, seed):
    examples = texts(*(f"row {i}" for i in range(len(lengths))))
    sample = calibration_sample(examples, n, seed, lengths=lengths)
    n = min(n, len(lengths))
    drawn, ranked = sorted(lengths[i] for i in sample.indices), sorted(lengths)
    edges = [len(lengths) * i // n for i in range(n + 1)]
    assert len(drawn) == n
    for length, low, high in zip(drawn, edges[:-1], edges[1:], strict=True):
        assert ranked[low] <= length <= ranked[high - 1]


def test_long_rows_are_never_missed():
    examples = texts(*(["short one"] * 990 + ["long " * 50] * 10))
    for seed in range(20):
        sample = calibration_sample(examples, 100, seed)
        assert sum(len(row[0].split()) > 40 for row in sample.examples.texts) == 1


def test_the_order_is_not_by_length():
    sample = calibration_sample(pool(400), 100)
    lengths = np.array([len(row[0].split()) for row in sample.examples.texts])
    assert abs(np.corrcoef(lengths, np.arange(100))[0, 1]) < 0.4


def test_labels_go_with_their_rows():
    examples = Examples(tuple((str(i),) for i in range(50)), np.arange(50), "rows", "train")
    sample = calibration_sample(examples, 10)
    assert sample.examples.labels.tolist() == [int(text) for (text,) in sample.examples.texts]


def test_more_than_there_are_uses_all_and_says_so():
    sample = calibration_sample(pool(5), 512)
    assert sample.short and sample.requested == 512
    assert sorted(sample.indices.tolist()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("n", [0, -3])
def test_at_least_one_row_must_be_asked_for(n):
    with pytest.raises(InputError, match="at least 1"):
        calibration_sample(pool(5), n)


def test_lengths_must_fit_the_rows():
    with pytest.raises(InputError, match="4 lengths came for 5 rows"):
        calibration_sample(pool(5), 2, lengths=[1, 2, 3, 4])


def test_evaluation_rows_are_refused_and_counted():
    train = texts("A good  film.", "a bad film", "unseen", "GOOD\tFILM")
    evaluation = texts("a GOOD film. ", "good film", split="eval")
    sample = calibration_sample(train, 4, exclude=evaluation)
    assert sorted(sample.indices.tolist()) == [1, 2]
    assert sample.refused == 2 and sample.short


def test_several_evaluation_splits_are_refused():
    train = texts(("a", "b"), ("c", "d"), ("e", "f"))
    matched, mismatched = texts(("a", "B"), split="eval"), texts(("C", "d"), split="eval_mismatched")
    assert calibration_sample(train, 3, exclude=[matched, mismatched]).indices.tolist() == [2]


def test_pairs_are_compared_whole_and_single_sentences_with_both_halves():
    evaluation = texts(("a premise", "a hypothesis"), split="eval")
    pairs = texts(("a premise", "another one"), ("a hypothesis", "a premise"), ("A premise", "a  hypothesis"))
    assert leaked_rows(pairs, evaluation).tolist() == [2]
    assert leaked_rows(texts("new", "a Hypothesis", "A premise "), evaluation).tolist() == [1, 2]
    assert leaked_rows(pairs, None).tolist() == []


def test_nothing_left_is_an_error():
    rows = texts("one", "two")
    with pytest.raises(DataError, match=r"All 2 rows of rows also stand in the evaluation data") as caught:
        calibration_sample(rows, 1, exclude=rows)
    assert "--calib-data" in caught.value.hint


def test_check_leak_names_the_first_row():
    with pytest.raises(DataError, match=r"1 of 2 calibration rows .* the first is 'Two'"):
        check_leak(texts("one", "Two"), texts("two", split="eval"))
    check_leak(texts("one"), texts("two", split="eval"))


@pytest.mark.shared
@pytest.mark.parametrize(("task", "refused"), [("sst2", 0), ("cola", 16), ("stsb", 6), ("rte", 0), ("qnli", 0)])
def test_glue_train_rows_that_stand_in_dev(shared_dir, task, refused):
    from quantkit.data.glue import load_examples

    train, dev = (load_examples(task, split, shared_dir / "glue") for split in ("train", "eval"))
    sample = calibration_sample(train, 256, exclude=dev)
    assert sample.refused == refused
    check_leak(sample.examples, dev)

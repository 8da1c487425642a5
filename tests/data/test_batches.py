"""Token batches: shapes, padding, the last batch, and that walking twice gives the same."""

import numpy as np
import pytest

from quantkit.data.batches import TokenBatches
from quantkit.data.tokenize import Encoded
from quantkit.errors import DataError, InputError
from quantkit.types import BatchSource


def encoded(*lengths: int, max_length: int = 64, pad_id: int = 0) -> Encoded:
    """Texts of these lengths; text i has the ids 100 * i + 1, 100 * i + 2, ... and type 1 on its last token."""
    ids = tuple(100 * i + 1 + np.arange(length) for i, length in enumerate(lengths))
    types = tuple((np.arange(length) == length - 1).astype(np.int64) for length in lengths)
    return Encoded(ids, types, 2, max_length, pad_id)


def test_fixed_length_batches_are_padded():
    (batch,) = TokenBatches(encoded(3, 1, pad_id=9), 2, 4)
    assert {array.dtype for array in batch.values()} == {np.dtype(np.int64)}
    assert batch["input_ids"].tolist() == [[1, 2, 3, 9], [101, 9, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]
    assert batch["token_type_ids"].tolist() == [[0, 0, 1, 0], [1, 0, 0, 0]]


def test_ragged_batches_are_as_long_as_their_longest_rounded_up():
    batches = TokenBatches(encoded(3, 8, 9, 2, 61, 5, max_length=61), 2)
    assert [batch["input_ids"].shape for batch in batches] == [(2, 8), (2, 16), (2, 61)]
    assert batches.seq_len is None


def test_it_is_a_batch_source_that_can_be_walked_again():
    batches = TokenBatches(encoded(3, 4, 5), 2, 8)
    assert isinstance(batches, BatchSource)
    first = next(iter(batches))
    first["input_ids"][:] = -1
    first.clear()
    again = list(batches)
    assert again[0]["input_ids"][0, :3].tolist() == [1, 2, 3]
    assert len(again) == len(batches) == 2


@pytest.mark.parametrize(
    ("fill", "rows", "valid", "dropped"),
    [("short", [2, 2, 1], (2, 2, 1), 0), ("drop", [2, 2], (2, 2), 1), ("pad", [2, 2, 2], (2, 2, 1), 0)],
)
def test_the_last_batch(fill, rows, valid, dropped):
    batches = TokenBatches(encoded(3, 4, 5, 6, 7), 2, 8, fill=fill)
    assert [len(batch["input_ids"]) for batch in batches] == rows
    assert (batches.valid, batches.examples, batches.dropped) == (valid, sum(valid), dropped)
    assert batches.truncated == 2


def test_padding_repeats_the_last_batchs_own_rows():
    *_, last = TokenBatches(encoded(1, 1, 1, 1, 2, 3), 4, 4, fill="pad")
    assert last["input_ids"].tolist() == [[401, 402, 0, 0], [501, 502, 503, 0]] * 2
    (only,) = TokenBatches(encoded(2), 3, 2, fill="pad")
    assert only["input_ids"].tolist() == [[1, 2]] * 3


def test_outputs_of_padded_batches_cut_at_the_row_count_are_in_order():
    batches = TokenBatches(encoded(*range(1, 12)), 4, 16, fill="pad")
    lengths = np.concatenate([batch["attention_mask"].sum(axis=1) for batch in batches])
    assert lengths[: batches.examples].tolist() == list(range(1, 12))


def test_full_batches_are_the_same_with_every_fill():
    ways = [TokenBatches(encoded(3, 4, 5, 6), 2, 8, fill=fill) for fill in ("short", "drop", "pad")]
    assert len({way.sha256 for way in ways}) == 1
    assert {way.dropped for way in ways} == {0}


def test_the_hash_knows_contents_shapes_and_order():
    base = TokenBatches(encoded(3, 4, 5, 6), 2, 8)
    assert base.sha256 == TokenBatches(encoded(3, 4, 5, 6), 2, 8).sha256
    others = [
        TokenBatches(encoded(3, 4, 6, 5), 2, 8),
        TokenBatches(encoded(3, 4, 5, 6), 4, 8),
        TokenBatches(encoded(3, 4, 5, 6), 2, 16),
        TokenBatches(encoded(3, 4, 5, 6, pad_id=1), 2, 8),
        TokenBatches(encoded(3, 4, 5, 6), 2, 8, inputs=["input_ids", "attention_mask"]),
    ]
    assert len({base.sha256, *(other.sha256 for other in others)}) == 6
    assert len(base.sha256) == 64


def test_only_the_inputs_that_a_model_has():
    (batch,) = TokenBatches(encoded(2), 1, 4, inputs=["attention_mask", "input_ids"])
    assert list(batch) == ["attention_mask", "input_ids"]


def test_fewer_rows_than_a_batch_leave_nothing_to_drop_to():
    with pytest.raises(DataError, match="3 rows do not make one batch of 4"):
        TokenBatches(encoded(1, 2, 3), 4, 8, fill="drop")
    assert len(TokenBatches(encoded(1, 2, 3), 4, 8, fill="short")) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "at least 1"),
        ({"seq_len": 4}, "has 5 tokens, and batches of 4"),
        ({"seq_len": 0}, "has 5 tokens, and batches of 0"),
        ({"fill": "wrap"}, "'wrap'; expected one of short, drop, pad"),
        ({"inputs": ["input_ids", "labels"]}, "No array is called 'labels'"),
    ],
)
def test_wrong_settings_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        TokenBatches(encoded(5, 3), **({"batch": 2, "seq_len": 8} | options))

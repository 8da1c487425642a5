"""Running an engine over a split: rows, padding, labels that do not fit, logits that are not finite."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from quantkit.errors import BackendError, DataError, ModelError
from quantkit.evaluate.accuracy import evaluate_engine
from quantkit.types import TensorSpec

SST2 = SimpleNamespace(labels=("negative", "positive"), metrics=("accuracy",))
STSB = SimpleNamespace(labels=None, metrics=("pearson", "spearman"))
INT64 = np.dtype(np.int64)


class TableEngine:
    """An engine that looks its logits up by a row's first token, and reuses its output buffer."""

    precision = "int8"

    def __init__(self, logits, outputs=("logits",), inputs=("input_ids", "attention_mask")):
        self.table = np.asarray(logits, np.float32)
        self.inputs = tuple(TensorSpec(name, INT64, (-1, -1)) for name in inputs)
        self.outputs = tuple(TensorSpec(name, np.dtype(np.float32), (-1, -1)) for name in outputs)
        self.seen = []
        self.buffer = np.empty((0,), np.float32)

    def infer(self, feed):
        self.seen.append(set(feed))
        rows = self.table[feed["input_ids"][:, 0]]
        if self.buffer.shape != rows.shape:
            self.buffer = np.empty_like(rows)
        self.buffer[:] = rows
        return {spec.name: self.buffer if spec.name != "other" else rows[:0] for spec in self.outputs}

    def close(self):
        pass


class Rows:
    """Rows 0..n-1 in batches of 4; the last is filled up with row `filler` when `fill` is set."""

    def __init__(self, n, fill=False, filler=0):
        self.n, self.fill, self.filler = n, fill, filler
        if fill:
            self.examples = n

    def __len__(self):
        return -(-self.n // 4)

    def __iter__(self):
        for start in range(0, self.n, 4):
            ids = np.arange(start, min(start + 4, self.n))
            if self.fill:
                ids = np.concatenate([ids, np.full(4 - len(ids), self.filler)])
            arrays = np.stack([ids, ids], axis=1).astype(np.int64)
            yield {"input_ids": arrays, "attention_mask": np.ones_like(arrays), "token_type_ids": arrays * 0}


LOGITS = [[1, 0], [0, 1], [0, 2], [3, 1], [0, 0], [-1, -2]]


@pytest.mark.parametrize("fill", [False, True])
def test_rows_are_scored_in_order_without_padding(fill):
    engine, calls = TableEngine(LOGITS), []
    result = evaluate_engine(
        engine, Rows(6, fill), [0, 1, 0, 0, 0, 1], SST2, progress=lambda *state: calls.append(state)
    )
    assert result.predictions.tolist() == [0, 1, 1, 0, 0, 0]
    assert result.predictions.dtype == np.int64
    assert result.logits.dtype == np.float32
    assert result.logits.tolist() == LOGITS
    assert result.scores["accuracy"].value == pytest.approx(4 / 6)
    assert calls == [(1, 2), (2, 2)]


def test_engine_is_fed_only_what_it_takes():
    engine = TableEngine(LOGITS, inputs=("input_ids",))
    evaluate_engine(engine, Rows(6), [0] * 6, SST2)
    assert engine.seen == [{"input_ids"}] * 2


def test_regression_takes_the_single_output():
    engine = TableEngine([[1.0], [2.0], [4.0], [8.0], [9.0]])
    result = evaluate_engine(engine, Rows(5, fill=True), np.array([0.5, 1, 2, 3, 5]), STSB)
    assert result.predictions.tolist() == [1.0, 2.0, 4.0, 8.0, 9.0]
    assert result.predictions.dtype == np.float64
    assert list(result.scores) == ["pearson", "spearman"]
    assert result.scores["spearman"].value == pytest.approx(1.0)


def test_logits_are_found_by_name_among_several_outputs():
    result = evaluate_engine(TableEngine(LOGITS, outputs=("other", "logits")), Rows(6), [0] * 6, SST2)
    assert result.logits.tolist() == LOGITS
    with pytest.raises(ModelError, match="a, b, and none is called logits"):
        evaluate_engine(TableEngine(LOGITS, outputs=("a", "b")), Rows(6), [0] * 6, SST2)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([0, 1, 0, 0, 2, 1], "label of row 4 is 2; the model has 2 outputs"),
        ([0, 1, -1, 0, 0, 1], "label of row 2 is -1"),
        ([0, 1, 0.5, 0, 0, 1], "label of row 2 is 0.5"),
        ([0, 1, 0], "3 labels for 6 evaluated rows"),
        ([0] * 7, "7 labels for 6 evaluated rows"),
        ([], "shape"),
        ([[0]] * 6, "shape"),
    ],
)
@pytest.mark.parametrize("fill", [False, True])
def test_labels_that_do_not_fit(fill, labels, words):
    with pytest.raises(DataError, match=words):
        evaluate_engine(TableEngine(LOGITS), Rows(6, fill), labels, SST2)


def test_models_of_another_kind_of_task():
    with pytest.raises(ModelError, match="regression and the model has 2 outputs"):
        evaluate_engine(TableEngine(LOGITS), Rows(6), [0.0] * 6, STSB)
    with pytest.raises(ModelError, match="classes and the model has 1 output"):
        evaluate_engine(TableEngine([[1.0]] * 6), Rows(6), [0] * 6, SST2)


def test_score_that_is_not_a_number():
    with pytest.raises(DataError, match="label of row 1 is nan"):
        evaluate_engine(TableEngine([[1.0]] * 3), Rows(3), [0.0, float("nan"), 1.0], STSB)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_name_the_row(value):
    logits = [list(row) for row in LOGITS]
    logits[5][1] = value
    with pytest.raises(BackendError, match=r"The int8 engine gave .* in row 5"):
        evaluate_engine(TableEngine(logits), Rows(6), [0] * 6, SST2)


def test_padding_rows_are_not_looked_at():
    engine = TableEngine([*LOGITS, [float("nan")] * 2])
    padded = Rows(6, fill=True, filler=6)
    assert evaluate_engine(engine, padded, [0] * 6, SST2).logits.tolist() == LOGITS
    del padded.examples  # now nothing says which rows are padding
    with pytest.raises(BackendError, match="row 6,"):
        evaluate_engine(engine, padded, [0] * 6, SST2)


def test_output_of_another_shape():
    with pytest.raises(BackendError, match=r"shape \(0, 2\), expected \(4, outputs\)"):
        evaluate_engine(TableEngine(LOGITS, outputs=("other",)), Rows(6), [0] * 6, SST2)


def test_no_batches():
    with pytest.raises(DataError, match="no batch"):
        evaluate_engine(TableEngine(LOGITS), Rows(0), [0], SST2)

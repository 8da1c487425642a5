"""The library's front door: calibrate_arrays, run, load_table."""

from __future__ import annotations

import numpy as np
import pytest

import quantkit
from quantkit.errors import CalibrationError, InputError, UnknownNameError


def batches(count: int = 3):
    draw = np.random.default_rng(0)
    for _ in range(count):
        yield {"a": draw.standard_normal((4, 8)).astype(np.float32), "zero": np.zeros(5, np.float32)}


def test_minmax_of_arrays_is_the_largest_magnitude_over_127():
    table = quantkit.calibrate_arrays(batches(), method="minmax")
    amax = max(np.abs(batch["a"]).max() for batch in batches())
    assert table.scales["a"] == np.float32(amax) / np.float32(127)
    assert table.scales["a"].dtype == np.float32
    assert table.scales["zero"] == 0
    assert table["a"].minimum == min(float(batch["a"].min()) for batch in batches())


def test_parameters_by_tensorrts_names():
    wide = quantkit.calibrate_arrays(batches(), method="legacy", quantile=0.9999, regression_cutoff=1.0)
    narrow = quantkit.calibrate_arrays(batches(), method="legacy", quantile=0.5)
    assert narrow.scales["a"] < wide.scales["a"]
    assert narrow.parameters["quantile"] == 0.5
    with pytest.raises(InputError, match="Did you mean quantile"):
        quantkit.calibrate_arrays(batches(), method="legacy", quantil=0.5)
    with pytest.raises(UnknownNameError, match="Did you mean legacy"):
        quantkit.calibrate_arrays(batches(), method="legasy")


def test_order_free_ranges_do_not_depend_on_order():
    rows = list(batches(4))
    one = quantkit.calibrate_arrays(rows, order_free=True)
    other = quantkit.calibrate_arrays(rows[::-1], order_free=True)
    together = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    assert one.scales == other.scales == quantkit.calibrate_arrays([together], order_free=True).scales


def test_the_cache_text_can_be_read_back(tmp_path):
    table = quantkit.calibrate_arrays(batches(), method="entropy")
    text = table.dumps("tensorrt", algorithm="EntropyCalibration2", version=8600)
    assert text.splitlines()[0] == "TRT-8600-EntropyCalibration2"
    assert "zero: 0" in text.splitlines()
    (tmp_path / "entropy.cache").write_text(text)
    assert quantkit.load_table(tmp_path / "entropy.cache").scales == table.scales


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "no batches"),
        ([{"a": np.ones(3)}, {}], "missing in batch 1"),
        ([{"a": np.ones(3)}, {"a": np.ones(3), "b": np.ones(3)}], "new in batch 1"),
        ([{"a": np.array([1.0, np.nan])}], "1 NaN and 0 Inf"),
        ([{"a": np.array([1.0, -np.inf])}], "0 NaN and 1 Inf"),
        ([{"a": np.array(["x"])}], "dtype"),
        ([{"a": np.ones(3, np.complex64)}], "dtype"),
    ],
)
def test_batches_that_cannot_be_used(rows, words):
    with pytest.raises(CalibrationError, match=words):
        quantkit.calibrate_arrays(rows)


def test_integers_and_halves_are_welcome():
    table = quantkit.calibrate_arrays([{"i": np.arange(-5, 4), "h": np.ones(3, np.float16)}], method="minmax")
    assert table.scales["i"] == np.float32(5) / np.float32(127)


def test_run_is_the_command_as_a_function(tiny_bert_dir, tiny_glue_dir, tmp_path):
    record = quantkit.run(
        tiny_bert_dir,
        task="sst2",
        data=tiny_glue_dir,
        precisions="fp32,int8",
        calib_samples=24,
        batch=8,
        seq_len=24,
        out=tmp_path,
    )
    assert record.engine("int8")["int8_ops"] == 16
    stored = quantkit.load_record(tmp_path / "record.json").data
    assert {**stored, "context": None} == {**record.data, "context": None}
    with pytest.raises(InputError, match="fp16"):
        record.engine("fp16")
    with pytest.raises(InputError, match="no setting 'bacth'"):
        quantkit.run(tiny_bert_dir, task="sst2", bacth=3)


def test_a_model_needs_a_task(tiny_bert_dir):
    with pytest.raises(InputError, match="task"):
        quantkit.run(tiny_bert_dir)

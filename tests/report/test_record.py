"""Records and what the terminal makes of them."""

from __future__ import annotations

import pytest
from rich.console import Console

from quantkit.errors import InputError, StorageError
from quantkit.report.record import EngineRow, Record, context, load_record
from quantkit.report.terminal import record_table


def rows():
    accuracy = {"accuracy": {"value": 0.8922, "stderr": 0.0105, "higher_is_better": True}}
    latency = {"median": 52.7, "p90": 53.0, "p99": 60.1}
    good = EngineRow("fp32", "openvino", compute="f32", metrics=accuracy, latency_ms=latency, throughput_per_s=303.0)
    return [good, EngineRow("fp16", "openvino", status="failed", reason="no half precision here")]


def test_a_failed_engine_is_a_row_with_its_reason():
    row = rows()[1].as_json()
    assert row["status"] == "failed"
    assert row["reason"] == "no half precision here"
    assert row["metrics"] == {}


def test_the_table_fits_80_columns_and_shows_errors(capsys):
    Console(width=80).print(record_table({"engines": [row.as_json() for row in rows()]}))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "0.8922 ±0.0105" in lines[1]
    assert "no half precision here" in " ".join(lines)


def test_a_record_comes_back(tmp_path):
    record = Record({"schema": 1, "context": context({"batch": 16}), "engines": [row.as_json() for row in rows()]})
    assert load_record(record.save(tmp_path / "record.json")).data == record.data


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 2, "engines": []}', '{"schema": 1}', "[" * 100000])
def test_what_is_no_record_is_refused(tmp_path, text):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(InputError):
        load_record(tmp_path / "r.json")


def test_no_record_at_all(tmp_path):
    with pytest.raises(StorageError):
        load_record(tmp_path / "r.json")


def test_brackets_in_names_survive(capsys):
    from quantkit.report.terminal import show_record

    row = EngineRow("int8", "openvino", status="failed", reason="pip install 'quantkit[onnxruntime]'")
    task = {"name": "sst2", "split": "eval", "examples": 3}
    show_record({"model": {"name": "m[1]"}, "task": task, "calibration": None, "engines": [row.as_json()]})
    out = capsys.readouterr().out
    assert "m[1]" in out
    assert "[onnxruntime]" in out

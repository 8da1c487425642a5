"""`quantkit tune` and `quantkit sensitivity` through the command line, on a tiny BERT and made sentences."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from quantkit.backends.fake import FakeEngine
from quantkit.data.glue import load_examples
from quantkit.data.tokenize import encode, load_tokenizer
from quantkit.network.plan_file import load_plan
from quantkit.pipeline import tune as tuning
from quantkit.search.judge import Judge


@pytest.fixture
def arguments(tiny_bert_dir, tiny_glue_dir, tmp_path):
    return [
        *(tiny_bert_dir, "--task", "sst2", "--data", tiny_glue_dir, "--calib-samples", 40, "--batch", 8),
        *("--seq-len", 32, "--threads", 1, "--out", tmp_path / "out"),
    ]


@pytest.fixture
def fake(arguments):
    """With a backend that computes nothing, where the way of the data is what matters."""
    return [*arguments, "--backend", "fake"]


def test_tune_writes_plan_table_model_record_and_readme(cli, arguments, tmp_path):
    out = tmp_path / "out"
    code, text, err = cli("tune", *arguments, "--max-drop", 60, "--json", "--tensorrt-model")
    assert code == 0, err
    record = json.loads((out / "record.json").read_text())
    assert json.loads(text) == record
    search = record["search"]
    assert search["goal"] == {"max_drop": 60}
    assert search["rows"]["rows"] == 80
    assert {row["plan"]["mode"] for row in search["candidates"]} == set(tuning.PLACEMENTS)
    assert search["chosen"]["judged"]["drop"] + search["chosen"]["judged"]["drop_stderr"] <= 60
    plan = load_plan(out / "plan.json")
    assert plan.plan.mode == search["chosen"]["plan"]["mode"] == record["plan"]["mode"]
    assert plan.model_sha256 == record["model"]["sha256"]
    assert record["task"]["examples"] == 50
    int8 = next(row for row in record["engines"] if row["precision"] == "int8")
    assert int8["against_fp32"]["words"] in " ".join(record["verdict"])
    onnx.checker.check_model(onnx.load(out / "int8.onnx"))
    readme = (out / "README.md").read_text()
    for name in ("int8.onnx", "int8-tensorrt.onnx", "plan.json", "record.json", "mse.json", "mse.cache"):
        assert (out / name).is_file()
        assert f"`{name}`" in readme
    # The plan serves another command, and makes the very same model.
    again = [str(tmp_path / "again") if part == out else part for part in arguments]
    code, _, err = cli("run", *again, "--precision", "int8", "--plan", out / "plan.json")
    assert code == 0, err
    assert (tmp_path / "again" / "int8.onnx").read_bytes() == (out / "int8.onnx").read_bytes()


def test_parts_go_back_to_float_and_the_record_says_why(cli, arguments, tmp_path, monkeypatch):
    real = Judge.judge

    def strict(self, plan):
        """As if INT8 in layer 1's second feed-forward product cost three points."""
        judged = real(self, plan)
        drop = 0.0 if "layer1.ffn.output.matmul" in plan.skip else 3.0
        return type(judged)(**(judged.__dict__ | {"drop": drop, "drop_stderr": 0.1, "sqnr_db": 40.0 - 10 * drop}))

    monkeypatch.setattr(Judge, "judge", strict)
    code, text, err = cli("tune", *arguments, "--max-drop", 0.5, "--limit", 16, "--precision", "fp32,int8")
    assert code == 0, err
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    assert record["search"]["chosen"]["kept_in_float"] == ["layer1.ffn2"]
    faster = [row for row in record["search"]["candidates"] if row["speedup"] > record["search"]["chosen"]["speedup"]]
    said = " ".join(record["verdict"])
    for row in faster:
        if row["judged"]:
            assert f"{row['plan']['mode']} is faster ({row['speedup']:.2f}) and costs too much: -3.00 ± 0.10" in said
    assert record["plan"]["skip"] == ["layer1.ffn.output.matmul"]
    assert "with it in INT8 as well the drop is 3.00 ± 0.10 points" in record["plan"]["reasons"]["layer1.ffn2"]
    assert "layer1.ffn2 stays in float: with it in INT8" in " ".join(text.split())
    assert "layer1.ffn.output.matmul" in (tmp_path / "out" / "README.md").read_text()
    int8 = record["engines"][1]
    products = 16 if "mha" in record["plan"]["mode"] else 12  # which one wins is a matter of measured times
    assert int8["int8_ops"] == products - 1
    assert max(map(len, text.splitlines()[:20])) <= 80


def test_no_evaluation_row_takes_part_in_a_decision(cli, fake, tiny_bert_dir, tiny_glue_dir, monkeypatch):
    """What is fed to any engine during the search, calibration included, is train rows."""
    fed: list[bytes] = []
    real = FakeEngine._run

    def spy(self, feed):
        fed.extend(np.trim_zeros(row, "b").tobytes() for row in feed["input_ids"])
        return real(self, feed)

    class FoundError(Exception):
        pass

    def stop(settings, watcher, **_):
        raise FoundError

    monkeypatch.setattr(FakeEngine, "_run", spy)
    monkeypatch.setattr(tuning, "run_settings", stop)
    with pytest.raises(FoundError):
        cli("tune", *fake, "--min-speedup", "0.01")
    tokenizer = load_tokenizer(tiny_bert_dir)

    def keys(split):
        texts = load_examples("sst2", split, tiny_glue_dir).texts
        return {np.array(ids, np.int64).tobytes() for ids in encode(tokenizer, texts, 32).input_ids}

    assert len(set(fed)) == 80, "every tuning row was judged"
    assert set(fed) <= keys("train")
    assert not set(fed) & keys("eval")


def test_calibration_and_tuning_rows_are_disjoint(tiny_bert_dir, tiny_glue_dir):
    from quantkit.pipeline.settings import Settings
    from quantkit.pipeline.workspace import Workspace
    from quantkit.report.terminal import SilentWatcher

    settings = Settings(
        model=str(tiny_bert_dir), task="sst2", data=str(tiny_glue_dir), calib_samples=40, tune_rows=50, seq_len=32
    )
    workspace = Workspace(settings, SilentWatcher())
    calibrating, deciding = set(workspace.sample.examples.texts), set(workspace.tuning.texts)
    assert (len(calibrating), len(deciding)) == (40, 50)
    assert not calibrating & deciding
    assert not deciding & set(workspace.evaluation.texts)


def test_the_labels_of_evaluation_rows_change_no_plan(cli, fake, tiny_glue_dir, tmp_path):
    other = tmp_path / "glue" / "SST-2"
    other.mkdir(parents=True)
    (other / "train.tsv").write_text((tiny_glue_dir / "SST-2" / "train.tsv").read_text())
    head, *rows = (tiny_glue_dir / "SST-2" / "dev.tsv").read_text().splitlines()
    flipped = [f"{text}\t{1 - int(label)}" for text, label in (row.rsplit("\t", 1) for row in rows)]
    (other / "dev.tsv").write_text("\n".join([head, *flipped]) + "\n")
    found = []
    for data in (tiny_glue_dir, other.parent):
        given = [data if part == tiny_glue_dir else part for part in fake]
        code, text, err = cli("tune", *given, "--max-drop", 100, "--json")
        assert code == 0, err
        found.append(json.loads(text))
    judged = [[row["judged"] for row in record["search"]["candidates"] if row["judged"]] for record in found]
    assert found[0]["search"]["chosen"] == found[1]["search"]["chosen"]
    assert judged[0] == judged[1]
    metrics = [record["engines"][0]["metrics"]["accuracy"]["value"] for record in found]
    assert metrics[0] == pytest.approx(1 - metrics[1])


def test_an_interrupted_search_goes_on_where_it_stopped(cli, fake, monkeypatch):
    runs: list[str] = []
    real = Judge._run
    stop_at = 6

    def counting(self, plan, precision):
        if len(runs) == stop_at:
            raise KeyboardInterrupt
        result = real(self, plan, precision)
        runs.append(precision)
        return result

    monkeypatch.setattr(Judge, "_run", counting)
    code, _, err = cli("sensitivity", *fake)
    assert (code, len(runs)) == (130, 6), err
    stop_at = -1
    code, _, err = cli("sensitivity", *fake)
    assert code == 0, err
    # FP32, the whole plan and its ten parts, each once; all rows serve both judges here.
    assert sorted(runs) == ["fp32"] + ["int8"] * 11
    before = list(runs)
    assert cli("sensitivity", *fake)[0] == 0
    assert runs == before


def test_a_goal_that_no_plan_meets_is_said_with_what_was_found(cli, fake, tmp_path):
    code, text, err = cli("tune", *fake, "--min-speedup", 900)
    assert code == 1, err
    assert "No plan reaches 900 times FP32's speed: the fastest, gemm" in " ".join(text.split())
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    assert (record["engines"], record["search"]["chosen"]) == ([], None)
    assert not (tmp_path / "out" / "plan.json").exists()


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        (["--max-drop", 1, "--min-speedup", 2], "one goal"),
        (["--max-drop", -1], "expected points from 0 to 100"),
        (["--min-speedup", 0], "expected a factor above 0"),
        (["--tune-rows", 0], "tune_rows must be"),
        (["--precision", "fp32"], "needs INT8 among its engines"),
    ],
)
def test_goals_that_cannot_be_used(cli, fake, extra, says):
    code, _, err = cli("tune", *fake, *extra)
    assert (code, says in " ".join(err.split())) == (2, True), err


def test_rows_without_labels_cannot_decide(cli, fake, tiny_glue_dir, tmp_path):
    rows = (tiny_glue_dir / "SST-2" / "train.tsv").read_text().splitlines()[1:]
    (tmp_path / "calib.txt").write_text("\n".join(row.split("\t")[0] for row in rows) + "\n")
    code, _, err = cli("tune", *fake, "--calib-data", tmp_path / "calib.txt")
    assert (code, "has no labels" in err) == (2, True), err


def test_sensitivity_of_every_part(cli, arguments, tmp_path):
    code, text, err = cli("sensitivity", *arguments, "--placement", "gemm+residual+mha")
    assert code == 0, err
    record = json.loads((tmp_path / "out" / "sensitivity.json").read_text())
    units = record["sensitivity"]["units"]
    assert len(units) == 10
    assert sorted(unit["rank"] for unit in units) == list(range(1, 11))
    for unit in units:
        assert 0 < unit["alone"]["sqnr_db"] < 200, "every part does something"
        assert unit["alone"]["stderr"] > 0
        assert unit["alone"]["sqnr_db"] > record["sensitivity"]["whole"]["sqnr_db"], "one part costs less than all"
    assert record["speedup"] > 0
    assert max(map(len, text.splitlines())) <= 80
    assert all(unit["name"] in text for unit in units)


def test_a_plan_of_another_architecture_is_refused(cli, arguments, tmp_path):
    plan = {"_type": "quantkit.PrecisionPlan", "_version": 1, "plan": {"skip": ["layer7.ffn.output.matmul"]}}
    path = Path(tmp_path / "plan.json")
    path.write_text(json.dumps(plan))
    code, _, err = cli("build", *arguments, "--precision", "int8", "--plan", path)
    assert (code, "nothing of that name" in " ".join(err.split())) == (2, True), err


def test_a_plan_that_quantizes_nothing_has_no_parts(cli, fake, tmp_path):
    path = tmp_path / "plan.json"
    path.write_text('{"_type": "quantkit.PrecisionPlan", "_version": 1, "plan": {"skip": ["0", "1"]}}')
    code, _, err = cli("sensitivity", *fake, "--plan", path)
    assert (code, "quantizes nothing" in " ".join(err.split())) == (2, True), err


def test_a_model_of_fixed_shapes_is_judged_in_them(cli, fake, tiny_bert_dir, tmp_path):
    from quantkit.network.model import load_model

    path = tmp_path / "fixed.onnx"
    onnx.save(load_model(tiny_bert_dir).fixed(8, 32), str(path))
    code, text, err = cli("sensitivity", path, "--tokenizer", tiny_bert_dir, *fake[1:], "--json")
    assert code == 0, err
    assert json.loads(text)["rows"]["rows"] == 80

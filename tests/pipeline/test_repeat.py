"""`quantkit repeat`: the same job gives the same bits, and what is not the same is said."""

from __future__ import annotations

import json
import shutil

import pytest

from quantkit.backends.fake import FakeEngine, FakeTap
from quantkit.errors import InputError
from quantkit.pipeline.manifest import adapter_sha256, dependencies, differences
from quantkit.pipeline.recorded import exact_facts, search_notes
from quantkit.pipeline.repeat import compared, settings_of
from quantkit.pipeline.settings import Settings, settings_from_json

SMALL = ("--calib-samples", 16, "--batch", 8, "--seq-len", 16, "--threads", 1)


@pytest.fixture
def recorded(cli, tiny_bert_dir, tiny_glue_dir, tmp_path, monkeypatch):
    """Runs a command on a copy of the tiny task; gives the folder of its record."""
    from quantkit.pipeline import run as job
    from quantkit.search import clock

    monkeypatch.setattr(job, "LATENCY_ROUNDS", 2)
    monkeypatch.setattr(clock, "ROUNDS", 2)
    shutil.copytree(tiny_bert_dir, tmp_path / "bert")
    shutil.copytree(tiny_glue_dir, tmp_path / "glue")

    def run(command="eval", *arguments, backend="fake"):
        where = (tmp_path / "bert", "--task", "sst2", "--data", tmp_path / "glue", "--backend", backend)
        code, _, err = cli(command, *where, *SMALL, *arguments, "--out", tmp_path / "first", "--quiet")
        assert code == 0, err
        return tmp_path / "first"

    return run


@pytest.fixture
def repeat(cli, tmp_path):
    """Repeats a record; gives the exit code, what it answered, and what it said."""

    def run(record, *arguments):
        code, out, err = cli("repeat", record, *arguments, "--out", tmp_path / "second", "--json")
        return code, json.loads(out), err

    return run


@pytest.mark.parametrize(
    ("command", "arguments", "counted"),
    [
        ("eval", ("-p", "fp32,int8"), ("table", "int8: graph", "int8: answers", "int8: logits", "fp32: accuracy")),
        ("bench", ("-p", "int8", "--refine", "none"), ("table", "int8: graph", "int8: status")),
        ("build", ("-p", "fp32,int8", "--order-free"), ("table", "calibration rows", "fp32: graph")),
        ("sensitivity", ("--tune-rows", 24), ("table", "all parts in INT8", "layer0.ffn1 alone in INT8")),
        ("tune", ("--tune-rows", 24, "-p", "fp32,int8", "--max-drop", 100), ("table", "fp32: logits")),
    ],
)
def test_a_job_gives_the_same_bits_again(recorded, repeat, tmp_path, command, arguments, counted):
    folder = recorded(command, *arguments)
    code, found, err = repeat(folder)
    assert code == 0, err
    assert found["same"]
    assert set(counted) <= {row["what"] for row in found["rows"]}
    assert all(row["before"] is not None for row in found["rows"])
    assert json.loads((tmp_path / "second" / "repeat.json").read_text())["rows"] == found["rows"]
    assert not (tmp_path / "second" / "cache").exists()
    if command == "tune":
        assert any(note.startswith("The search chose") for note in found["notes"])
        assert any(row["what"].startswith("judged gemm") for row in found["rows"])
    if command in ("tune", "bench"):
        assert "int8: ms a batch" in {row["what"] for row in found["times"]}


def test_a_comparison(recorded, repeat, cli, tmp_path):
    pytest.importorskip("onnxruntime")
    where = (tmp_path / "bert", "--data", tmp_path / "glue", *SMALL, "--out", tmp_path / "first", "-q")
    (tmp_path / "bert").mkdir(exist_ok=True)
    code, _, err = cli("compare", *where, "--tasks", "sst2", "--backends", "onnxruntime", "-m", "minmax", "--limit", 16)
    assert code == 0, err
    code, found, err = repeat(tmp_path / "first")
    assert code == 0, err
    names = {row["what"] for row in found["rows"]}
    assert {
        "sst2 onnxruntime minmax: table",
        "sst2 onnxruntime minmax: change",
        "sst2 onnxruntime fp32: logits",
    } <= names


def test_nothing_of_the_cache_is_used(recorded, repeat, monkeypatch):
    folder = recorded()
    seen = []
    for kind in (FakeTap, FakeEngine):
        real = kind._run
        monkeypatch.setattr(kind, "_run", lambda self, feed, real=real: seen.append(type(self)) or real(self, feed))
    assert repeat(folder)[0] == 0
    assert seen.count(FakeTap) >= 2
    assert seen.count(FakeEngine) == 3 * 7


def test_moved_files_are_named(recorded, repeat, tmp_path):
    folder = recorded()
    (tmp_path / "bert").rename(tmp_path / "moved-bert")
    (tmp_path / "glue").rename(tmp_path / "moved-glue")
    code, found, _ = repeat(folder)
    assert (code, set(found)) == (2, {"error", "hint"})
    code, found, err = repeat(folder, "--model", tmp_path / "moved-bert", "--data", tmp_path / "moved-glue")
    assert code == 0, err
    assert any(note.startswith("--data is ") for note in found["notes"])


def test_other_rows_are_refused_and_anyway_says_what_differs(recorded, repeat, tmp_path):
    folder = recorded()
    dev = tmp_path / "glue" / "SST-2" / "dev.tsv"
    dev.write_text(dev.read_text().replace("\t1\n", "\t0\n", 1))
    code, found, _ = repeat(folder)
    assert code == 2
    assert found["error"] == "It cannot be the same again: the labels have changed."
    code, found, _ = repeat(folder, "--anyway")
    assert code == 1
    assert not found["same"]
    assert "Not the same: the labels have changed." in found["notes"]
    assert {row["what"] for row in found["rows"] if not row["same"]} == {
        f"{p}: accuracy" for p in ("fp32", "fp16", "int8")
    }


def test_other_train_rows_are_refused(recorded, repeat, tmp_path):
    folder = recorded("sensitivity", "--tune-rows", 24, "--refine", "none")
    train = tmp_path / "glue" / "SST-2" / "train.tsv"
    whole = train.read_text()
    train.write_text(whole.replace("\t1\n", "\t0\n"))
    assert repeat(folder)[1]["error"] == "It cannot be the same again: the tuning labels have changed."
    train.write_text(whole.replace(" ", " the ", 200))
    error = repeat(folder)[1]["error"]
    assert "the calibration rows have changed" in error
    assert "the tuning rows have changed" in error


def test_another_model_is_refused(recorded, repeat, tmp_path):
    from safetensors.numpy import load_file, save_file

    folder = recorded()
    weights = load_file(tmp_path / "bert" / "model.safetensors")
    weights["classifier.bias"] = weights["classifier.bias"] + 1
    save_file(weights, tmp_path / "bert" / "model.safetensors")
    code, found, _ = repeat(folder)
    assert code == 2
    assert "the model is another one" in found["error"]


def test_what_the_record_says_is_what_is_compared(recorded, cli, tmp_path):
    folder = recorded()
    record = json.loads((folder / "record.json").read_text())
    record["engines"][2]["metrics"]["accuracy"]["value"] += 0.02
    record["manifest"]["calibration"]["table_sha256"] = "0" * 64
    record["context"]["versions"]["numpy"] = "1.0"
    record["context"]["machine"]["cores"] = 999
    (folder / "record.json").write_text(json.dumps(record))
    code, out, _ = cli("repeat", folder, "--out", tmp_path / "second")
    assert code == 1
    lines = out.splitlines()
    assert lines[0].startswith("table: 000000000000 before, ")
    assert lines[1].startswith("int8: accuracy: ")
    assert "results are the same, bit for bit." in out
    assert "numpy 1.0 -> " in out
    assert "Other cores: 999 -> " in out


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda r: r.pop("manifest"), "has no manifest"),
        (lambda r: r["manifest"].update(job="rm -rf"), "has no manifest"),
        (lambda r: r.update(schema=99), "is not a record"),
        (lambda r: r["context"].pop("settings"), "has no settings"),
        (lambda r: r["context"]["settings"].update(batch="8"), "the setting batch is '8'"),
        (lambda r: r["context"]["settings"].update(precisions=[1]), "the setting precisions is"),
        (lambda r: r["context"]["settings"].update(symmetric="no"), "the setting symmetric is"),
        (lambda r: r["context"]["settings"].update(table=1), "the setting table is 1"),
        (lambda r: r["context"]["settings"].update(engine=[]), "the setting engine is"),
        (lambda r: r["context"]["settings"].update(batch=0), "batch must be"),
        (lambda r: r.update(engines=[{"status": "ok"}]), "is no whole record: KeyError('precision')"),
        (lambda r: r.update(cells=3), "is no whole record"),
        (lambda r: r["manifest"].update(job="compare"), "is no whole record"),
        (lambda r: r.update(search={"goal": {"max_drop": "much"}}), "is no whole record"),
        (lambda r: r.update(search={"goal": {}}), "A search has one goal"),
        (lambda r: r["context"].update(versions=[1]), "is no whole record"),
        (lambda r: r["manifest"].update(evaluation=[1]), "is no whole record"),
    ],
)
def test_records_that_cannot_be_repeated(tmp_path, repeat, change, says):
    settings = Settings(model="nowhere", task="sst2").as_json()
    record = {"schema": 1, "context": {"settings": settings}, "manifest": {"job": "eval"}, "engines": []}
    record = json.loads(json.dumps(record))
    change(record)
    (tmp_path / "record.json").write_text(json.dumps(record))
    code, found, _ = repeat(tmp_path / "record.json")
    assert code == 2
    assert says in found["error"]


def test_its_own_folder_is_refused_and_damaged_files_too(recorded, cli, tmp_path, repeat):
    folder = recorded()
    assert cli("repeat", folder, "--out", folder)[0] == 2
    (tmp_path / "x.json").write_text("{")
    assert "is not JSON" in repeat(tmp_path / "x.json")[1]["error"]
    assert "There is no file" in repeat(tmp_path / "none.json")[1]["error"]


def test_settings_come_back_as_they_were(tmp_path):
    for given in (
        Settings(),
        Settings(model="m", task="sst2", parameters={"percentile": 99.0}, out=tmp_path, plan=tmp_path / "p"),
        Settings(precisions=("int8",), symmetric=False, text_columns=("a", "b"), engine={"shapes": "1x8"}, workers=2),
    ):
        text = json.loads(json.dumps(given.as_json()))
        assert settings_from_json(text | {"of a later version": 1}, "here") == given


def test_threads_and_workers_of_the_record():
    def of(settings: Settings, given=None, **manifest):
        record = {"context": {"settings": json.loads(json.dumps(settings.as_json()))}, "manifest": manifest}
        return settings_of(record, "record.json", given or {})

    assert of(Settings(), threads={"here": 7, "shards": 7}).threads == 7
    assert of(Settings(), {"threads": 2}, threads={"here": 7, "shards": 7}).threads == 2
    assert of(Settings(workers=3)).workers == 3
    away = Settings(scheduler="tcp://10.0.0.1:8786")
    assert (of(away).workers, of(away).scheduler) == (1, "")
    assert of(away, {"scheduler": "tcp://10.0.0.2:1"}).scheduler == "tcp://10.0.0.2:1"
    assert (of(away, {"workers": 2}).workers, of(away, {"workers": 2}).scheduler) == (2, "")
    with pytest.raises(InputError):
        of(away, {"workers": -1})


def test_searches_are_compared_where_both_looked():
    judged = {"sqnr_db": 20.0}
    plans = [{"mode": "gemm", "skip": []}, {"mode": "gemm", "skip": ["layer0.ffn1"]}, {"mode": "gemm+mha", "skip": []}]

    def record(*candidates, chosen):
        search = {"candidates": [{"plan": p, "judged": judged} for p in candidates], "chosen": {"plan": chosen}}
        return {"manifest": {}, "search": search, "engines": [{"precision": "int8", "status": "ok"}]}

    one, other = record(plans[0], plans[1], chosen=plans[1]), record(plans[0], plans[2], chosen=plans[2])
    rows = compared(exact_facts(one), exact_facts(other), common=True)
    assert [row["what"] for row in rows] == ["judged gemm"]
    assert len(compared(exact_facts(one), exact_facts(other))) == 5
    assert "decides by measured times" in search_notes(one, other)[0]
    assert search_notes(one, one) == ['The search chose the same plan, gemm without ["layer0.ffn1"].']
    assert search_notes({}, {}) == []


def test_what_a_manifest_is_made_of(tmp_path):
    assert "rich" in dependencies()
    assert "ruff" not in dependencies()
    assert "numpy" not in dependencies()  # stands among the versions
    assert differences({"a": "1", "b": "2"}, {"b": "3", "c": "4"}) == ["a 1 -> none", "b 2 -> 3", "c none -> 4"]
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("")
    assert list(adapter_sha256(tmp_path)) == ["adapter_config.json"]
    assert adapter_sha256(None) is None


def test_sources_that_are_not_installed_name_no_packages(monkeypatch) -> None:
    from importlib import metadata

    def missing(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", missing)
    assert dependencies() == {}

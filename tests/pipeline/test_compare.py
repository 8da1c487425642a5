"""Methods x tasks x backends on a tiny BERT: the matrix, what is kept, what fails, and how often data is collected."""

from __future__ import annotations

import json
import shutil

import pytest

from quantkit.errors import BackendError
from quantkit.pipeline import calibration, compare
from quantkit.pipeline import run as job

PARTS = ("task", "backend", "method")


@pytest.fixture
def two_tasks(tiny_glue_dir, tmp_path):
    """GLUE's layout with SST-2 and an MRPC of made pairs."""
    folder = tmp_path / "glue"
    shutil.copytree(tiny_glue_dir, folder)
    (folder / "MRPC").mkdir()
    for split in ("train", "dev"):
        lines = [line.split("\t") for line in (folder / "SST-2" / f"{split}.tsv").read_text().splitlines()[1:]]
        rows = [f"{label}\t{i}\t{i}\t{text}\t{text[::-1]}" for i, (text, label) in enumerate(lines)]
        head = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"
        (folder / "MRPC" / f"{split}.tsv").write_text("\n".join([head, *rows]) + "\n")
    return folder


@pytest.fixture
def arguments(tiny_bert_dir, two_tasks, tmp_path, monkeypatch):
    monkeypatch.setattr(job, "LATENCY_ROUNDS", 2)
    common = ["--calib-samples", 24, "--batch", 8, "--seq-len", 32, "--threads", 1, "--out", tmp_path / "out"]
    return [tiny_bert_dir, "--data", two_tasks, *common]


@pytest.fixture
def passes(monkeypatch):
    """How often activations were collected."""
    calls = []
    collect_batches = calibration.collect_batches

    def counted(workspace, batches, checkpoint):
        calls.append(workspace.task.name)
        return collect_batches(workspace, batches, checkpoint)

    monkeypatch.setattr(calibration, "collect_batches", counted)
    return calls


@pytest.fixture
def computed(monkeypatch):
    """The cells that were really computed; the list `stop` may hold the number after which Ctrl-C comes."""
    calls = []
    real = compare.Column.computed

    def counted(self, trial, calibrator):
        if calls[:1] == ["stop"] and len(calls) > 3:
            raise KeyboardInterrupt
        calls.append((self.workspace.task.name, self.workspace.settings.backend, calibrator and calibrator.name))
        return real(self, trial, calibrator)

    monkeypatch.setattr(compare.Column, "computed", counted)
    return calls


def read(tmp_path):
    return json.loads((tmp_path / "out" / "record.json").read_text())


def where(cell):
    return tuple(cell[part] for part in PARTS)


def test_the_whole_matrix_from_one_pass_a_task(cli, arguments, tmp_path, passes, computed):
    pytest.importorskip("onnxruntime")
    both = ["--tasks", "sst2,mrpc", "--backends", "openvino,onnxruntime", "--methods", "minmax,entropy"]
    code, out, err = cli("compare", *arguments, *both)
    assert code == 0, err
    assert passes == ["sst2", "mrpc"]
    record = read(tmp_path)
    assert (record["kind"], len(record["cells"]), record["kept"]) == ("compare", 12, 0)
    assert [where(cell) for cell in record["cells"][:4]] == [
        ("sst2", "openvino", ""),
        ("sst2", "openvino", "minmax"),
        ("sst2", "openvino", "entropy"),
        ("sst2", "onnxruntime", ""),
    ]
    settings = record["context"]["settings"]
    assert settings["task"] == ["sst2", "mrpc"] and "method" not in settings
    for cell in record["cells"]:
        assert cell["status"] == "ok", cell
        assert "predictions" not in cell
        if cell["method"]:
            fp32 = next(c for c in record["cells"] if where(c) == (cell["task"], cell["backend"], ""))
            metric = cell["change"]["metric"]
            change = cell["metrics"][metric]["value"] - fp32["metrics"][metric]["value"]
            assert cell["change"]["value"] == pytest.approx(change)
            assert cell["change"]["stderr"] >= 0
            assert cell["speedup"] > 0 and cell["fp32_ms"] > 0 and cell["int8_ops"] == 16
    assert max(map(len, out.splitlines())) <= 80
    for word in ("openvino", "onnxruntime", "sst2", "mrpc", "minmax", "entropy", "fp32", "±"):
        assert word in out
    assert (tmp_path / "out" / "report.html").stat().st_size > 4_000_000
    assert len(computed) == 12

    code, out, err = cli("compare", *arguments, *both)
    assert code == 0, err
    assert len(computed) == 12 and len(passes) == 2, "finished cells are not computed again"
    assert "12 of 12 cells were finished already." in out
    again = read(tmp_path)
    assert (again["kept"], again["cells"]) == (12, record["cells"])


def test_an_interrupted_comparison_goes_on_where_it_stopped(cli, arguments, tmp_path, computed):
    asked = ["compare", *arguments, "--tasks", "sst2", "--methods", "minmax,entropy,mse", "--quiet"]
    computed.append("stop")
    code, _, err = cli(*asked)
    assert (code, "The same command goes on" in err) == (130, True)
    assert [cell[2] for cell in computed[1:]] == [None, "minmax", "entropy"]
    assert [cell["method"] for cell in read(tmp_path)["cells"]] == ["", "minmax", "entropy"]
    computed.clear()
    assert cli(*asked)[0] == 0
    assert [cell[2] for cell in computed] == ["mse"]
    record = read(tmp_path)
    assert (record["kept"], [cell["method"] for cell in record["cells"]]) == (3, ["", "minmax", "entropy", "mse"])
    assert record["cells"][3]["change"]["stderr"] >= 0, "compared with the kept answers of FP32"


def test_other_settings_are_other_cells(cli, arguments, computed):
    asked = ["compare", *arguments, "--tasks", "sst2", "--methods", "minmax", "--quiet"]
    assert cli(*asked)[0] == 0
    assert cli(*asked, "--seed", 3)[0] == 0
    assert [cell[2] for cell in computed] == [None, "minmax", "minmax"], "FP32 does not depend on the sample"
    assert cli(*asked, "--limit", 40)[0] == 0
    assert [cell[2] for cell in computed[3:]] == [None, "minmax"]


def test_a_cell_that_fails_is_a_cell_with_its_reason(cli, arguments, tmp_path, monkeypatch):
    real = compare.TaskData.table

    def table(self, calibrator):
        if calibrator.name == "entropy":
            raise BackendError("entropy is ill today.")
        return real(self, calibrator)

    monkeypatch.setattr(compare.TaskData, "table", table)
    code, out, err = cli("compare", *arguments, "--tasks", "cola,sst2", "--methods", "minmax,entropy")
    assert code == 0, err
    cells = {where(cell): cell for cell in read(tmp_path)["cells"]}
    assert len(cells) == 6
    assert cells["sst2", "openvino", "minmax"]["status"] == "ok"
    assert cells["sst2", "openvino", "entropy"]["reason"] == "entropy is ill today."
    missing = [cells["cola", "openvino", method]["reason"] for method in ("", "minmax", "entropy")]
    assert len(set(missing)) == 1 and "CoLA" in missing[0]
    assert "failed [1]" in out and "failed [2]" in out
    assert "[2] entropy is ill today." in out and "4 of 6 cells failed" in out
    assert "entropy is ill today." in (tmp_path / "out" / "report.html").read_text()
    assert max(len(line) for line in out.splitlines() if not line.startswith("[")) <= 80
    monkeypatch.undo()


def test_the_place_of_the_task_in_paths_is_filled(cli, arguments, tmp_path, tiny_bert_dir):
    for task in ("sst2", "mrpc"):
        (tmp_path / task).symlink_to(tiny_bert_dir)
    named = [tmp_path / "{task}", *arguments[1:], "--tasks", "mrpc,sst2", "--methods", "minmax", "--json"]
    code, out, err = cli("compare", *named)
    assert code == 0, err
    models = {task: source["model"]["name"] for task, source in json.loads(out)["sources"].items()}
    assert models == {task: str(tmp_path / task) for task in ("mrpc", "sst2")}


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (["--tasks", "sst3"], "sst2"),
        (["--tasks", "sst2", "--backends", "openvin"], "openvino"),
        (["--tasks", "sst2", "--methods", "entropie"], "entropy"),
        (["--tasks", ","], "--tasks is empty"),
        ([], "--tasks is empty"),
        (["--tasks", "cola"], "CoLA"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(cli, arguments, wrong, says):
    code, _, err = cli("compare", *arguments, *wrong, "--quiet")
    assert code == 2
    assert says in err
    assert "Traceback" not in err


def test_a_broken_cell_file_is_computed_again(cli, arguments, tmp_path, computed):
    asked = ["compare", *arguments, "--tasks", "sst2", "--methods", "minmax", "--quiet"]
    assert cli(*asked)[0] == 0
    for path in (tmp_path / "out" / "cells").iterdir():
        path.write_text("{}")
    assert cli(*asked)[0] == 0
    assert len(computed) == 4


def change_cell(method, value, stderr, task="sst2"):
    change = {"metric": "accuracy", "value": value, "stderr": stderr}
    return {"task": task, "backend": "openvino", "method": method, "status": "ok", "change": change}


@pytest.mark.parametrize(("stderr", "alike"), [(0.001, False), (0.01, True)])
def test_the_verdict_knows_whether_methods_can_be_told_apart(stderr, alike):
    cells = [change_cell("mse", -0.002, stderr), change_cell("mse", 0.0, stderr, "cola")]
    cells += [change_cell("entropy", -0.02, stderr), change_cell("entropy", -0.01, stderr, "cola")]
    cells += [
        change_cell("minmax", 0.5, stderr),
        {**change_cell("minmax", 0, 0, "cola"), "status": "failed", "change": None},
    ]
    lines = compare.verdict(cells)
    assert lines[0].startswith("openvino: mse costs least, -0.10 ±"), "a method that lacks a task is no winner"
    assert ("cannot tell one method from another" in lines[0]) == alike
    assert lines[1] == "1 of 6 cells failed; each says why."


def test_methods_make_other_engines_unless_refinement_decides(cli, arguments, tmp_path):
    methods = ["--tasks", "sst2", "--methods", "minmax,percentile"]

    def graphs(*more):
        code, _, _ = cli("compare", *arguments, *methods, *more)
        assert code == 0
        return {cell["method"]: cell["hashes"]["graph_sha256"] for cell in read(tmp_path)["cells"] if cell["method"]}

    plain = graphs()
    assert plain["minmax"] != plain["percentile"]
    refined = graphs("--refine", "all")
    assert refined["minmax"] == refined["percentile"] not in plain.values()

"""`--quiet` is the same in every command: errors, and the answer where it is in no file and no exit code."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
import typer
from torch_like import TorchLike

from quantkit.backends.fake import FakeBackend
from quantkit.backends.openvino.backend import OpenVINOBackend
from quantkit.cli.app import app
from quantkit.network.model import load_model
from quantkit.network.precision import PrecisionPlan
from quantkit.network.qdq import insert_qdq
from quantkit.tables import CalibrationTable, Entry, load_table

SMALL = ("--batch", 8, "--seq-len", 24, "--calib-samples", 24)
ON = ("MODEL", "--task", "sst2", "--data", "GLUE", *SMALL, "--backend", "fake")
TABLES = ("a.cache", "b.cache")
RECORDED = Path(__file__).parents[1] / "backends" / "trt" / "recorded" / "h100_trt860_kernels.json"
INSPECTION = {"Layers": [{"Name": "gemm", "LayerType": "gemm", "TacticName": "sm80_xmma_gemm_i8f32_i8i32_f32"}]}

NOTHING = {
    "run": ("run", *ON, "--out", "out"),
    "calibrate": ("calibrate", *ON, "--out", "out"),
    "calibrate --from": ("calibrate", "--from", "first/histograms.npz", "--out", "out"),
    "calibrate --study": ("calibrate", *ON, "--study", "--orders", 0, "--out", "out"),
    "build": ("build", *ON, "-p", "fp32", "--out", "out"),
    "eval": ("eval", *ON, "--limit", 8, "--out", "out"),
    "bench": ("bench", *ON, "--out", "out"),
    "sensitivity": ("sensitivity", *ON, "--tune-rows", 40, "--out", "out"),
    "tune": ("tune", *ON, "--tune-rows", 40, "--min-speedup", 0.01, "--out", "out"),
    "compare": ("compare", "MODEL", "--tasks", "sst2", "--data", "GLUE", *SMALL, "-m", "minmax", "--out", "out"),
    "report": ("report", "first"),
    "repeat": ("repeat", "first", "--out", "out"),
    "verify": ("verify", "first/minmax.cache", "--histograms", "first/histograms.npz"),
    "migrate": ("migrate", "a.cache", "model.onnx", "-o", "q.onnx"),
    "export": ("export", "MODEL", "--out", "model.onnx"),
    "plugins build": ("plugins", "build", "--capability", "9.0"),
    "profile": ("profile", "--from", "RECORDED", "--out", "out"),
    "table diff": ("table", "diff", *TABLES),
    "table merge": ("table", "merge", *TABLES, "--prefer", "widest", "-o", "m.json"),
    "table validate": ("table", "validate", "a.cache"),
    "table rename": ("table", "rename", "a.cache", "--exact", "x => y", "--exact", "gone => z", "-o", "r.json"),
    "table convert": ("table", "convert", "first/minmax.json", "-o", "c.cache"),
}
"""Commands whose answer is in a file or in their exit code."""
ANSWERS = {
    "eval": ("eval", *ON, "--limit", 8),
    "bench": ("bench", *ON),
    "calibrate --study": ("calibrate", *ON, "--study", "--orders", 0),
    "profile": ("profile", "--from", "RECORDED"),
    "doctor": ("doctor",),
    "audit": ("audit", "inspection.json"),
    "table show": ("table", "show", "a.cache"),
    "table show --weights": ("table", "show", "qdq.onnx", "--weights"),
}
"""Commands whose answer is nowhere but on standard output."""
EXIT = {"table diff": 1}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """A folder for what is made once."""
    return tmp_path_factory.mktemp("results")


@pytest.fixture
def results(cli, shelf, tiny_bert_dir, tiny_glue_dir):
    """Tables, histograms and the record of an evaluation, which the commands only read."""
    common = (tiny_bert_dir, "--task", "sst2", "--data", tiny_glue_dir, *SMALL, "--backend", "fake", "--out", shelf)
    if not (shelf / "record.json").exists():
        for command in ("calibrate", "eval"):
            code, _, err = cli(command, *common)
            assert code == 0, err
    return shelf


@pytest.fixture
def quiet(cli, results, tiny_bert_dir, tiny_glue_dir, tmp_path, monkeypatch):
    """Runs a command with --quiet in a folder that holds what it needs."""
    from quantkit.pipeline import export
    from quantkit.pipeline import run as job
    from quantkit.pipeline.tensorrt import plugins
    from quantkit.search import clock

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(job, "LATENCY_ROUNDS", 2)
    monkeypatch.setattr(clock, "ROUNDS", 2)
    # torch and nvcc are not among the tests' packages.
    monkeypatch.setattr(export, "export_onnx", lambda model, out: {"file": str(out), "inputs": ["x"], "labels": 2})
    built = {"path": "x.so", "fresh": True, "seconds": 1.0, "capability": "9.0", "tensorrt": "8.6"}
    monkeypatch.setattr(plugins, "build_plugins", lambda *_, **__: built)
    Path("first").symlink_to(results)
    Path("inspection.json").write_text(json.dumps(INSPECTION))
    for name, scale in (("a", 0.5), ("b", 0.25)):
        table = {"/LayerNorm/LayerNormalization_output_0": Entry(0.02), "x": Entry(scale)}
        CalibrationTable(table, "entropy").save(f"{name}.cache")
    onnx.save(TorchLike(1).model(), "model.onnx")
    network = load_model(tiny_bert_dir)
    table = CalibrationTable(load_table(results / "minmax.json").entries, "minmax")
    onnx.save(insert_qdq(network.proto, table, PrecisionPlan()).proto, "qdq.onnx")

    def run(words):
        places = {"MODEL": tiny_bert_dir, "GLUE": tiny_glue_dir, "RECORDED": RECORDED}
        return cli(*(places.get(word, word) for word in words), "--quiet")

    return run


@pytest.mark.parametrize("name", NOTHING)
def test_a_command_with_a_file_or_an_exit_code_says_nothing(quiet, name):
    assert quiet(NOTHING[name]) == (EXIT.get(name, 0), "", "")


@pytest.mark.parametrize("name", ANSWERS)
def test_another_command_says_its_answer_alone(quiet, cli, name):
    code, out, err = quiet(ANSWERS[name])
    assert (code, err) == (0, "")
    assert out.strip()
    for remark in ("calibration:", "Report:", "note:", "tensors, format", "cache:", "INT8 against FP32"):
        assert remark not in out


def test_errors_are_said(quiet, monkeypatch):
    code, out, err = quiet(("run", "nowhere", "--task", "sst2"))
    assert (code, out) == (2, "") and "nowhere" in err
    code, out, err = quiet(("build", *ON, "-p", "int8", "--plan", "none.json", "--out", "out"))
    assert (code, out) == (2, "") and "none.json" in err
    for backend in (FakeBackend, OpenVINOBackend):
        monkeypatch.setattr(backend, "unsupported", lambda *_: "it is out of order")
    for command in (("eval", *ON, "--out", "out"), (*NOTHING["compare"],)):
        code, out, err = quiet(command)
        assert (code, out) == (1, "")
        assert err.startswith("quantkit: every engine failed: it is out of order") and err.count("\n") == 1


def leaves(command=None, path=()):
    """Name of everything that does something."""
    command = command or typer.main.get_command(app)
    for name, child in getattr(command, "commands", {}).items():
        yield from leaves(child, (*path, name))
    if not getattr(command, "commands", {}):
        yield " ".join(path)


def test_every_command_is_asked():
    assert {name.partition(" --")[0] for name in (*NOTHING, *ANSWERS)} == set(leaves())

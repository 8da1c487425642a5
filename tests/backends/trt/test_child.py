"""Builds in a process of their own: what a crash, an error or a hang becomes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from quantkit.backends.trt import build
from quantkit.backends.trt.child import inspect_in_child, run_job
from quantkit.backends.trt.options import BuildOptions, CalibratorOptions, Job, Source
from quantkit.backends.trt.worker import INSPECTION
from quantkit.errors import BackendError, InputError, TableError

JOB = Job(Source("model.onnx"), BuildOptions("int8+fp32", ranges="cache"))


def script(text: str) -> list[str]:
    """A command that runs Python with the folder in `folder`."""
    head = "import sys, os, json, pathlib, time; folder = pathlib.Path(sys.argv[1])\n"
    return [sys.executable, "-c", head + text]


def test_a_result_is_read(tmp_path: Path) -> None:
    text = "(folder / 'result.json').write_text(json.dumps({'seconds': 2.5, 'missing': ['a']}))"
    outcome = run_job(JOB, tmp_path, command=script(text))
    assert outcome.seconds == 2.5
    assert outcome.missing == ["a"]
    assert Job.from_json(json.loads((tmp_path / "job.json").read_text())) == JOB


@pytest.mark.parametrize(
    "end, words",
    [
        ("os.kill(os.getpid(), 11)", "crashed with a segmentation fault"),
        ("os.kill(os.getpid(), 9)", "crashed with a kill, most often for want of memory"),
        ("os.abort()", "crashed with an abort"),
        ("print('last words'); sys.exit(3)", r"ended with exit code 3 \(last words\)"),
        ("sys.exit(0)", "ended with exit code 0"),
    ],
)
def test_a_crash_names_the_step_and_the_engine(tmp_path: Path, end: str, words: str) -> None:
    text = "(folder / 'status.json').write_text(json.dumps({'step': 'build the engine'}))\n" + end
    with pytest.raises(BackendError, match=words) as caught:
        run_job(JOB, tmp_path, command=script(text))
    assert "at the step 'build the engine' of the int8+fp32 engine (onnx, scales by cache)" in caught.value.message
    assert "--network api" in caught.value.hint


@pytest.mark.parametrize(
    "kind, expected",
    [
        ("TableError", TableError),
        ("UnknownNameError", InputError),
        ("KeyError", BackendError),
        ("difflib", BackendError),
    ],
)
def test_an_error_keeps_its_class(tmp_path: Path, kind: str, expected: type[Exception]) -> None:
    told = {"kind": kind, "message": "No.", "hint": "Do that."}
    text = f"(folder / 'error.json').write_text({json.dumps(json.dumps(told))}); sys.exit(2)"
    with pytest.raises(expected) as caught:
        run_job(JOB, tmp_path, command=script(text))
    assert str(caught.value) == "No. Do that."


def test_a_build_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    text = "(folder / 'status.json').write_text(json.dumps({'step': 'build the engine'})); time.sleep(60)"
    with pytest.raises(BackendError, match=r"took longer than 1 s, at the step"):
        run_job(JOB, tmp_path, timeout_s=1, command=script(text))


def test_a_crash_during_inspection_leaves_the_engine(tmp_path: Path) -> None:
    text = """
(folder / 'result.json').write_text(json.dumps({'seconds': 1}))
(folder / 'status.json').write_text(json.dumps({'step': 'inspect the engine'}))
os.kill(os.getpid(), 11)
"""
    outcome = run_job(JOB, tmp_path, command=script(text))
    assert outcome.seconds == 1
    assert "could not be inspected" in outcome.notes[0]
    assert "segmentation fault" in outcome.notes[0]


def test_a_half_written_status_is_no_second_failure(tmp_path: Path) -> None:
    text = "(folder / 'status.json').write_text('{\"st'); os.kill(os.getpid(), 11)"
    with pytest.raises(BackendError, match="at the step 'start'"):
        run_job(JOB, tmp_path, command=script(text))


def test_the_worker_builds_and_inspects(fake_trt, tmp_path: Path, network) -> None:
    (tmp_path / "model.onnx").write_bytes(network.fixed(2, 8).SerializeToString())
    outcome = run_job(Job(Source("model.onnx"), BuildOptions("fp16")), tmp_path)
    assert outcome.tensors > 80
    assert (tmp_path / build.PLAN).stat().st_size > 1000
    found = json.loads((tmp_path / INSPECTION).read_text())
    assert found["times"]
    assert found["information"]["Layers"]
    (tmp_path / INSPECTION).unlink()
    (tmp_path / "job.json").unlink()
    inspect_in_child(tmp_path)
    assert (tmp_path / INSPECTION).is_file()


def test_the_worker_reports_errors(fake_trt, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "model.onnx").write_bytes(b"nothing")
    with pytest.raises(BackendError, match="ONNX parser refuses"):
        run_job(Job(Source("model.onnx"), BuildOptions("fp16")), tmp_path)
    monkeypatch.setenv("FAKE_NO_GPU", "1")
    with pytest.raises(BackendError, match="no CUDA device"):
        run_job(Job(Source("model.onnx"), BuildOptions("fp16")), tmp_path)


def test_calibration_alone_ends_the_worker_early(fake_trt, tmp_path: Path, network, make_feed) -> None:
    from quantkit.backends.trt.backend import store_batches

    class One:
        def __len__(self) -> int:
            return 1

        def __iter__(self):
            return iter([make_feed(2, 8)])

    (tmp_path / "model.onnx").write_bytes(network.fixed(2, 8).SerializeToString())
    store_batches(tmp_path / build.BATCHES, One(), list(network.input_names))
    options = BuildOptions("int8", ranges="calibrate")
    job = Job(Source("model.onnx"), options, CalibratorOptions("minmax"), 1, stop_after_calibration=True)
    run_job(job, tmp_path)
    assert (tmp_path / build.CACHE).is_file()
    assert not (tmp_path / build.PLAN).exists()


def test_a_stranger_s_plan_cannot_crash_us(fake_trt, tmp_path: Path) -> None:
    (tmp_path / build.PLAN).write_bytes(b"not a plan")
    with pytest.raises(BackendError, match="cannot be loaded: Magic tag"):
        inspect_in_child(tmp_path)

"""A job that is stopped goes on where it stopped, ends with the same bits, and leaves nothing behind."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from quantkit import files
from quantkit.backends.fake import FakeEngine, FakeTap
from quantkit.collect.store import load_histograms
from quantkit.errors import StorageError
from quantkit.pipeline import run as job
from quantkit.pipeline import unfinished
from quantkit.pipeline.calibration import collect, write_tables
from quantkit.pipeline.settings import Settings
from quantkit.pipeline.workspace import Workspace
from quantkit.report.terminal import SilentWatcher

SCRIPT = Path(__file__).with_name("kills.py")


@pytest.fixture
def settings(tiny_bert_dir, tiny_glue_dir, tmp_path, monkeypatch):
    """Settings of a small job; a checkpoint after every batch."""
    monkeypatch.setattr(unfinished, "SECONDS", 0)
    monkeypatch.setattr(unfinished, "SHARE", 0)
    monkeypatch.setattr(job, "LATENCY_ROUNDS", 2)

    def made(**changes):
        values = {"model": str(tiny_bert_dir), "task": "sst2", "data": str(tiny_glue_dir), "backend": "fake"}
        values |= {"calib_samples": 32, "batch": 4, "seq_len": 24, "threads": 1, "precisions": ("fp32", "int8")}
        return Settings(**values | {"out": tmp_path / "out"} | changes)

    return made


@pytest.fixture
def runs(monkeypatch):
    """Counts the batches of taps and engines; raises what `stop` holds before batch number stop[0]."""

    class Counter:
        batches = 0
        stop: tuple[int, BaseException] | None = None

    for kind in (FakeTap, FakeEngine):
        real = kind._run

        def counted(self, feed, real=real):
            if Counter.stop is not None and Counter.batches == Counter.stop[0]:
                raise Counter.stop[1]
            Counter.batches += 1
            return real(self, feed)

        monkeypatch.setattr(kind, "_run", counted)
    return Counter


def left() -> list[Path]:
    """What lies in the folder of unfinished work."""
    return sorted(unfinished.folder().glob("*")) if unfinished.folder().is_dir() else []


@pytest.mark.parametrize("order_free", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("a defect")], ids=["ctrl-c", "exception"])
def test_a_pass_goes_on_with_the_next_batch(settings, runs, monkeypatch, tmp_path, order_free, error):
    wanted = settings(order_free=order_free)
    whole = collect(Workspace(wanted, SilentWatcher()))
    assert runs.batches == 8
    monkeypatch.setenv("QUANTKIT_CACHE", str(tmp_path / "another"))
    runs.batches, runs.stop = 0, (5, error)
    with pytest.raises(type(error)):
        collect(Workspace(wanted, SilentWatcher()))
    assert len(left()) == 1
    runs.stop = None
    found = collect(Workspace(wanted, SilentWatcher()))
    assert runs.batches == 8
    assert found.histograms == whole.histograms
    assert found.seconds > 0
    assert not left()


def test_a_checkpoint_that_does_not_fit_is_left_alone(settings, runs):
    def interrupted() -> Path:
        runs.batches, runs.stop = 0, (5, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            collect(Workspace(settings(), SilentWatcher()))
        runs.batches, runs.stop = 0, None
        (path,) = left()
        return path

    path = interrupted()
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    here = collect(Workspace(settings(), SilentWatcher()))
    assert runs.batches == 8
    here.path.unlink()

    interrupted()
    collect(Workspace(settings(threads=2), SilentWatcher())).path.unlink()
    assert runs.batches == 8

    path = interrupted()
    stored = load_histograms(path)
    unfinished.save_histograms(path, stored.histograms, stored.meta | {"batches": 99})
    assert collect(Workspace(settings(), SilentWatcher())).histograms == here.histograms
    assert runs.batches == 8


def test_an_evaluation_goes_on_with_the_next_batch(settings, runs):
    calibration, evaluation = 8, 13
    runs.stop = (calibration + evaluation + 4, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        job.run_settings(settings(refine="none"), SilentWatcher(), latency=False)
    assert len(left()) == 2
    runs.batches, runs.stop = 0, None
    found = job.run_settings(settings(refine="none"), SilentWatcher(), latency=False)
    assert runs.batches == evaluation - 4
    assert not left()
    runs.batches = 0
    again = job.run_settings(settings(refine="none"), SilentWatcher(), latency=False)
    assert runs.batches == 2 * evaluation
    assert [row["metrics"] for row in found.engines] == [row["metrics"] for row in again.engines]


def test_answers_of_another_engine_or_damaged_ones_are_computed(settings, runs):
    def interrupted(**changes) -> None:
        runs.batches, runs.stop = 0, (8 + 13 + 4, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            job.run_settings(settings(refine="none", **changes), SilentWatcher(), latency=False)
        runs.batches, runs.stop = 0, None

    interrupted()
    job.run_settings(settings(refine="none", symmetric=True), SilentWatcher(), latency=False)
    assert runs.batches == 13  # FP32's answers are the same engine's, INT8's are not
    (path,) = left()
    value = json.loads(path.read_text())
    value["logits"] = "00000000" + value["logits"][8:]
    path.write_text(json.dumps(value))
    runs.batches = 0
    job.run_settings(settings(refine="none"), SilentWatcher(), latency=False)
    assert runs.batches == 2 * 13


def test_latencies_are_measured_once_a_run(settings, monkeypatch):
    times = []
    time_engines = job.time_engines

    def counted(*args, **kwargs):
        times.append(time_engines(*args, **kwargs))
        return times[-1]

    monkeypatch.setattr(job, "time_engines", counted)

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(job, "report", interrupted)
        with pytest.raises(KeyboardInterrupt):
            job.run_settings(settings(), SilentWatcher())
    found = job.run_settings(settings(), SilentWatcher())
    assert len(times) == 1
    assert [row["latency_ms"]["median"] for row in found.engines] == [t.median_ms for t in times[0]]
    job.run_settings(settings(), SilentWatcher())
    assert len(times) == 2


def test_a_full_disk_is_told_at_once_and_loses_nothing(settings, runs, monkeypatch):
    real, written = os.fsync, []

    def full(handle: int) -> None:
        written.append(handle)
        if len(written) > 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        with pytest.raises(StorageError, match="No space left"):
            write_tables(settings(), SilentWatcher())
    assert runs.batches == 4
    assert [path.suffix for path in left()] == [".npz"]
    write_tables(settings(), SilentWatcher())
    assert runs.batches == 3 + 1 + 5


def test_a_kept_table_that_was_touched_is_made_again(settings, runs, tmp_path):
    wanted = settings(out=None, precisions=("int8",))
    first = job.run_settings(wanted, SilentWatcher(), latency=False).data["calibration"]
    table = Path(first["table"])
    whole = table.read_bytes()
    assert job.run_settings(wanted, SilentWatcher(), latency=False).data["calibration"]["reused"]
    table.write_bytes(whole.replace(b'"scale": ', b'"scale": 1'))
    assert not job.run_settings(wanted, SilentWatcher(), latency=False).data["calibration"]["reused"]
    assert table.read_bytes() == whole


def test_a_table_that_was_kept_but_not_yet_in_out_is_named_as_ever(settings, monkeypatch):
    from quantkit.pipeline import calibration

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(calibration, "save_table", interrupted)
        with pytest.raises(KeyboardInterrupt):
            job.run_settings(settings(refine="none"), SilentWatcher(), latency=False)
    found = job.run_settings(settings(refine="none"), SilentWatcher(), latency=False).data["calibration"]
    assert found["reused"]
    assert found["table"] == str(settings().out / "mse.json")


def test_regression_scores_come_back_as_they_were(tmp_path):
    class Engine:
        inputs = outputs = ()
        precision = "fp32"

    engine = Engine()
    engine.outputs = (unfinished.TensorSpec("logits", np.dtype(np.float32), (-1, 1)),)
    answers = [np.float32([[0.1], [-0.0]]), np.float32([[3e38], [1e-45]])]
    feeds = iter(answers)
    engine.infer = lambda feed: {"logits": next(feeds)}
    first = unfinished.KeptAnswers(engine, tmp_path / "kept.json")
    for _ in answers:
        first.infer({})
    first.keep()
    second = unfinished.KeptAnswers(engine, tmp_path / "kept.json")
    for answer in answers:
        assert second.infer({})["logits"].tobytes() == answer.tobytes()


@pytest.mark.parametrize(
    ("points", "jobs"),
    [
        (10, "calibrate,eval"),
        (4, "build,tune"),
        pytest.param(
            *(100, "calibrate,run,eval,build,compare,tune"),
            marks=[
                pytest.mark.slow,
                pytest.mark.skipif("QUANTKIT_SLOW" not in os.environ, reason="ten minutes; set QUANTKIT_SLOW=1"),
            ],
        ),
    ],
)
def test_random_stops_change_no_bit(tiny_bert_dir, tiny_glue_dir, tmp_path, points, jobs):
    command = [sys.executable, SCRIPT, tiny_bert_dir, tiny_glue_dir, tmp_path / "kills"]
    done = subprocess.run(
        [*map(str, command), "--points", str(points), "--jobs", jobs], capture_output=True, text=True, timeout=3600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    ended = json.loads(done.stdout.splitlines()[0])["ended"]
    assert sum(count for what, count in ended.items() if what.endswith("stopped")) > points / 2

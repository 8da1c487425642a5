"""Several processes on one cache folder: no double work, no torn file, no deadlock after a killed holder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from quantkit.collect.histogram import Histogram
from quantkit.collect.store import load_histograms, save_histograms
from quantkit.pipeline.locks import alone_in, exclusive

PASS = """
import sys, time
from pathlib import Path
from quantkit.backends.fake import FakeTap
from quantkit.pipeline import calibration
from quantkit.pipeline.settings import Settings
from quantkit.report.terminal import TerminalWatcher

real, seen = FakeTap._run, 0

def slow(self, feed):
    global seen
    seen += 1
    time.sleep(0.1)
    print("batch", seen, flush=True)
    return real(self, feed)

FakeTap._run = slow
settings = Settings(
    model=sys.argv[1], task="sst2", data=sys.argv[2], out=Path(sys.argv[3]), backend="fake", methods=("minmax",),
    calib_samples=32, batch=4, seq_len=24, threads=1,
)
print("reused", calibration.write_tables(settings, TerminalWatcher())["reused"], flush=True)
"""


@pytest.fixture
def start(tiny_bert_dir, tiny_glue_dir):
    """Starts a process that collects 8 batches of 0.1 s; all are ended with the test."""
    running = []

    def started(out: Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", PASS, tiny_bert_dir, tiny_glue_dir, out]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        running.append(subprocess.Popen([*map(str, command)], **pipes))
        return running[-1]

    yield started
    for process in running:
        process.kill()
        process.communicate()


def test_one_collects_and_the_others_wait_for_it(start, tmp_path):
    processes = [start(tmp_path / str(number)) for number in range(3)]
    ended = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], ended
    outputs = [out.splitlines() for out, _ in ended]
    assert sum(line.startswith("batch") for lines in outputs for line in lines) == 8
    assert sorted(lines[-1] for lines in outputs) == ["reused False", "reused True", "reused True"]
    tables = {(tmp_path / str(number) / "minmax.json").read_bytes() for number in range(3)}
    assert len(tables) == 1


def test_who_waits_goes_on_when_the_holder_is_killed(start, tmp_path):
    holder = start(tmp_path / "same")
    assert holder.stdout.readline() == "batch 1\n"
    waiting = start(tmp_path / "same")
    for line in waiting.stderr:
        if "Another process is writing to" in line:
            break
    holder.send_signal(signal.SIGKILL)
    out, err = waiting.communicate(timeout=120)
    assert waiting.returncode == 0, err
    assert out.splitlines()[-1] == "reused False"
    assert (tmp_path / "same" / "minmax.cache").is_file()


WRITER = """
import sys
from pathlib import Path
from quantkit.collect.histogram import Histogram
from quantkit.collect.store import save_histograms
import numpy as np

number = int(sys.argv[2])
histograms = {"x": Histogram.empty("tensorrt").updated(np.full(5, number, np.float32))}
for _ in range(60):
    save_histograms(Path(sys.argv[1]), histograms, {"writer": number})
"""


def test_writers_of_one_file_never_tear_it(tmp_path):
    path = tmp_path / "h.npz"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(n)]) for n in (1, 2)]
    seen, deadline = set(), time.monotonic() + 120
    while any(writer.poll() is None for writer in writers) and time.monotonic() < deadline:
        if path.is_file():
            found = load_histograms(path)
            assert found.histograms["x"].amax == found.meta["writer"]
            seen.add(found.meta["writer"])
    assert [writer.wait() for writer in writers] == [0, 0]
    assert seen
    assert sorted(p.name for p in tmp_path.iterdir()) == ["h.npz"]


class Told:
    """A watcher that keeps what it is told."""

    def __init__(self):
        self.said = []

    def say(self, message):
        self.said.append(message)


def test_a_lock_is_free_again_after_an_error_and_needs_no_folder_of_its_own(tmp_path, monkeypatch):
    told = Told()
    for _ in range(2):
        with pytest.raises(RuntimeError), exclusive("x", told, "waiting"), alone_in(tmp_path, told):
            raise RuntimeError
    assert told.said == []
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("QUANTKIT_CACHE", str(tmp_path / "file"))
    done = []
    with exclusive("x", told, "waiting"):
        done.append(json.dumps(told.said))
    assert done == ["[]"]


@pytest.mark.skipif(os.name != "posix", reason="umask is POSIX's")
def test_a_cache_folder_is_shared_by_its_group(tmp_path, monkeypatch):
    monkeypatch.setenv("QUANTKIT_CACHE", str(tmp_path / "cache"))
    umask = os.umask(0o002)
    try:
        with exclusive("x", Told(), "waiting"):
            (lock,) = (tmp_path / "cache" / "locks").iterdir()
        save_histograms(tmp_path / "cache" / "h.npz", {"x": Histogram.empty().updated(np.zeros(1, np.float32))}, {})
    finally:
        os.umask(umask)
    assert {path.stat().st_mode & 0o777 for path in (lock, tmp_path / "cache" / "h.npz")} == {0o664}

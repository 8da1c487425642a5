"""--memory: the limit is kept, nothing changes in the tables, and a limit that is too small is told with the figure."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from tiny import made_sentences

from quantkit.errors import InputError
from quantkit.network.refine import observed_tensors
from quantkit.pipeline import memory, moments, stretches
from quantkit.pipeline.calibration import collect
from quantkit.pipeline.collection import batches_of
from quantkit.pipeline.refinement import collect_moments
from quantkit.pipeline.settings import Settings
from quantkit.pipeline.sizes import parse_size, shown
from quantkit.pipeline.workspace import Workspace
from quantkit.report.terminal import SilentWatcher

LIMIT = 740 << 20
"""Bytes of data that the child below may have: enough for calibration in stretches, too little for all tensors."""

CHILD = """
import resource, sys
resource.setrlimit(resource.RLIMIT_DATA, ({limit}, {limit}))
from quantkit.cli.app import main
sys.argv = ["quantkit", *{arguments!r}]
main()
"""


class Heard(SilentWatcher):
    """A watcher that remembers what it is told."""

    def __init__(self) -> None:
        self.words: list[str] = []

    def say(self, message: str) -> None:
        self.words.append(message)


@pytest.fixture
def settings(tiny_bert_dir, tiny_glue_dir):
    """Settings of a small job."""
    values = {"model": str(tiny_bert_dir), "task": "sst2", "data": str(tiny_glue_dir), "calib_samples": 30}
    return Settings(**values, batch=4, seq_len=24, threads=1)


@pytest.fixture
def tight(monkeypatch):
    """Every cut of the network is made, whatever the limit is, with at most three batches in a stretch."""
    monkeypatch.setattr(stretches, "fitting_segments", lambda segments, *_: (segments.finest(), 3))


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("", 0),
        ("4G", 4 << 30),
        ("4GiB", 4 << 30),
        ("4GB", 4 * 10**9),
        ("1.5 g", 3 << 29),
        ("900m", 900 << 20),
        ("7", 7),
    ],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["4X", "G", "-1G", "nan", "1e9", "0", "0G", "iB", "4G 4G", "9" * 30])
def test_what_is_no_size_is_told(text, cli):
    with pytest.raises(InputError, match="--memory is"):
        parse_size(text)
    code, _, error = cli("calibrate", "--memory", text)
    assert code == 2
    assert "--memory is" in error


def test_sizes_are_shown_for_people():
    assert (shown(4 << 30), shown(310 << 20), shown(1)) == ("4.00 GiB", "310 MiB", "1 MiB")


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
@pytest.mark.parametrize(
    "changes", [{}, {"order_free": True}, {"ignore_padding": True}], ids=lambda c: next(iter(c), "")
)
def test_histograms_are_the_same_in_stretches(settings, tight, monkeypatch, tmp_path, backend, changes):
    pytest.importorskip(backend)
    wanted = replace(settings, backend=backend, **changes)
    whole = collect(Workspace(wanted, SilentWatcher()))
    monkeypatch.setenv("QUANTKIT_CACHE", str(tmp_path))
    watcher = Heard()
    found = collect(Workspace(replace(wanted, memory=4 << 30), watcher))
    assert "in 5 stretches" in watcher.words[0]
    assert list(found.histograms) == list(whole.histograms)
    assert found.histograms == whole.histograms


def test_a_pass_in_stretches_goes_on_after_an_interruption(settings, tight, monkeypatch, tmp_path):
    from quantkit.backends.openvino.tap import OpenVINOTap
    from quantkit.pipeline import unfinished

    whole = collect(Workspace(settings, SilentWatcher()))
    monkeypatch.setenv("QUANTKIT_CACHE", str(tmp_path))
    monkeypatch.setattr(unfinished, "SECONDS", 0)
    monkeypatch.setattr(unfinished, "SHARE", 0)
    real, ran = OpenVINOTap._run, []

    def counted(self, feed):
        ran.append(len(ran))
        if len(ran) == 23:
            raise KeyboardInterrupt
        return real(self, feed)

    monkeypatch.setattr(OpenVINOTap, "_run", counted)
    limited = replace(settings, memory=4 << 30)
    with pytest.raises(KeyboardInterrupt):
        collect(Workspace(limited, SilentWatcher()))
    found = collect(Workspace(limited, SilentWatcher()))
    assert found.histograms == whole.histograms
    assert len(ran) == 23 + 5 * (8 - 3)  # three batches were through all five stretches


def test_one_stretch_where_everything_fits(settings):
    watcher = Heard()
    collect(Workspace(replace(settings, memory=8 << 30), watcher))
    assert "all 66 tensors at once" in watcher.words[0]


def test_a_limit_that_is_too_small_names_one_that_is_enough(settings, monkeypatch):
    monkeypatch.setattr(memory, "resident", lambda: 100 << 20)
    with pytest.raises(InputError, match=r"needs about \d+ MiB of memory; --memory allows 101 MiB") as caught:
        collect(Workspace(replace(settings, memory=101 << 20), SilentWatcher()))
    enough = int(caught.value.hint.split("--memory ")[1].split("M")[0]) << 20
    watcher = Heard()
    collect(Workspace(replace(settings, memory=enough), watcher))
    assert watcher.words


def test_calibration_keeps_a_limit_under_which_it_fails_otherwise(tiny_bert_dir, tiny_glue_dir, tmp_path):
    data = tmp_path / "sentences.txt"
    data.write_text("\n".join(made_sentences(1300, seed=5)) + "\n")
    arguments = ["calibrate", str(tiny_bert_dir), "--task", "sst2", "--calib-data", str(data)]
    arguments += [
        "--data",
        str(tiny_glue_dir),
        "--batch",
        "1024",
        "--seq-len",
        "64",
        "-n",
        "1200",
        "--threads",
        "1",
        "-m",
        "minmax",
    ]

    def calibrated(name: str, limit: int, *more: str) -> subprocess.CompletedProcess[str]:
        given = [*arguments, "--out", str(tmp_path / name), *more]
        code = CHILD.format(limit=limit, arguments=given)
        own = os.environ | {"QUANTKIT_CACHE": str(tmp_path / f"{name}-cache")}
        return subprocess.run([sys.executable, "-c", code], env=own, capture_output=True, text=True, timeout=300)

    refused = calibrated("whole", LIMIT)
    assert refused.returncode == 2
    assert "collect activations" in refused.stderr
    limited = calibrated("limited", LIMIT, "--memory", str(LIMIT - (60 << 20)))
    assert limited.returncode == 0, limited.stderr
    assert "stretches" in limited.stderr
    free = calibrated("free", 16 << 30)
    assert free.returncode == 0, free.stderr
    tables = [json.loads((tmp_path / name / "minmax.json").read_text()) for name in ("limited", "free")]
    assert tables[0] == tables[1]
    assert (tmp_path / "limited" / "minmax.cache").read_bytes() == (tmp_path / "free" / "minmax.cache").read_bytes()


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_moments_are_the_same_in_several_passes(settings, tight, monkeypatch, tmp_path, backend):
    pytest.importorskip(backend)
    workspace = Workspace(replace(settings, backend=backend, memory=4 << 30), SilentWatcher())
    names, batches = observed_tensors(workspace.network.index), batches_of(workspace)
    whole = collect_moments(workspace, batches, names)
    plan_passes = moments.plan_passes

    def one_each(*given):
        return plan_passes(*given)[0], [[name] for name in names]

    monkeypatch.setattr(moments, "plan_passes", one_each)
    found = moments.collect_moments_within(workspace, batches, names, tmp_path)
    assert list(found) == names
    assert len(list(tmp_path.iterdir())) == len(names)
    for name in names:
        mine, theirs = whole[name], found[name]
        assert mine.rows == theirs.rows
        for part in ("low", "high", "mean", "gram", "sample"):
            assert np.array_equal(getattr(mine, part), getattr(theirs, part)), (name, part)


def test_moments_take_as_few_passes_as_fit(settings, monkeypatch):
    workspace = Workspace(replace(settings, memory=1 << 40), SilentWatcher())
    names, batches = observed_tensors(workspace.network.index), batches_of(workspace)
    assert len(moments.plan_passes(workspace, batches, names)[1]) == 1
    largest = 64 * 64
    allowed = largest * (moments.ACCUMULATED + moments.REFINED) + 1000

    def plan_pass(_workspace, _batches, _names, kept):
        if kept > allowed:
            raise InputError("too small")
        return stretches.Pass((), 1)

    monkeypatch.setattr(moments, "plan_pass", plan_pass)
    _, groups = moments.plan_passes(workspace, batches, names)
    assert [name for group in groups for name in group] == names
    assert 1 < len(groups) < len(names)
    allowed = largest
    with pytest.raises(InputError, match="too small"):
        moments.plan_passes(workspace, batches, names)

"""Progress: bars with the remaining time on a terminal, a line a stage in a log, nothing when asked for nothing."""

from __future__ import annotations

import io
import os
import re

import pytest
from report_helpers import comparison
from rich.console import Console

from quantkit.report.matrix import show_comparison
from quantkit.report.terminal import TerminalWatcher


def terminal(width=80):
    return Console(file=io.StringIO(), force_terminal=True, width=width, highlight=False, markup=False)


def plain(console):
    """What was written, without colours and cursor movements, frame by frame."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())


def test_a_terminal_shows_how_far_and_how_much_longer():
    console = terminal()
    watcher = TerminalWatcher(console)
    with watcher.stage("collect activations") as progress:
        progress(3, 10)
        watcher._bars.refresh()
    lines = [line for line in re.split(r"[\r\n]", plain(console)) if "3/10" in line]
    assert lines and "collect activations" in lines[0]
    assert re.search(r"\d:\d\d:\d\d left +(--:--|\d+:\d\d)", lines[0])
    assert max(map(len, lines)) <= 80


def test_a_stage_within_a_stage_is_a_second_bar():
    console = terminal()
    watcher = TerminalWatcher(console)
    with watcher.stage("all cells") as outer:
        outer(1, 4)
        with watcher.stage("evaluate int8") as inner:
            inner(2, 50)
            watcher._bars.refresh()
        assert [task.description for task in watcher._bars.tasks] == ["all cells"]
    assert watcher._bars is None
    assert re.search(r"all cells[^\n]*1/4[^\n]*\n[^\n]*evaluate int8[^\n]*2/50", plain(console).replace("\r", ""))
    with pytest.raises(ValueError), watcher.stage("one that fails"):
        raise ValueError
    assert watcher._bars is None


def test_a_log_has_one_line_a_stage():
    console = Console(file=io.StringIO(), width=80)
    watcher = TerminalWatcher(console)
    with watcher.stage("time engines") as progress:
        for done in range(30):
            progress(done + 1, 30)
    assert console.file.getvalue() == "time engines ...\n"


@pytest.mark.parametrize("flag", ["--quiet", "--json"])
def test_quiet_and_json_show_no_progress_even_on_a_terminal(cli, tiny_bert_dir, tiny_glue_dir, monkeypatch, flag):
    monkeypatch.setitem(os.environ, "FORCE_COLOR", "1")
    monkeypatch.setitem(os.environ, "TTY_COMPATIBLE", "1")
    common = [tiny_bert_dir, "--task", "sst2", "--data", tiny_glue_dir, "--batch", 8, "--seq-len", 32, "--limit", 8]
    code, out, err = cli("eval", *common, "--precision", "fp32", flag)
    assert (code, err) == (0, "")
    assert "\x1b[" not in out or flag == "--quiet"


def test_a_matrix_of_many_tasks_fits_80_columns(capsys):
    tasks = ["sst2", "cola", "mrpc", "stsb", "rotten_tomatoes", "qqp", "mnli"]
    console = Console(width=80, file=io.StringIO(), highlight=False, markup=False)
    show_comparison(comparison(tasks), console)
    lines = console.file.getvalue().splitlines()
    assert max(len(line) for line in lines if not line.startswith("[1]")) <= 80
    text = "\n".join(lines)
    assert text.count("-1.23 ±1.01 12.35x") == 6 or text.count("-1.23 ±1.01 12.34x") == 6
    assert text.count("0.8922 ±0.0105") == 7
    assert "failed [1]" in text and "[1] no [brackets] are lost" in text
    for task in tasks:
        assert task in text

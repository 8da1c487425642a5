"""Progress on a terminal: stages inside stages, and one after another."""

from __future__ import annotations

import io

from rich.console import Console

from quantkit.report.terminal import TerminalWatcher


def watcher(text: io.StringIO) -> TerminalWatcher:
    made = TerminalWatcher()
    made._console = Console(file=text, force_terminal=True, width=80, highlight=False, markup=False)
    return made


def test_a_stage_inside_another_draws_its_bar_below():
    text = io.StringIO()
    shown = watcher(text)
    with shown.stage("outer stage") as outer:
        outer(1, 2)
        with shown.stage("inner stage") as inner:
            inner(1, 4)
            shown._bars.refresh()
        assert [task.description for task in shown._bars.tasks] == ["outer stage"]
    with shown.stage("next stage") as after:
        after(1, 1)
        assert [task.description for task in shown._bars.tasks] == ["next stage"]
    assert shown._bars is None
    for title in ("outer stage", "inner stage", "next stage"):
        assert title in text.getvalue()


def test_an_error_in_a_stage_leaves_the_next_one_a_bar_of_its_own():
    shown = watcher(io.StringIO())
    for _ in range(2):
        try:
            with shown.stage("outer"), shown.stage("inner"):
                raise RuntimeError
        except RuntimeError:
            assert shown._bars is None

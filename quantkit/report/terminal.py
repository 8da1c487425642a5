"""What the terminal shows: progress bars while a run goes on, tables when it is done."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from quantkit.types import Progress as ProgressCallback

COLUMNS = (
    TextColumn("{task.description:<28}"),
    BarColumn(20),
    MofNCompleteColumn(),
    TimeElapsedColumn(),
    TextColumn("left"),
    TimeRemainingColumn(compact=True),
)
"""Of a progress bar: what, how far, for how long, how much longer; 80 columns."""


class TerminalWatcher:
    """Draws one bar a stage, with the remaining time, on standard error; a line a stage where that is no terminal.

    A stage within a stage is a bar below the other's. A stage that never says how much there is has no bar, only the
    time that it has taken.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False, markup=False)
        self._bars: Progress | None = None

    @contextmanager
    def stage(self, title: str) -> Iterator[ProgressCallback]:
        """A bar that lives as long as the block."""
        if not self._console.is_terminal:
            # A log wants one line a stage, not the frames of a bar.
            self.say(f"{title} ...")
            yield lambda done, total: None
        elif self._bars is not None:
            with self._bar(self._bars, title) as progress:
                yield progress
        else:
            with Progress(*COLUMNS, console=self._console, transient=True) as self._bars:
                try:
                    with self._bar(self._bars, title) as progress:
                        yield progress
                finally:
                    self._bars = None

    @contextmanager
    def _bar(self, bars: Progress, title: str) -> Iterator[ProgressCallback]:
        """One bar among those that are shown, gone when the block ends."""
        task = bars.add_task(title, total=None)
        try:
            yield lambda done, total: bars.update(task, completed=done, total=total)
        finally:
            bars.remove_task(task)

    def say(self, message: str) -> None:
        """One line."""
        self._console.print(message)


class SilentWatcher:
    """The library's default: nothing is shown."""

    @contextmanager
    def stage(self, title: str) -> Iterator[ProgressCallback]:
        """A stage nobody watches."""
        yield lambda done, total: None

    def say(self, message: str) -> None:
        """Says nothing."""


def record_table(record: Mapping[str, Any]) -> Table:
    """The engines of a record: compute, metrics with standard errors, latency, speed-up; fits 80 columns."""
    names = list(dict.fromkeys(name for row in record["engines"] for name in row["metrics"]))
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("engine")
    table.add_column("computes", overflow="fold")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for title in ("ms", "p99", "/s", "speed"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in record["engines"]:
        if row["status"] != "ok":
            table.add_row(row["precision"], f"failed: {row.get('reason', '')}")
            continue
        scores = [metric_text(row["metrics"].get(name)) for name in names]
        table.add_row(row["precision"], row["compute"], *scores, *timing_text(row))
    return table


def show_record(record: Mapping[str, Any], *, remarks: bool = True) -> None:
    """Prints a record on standard output: task, calibration, engines, verdict; the engines alone without remarks."""
    console = Console(highlight=False, markup=False)
    if not remarks:
        console.print(record_table(record))
        return
    task, calibration = record["task"], record["calibration"]
    console.print(f"{record['model']['name']} on {task['name']} ({task['split']}, {task['examples']} rows)")
    if calibration:
        how = "reused" if calibration["reused"] else f"{calibration['seconds']:.1f} s"
        samples = f"{calibration['samples']} sentences, " if calibration["samples"] else ""
        ranges = f"{calibration['method']} ranges of {calibration['tensors']} tensors"
        console.print(f"calibration: {ranges} ({samples}{how}), {calibration['table']}", soft_wrap=True)
        refinement = calibration.get("refinement") or {}
        if refinement.get("steps"):
            took = "reused" if refinement["reused"] else f"{refinement['seconds']:.1f} s"
            console.print(f"refinement: {', '.join(refinement['steps'])} ({took})")
    console.print(record_table(record))
    for line in record.get("verdict", ()):
        console.print(line)


def show_calibration(summary: Mapping[str, Any]) -> None:
    """Prints what `quantkit calibrate` wrote."""
    console = Console(highlight=False, markup=False)
    if "from" in summary:
        how = f"from {len(summary['from'])} files, merged" if len(summary["from"]) > 1 else "not collected again"
    else:
        how = "from the cache" if summary["reused"] else f"collected in {summary['seconds']:.1f} s"
    samples = f"{'unknown number of' if summary['samples'] is None else summary['samples']} sentences"
    console.print(f"{samples}, {how}; histograms in {summary['histograms']}", soft_wrap=True)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("method", "tensors", "ms"):
        table.add_column(title, justify="left" if title == "method" else "right")
    table.add_column("table", overflow="fold")
    for row in summary["tables"]:
        table.add_row(row["method"], str(row["tensors"]), f"{1000 * row['seconds']:.0f}", row["table"])
    console.print(table)


def show_study(result: Mapping[str, Any]) -> None:
    """Prints how far ranges lie from those of the whole sample, and from those of other orders; fits 80 columns."""
    console = Console(highlight=False, markup=False)
    whole = result["provenance"]["samples"]
    console.print(f"ranges of {result['tensors']} tensors against those of all {whole} sentences, in %")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("method", "sentences", "median", f"{result['quantile']:g}th", "worst"):
        table.add_column(title, justify="left" if title == "method" else "right", no_wrap=True)
    table.add_column("worst tensor", overflow="fold")
    for row in result["methods"]:
        parts = [(str(part["samples"]), part) for part in row["by_samples"][:-1]]
        parts += [(name, row[key]) for key, name in (("by_order", "order"), ("by_batch", "batch")) if row[key]]
        for i, (name, part) in enumerate(parts):
            shares = (percent_text(part[key]) for key in ("median", "p95", "worst"))
            table.add_row("" if i else row["method"], name, *shares, part["tensor"], end_section=i == len(parts) - 1)
    console.print(table)
    for line in result["verdict"]:
        console.print(line)


def percent_text(share: float) -> str:
    """A share in per cent with one digit; 0 is only what is exactly 0."""
    return "0" if share == 0 else "<0.1" if share < 0.0005 else f"{100 * share:.1f}"


def metric_text(score: Mapping[str, Any] | None) -> str:
    """A metric with its standard error, e.g. 0.8922 ±0.0105."""
    if score is None:
        return "-"
    error = score.get("stderr")
    return f"{score['value']:.4f}" + (f" ±{error:.4f}" if error is not None else "")


def timing_text(row: Mapping[str, Any]) -> Sequence[str]:
    """Median, p99, throughput and speed-up of one row; dashes where nothing was timed."""
    latency = row.get("latency_ms") or {}
    if not latency:
        return ("-", "-", "-", "-")
    speedup = row.get("speedup")
    return (
        f"{latency['median']:.2f}",
        f"{latency['p99']:.2f}",
        f"{row['throughput_per_s']:.0f}",
        f"{speedup:.2f}x" if speedup else "-",
    )

"""A comparison in the terminal: a table a backend, methods down, tasks across, in 80 columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from quantkit.report.terminal import metric_text

TASKS_ABREAST = 3
"""Columns of tasks that fit beside the methods in 80 columns."""

Cell = Mapping[str, Any]


def show_comparison(record: Mapping[str, Any], console: Console | None = None) -> None:
    """Prints the matrices, the reasons of failed cells, and the verdict."""
    console = console or Console(highlight=False, markup=False)
    metrics = {task: source["metric"] for task, source in record["sources"].items()}
    reasons: dict[str, int] = {}
    for backend in record["backends"]:
        cells = {(c["task"], c["method"]): c for c in record["cells"] if c["backend"] == backend}
        for first in range(0, len(record["tasks"]), TASKS_ABREAST):
            tasks = record["tasks"][first : first + TASKS_ABREAST]
            console.print(matrix(backend, tasks, record["methods"], cells, metrics, reasons))
            console.print()
    for reason, number in reasons.items():
        console.print(f"[{number}] {reason}", soft_wrap=True)
    console.print("INT8's metric minus FP32's in points ± its standard error, and INT8's speed against FP32.")
    if record.get("kept"):
        console.print(f"{record['kept']} of {len(record['cells'])} cells were finished already.")
    for line in record["verdict"]:
        console.print(line)


def matrix(
    backend: str,
    tasks: Sequence[str],
    methods: Sequence[str],
    cells: Mapping[tuple[str, str], Cell],
    metrics: Mapping[str, str],
    reasons: dict[str, int],
) -> Table:
    """One table; `reasons` collects why cells failed, each with the number that stands in the cell."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(backend)
    for task in tasks:
        metric = metrics.get(task, "")
        gap = " " if len(task) + len(metric) < 20 else "\n"
        table.add_column(f"{task}{gap}{metric}".strip(), justify="right")
    for method in ("", *methods):
        texts = [cell_text(cells.get((task, method)), metrics.get(task, ""), reasons) for task in tasks]
        table.add_row(method or "fp32", *texts)
    return table


def cell_text(cell: Cell | None, metric: str, reasons: dict[str, int]) -> str:
    """What stands in a cell."""
    if cell is None:
        return "-"
    if cell["status"] != "ok":
        return f"failed [{reasons.setdefault(cell.get('reason', ''), len(reasons) + 1)}]"
    if not cell["method"]:
        return metric_text(cell["metrics"].get(metric))
    speed = f"{cell['speedup']:.2f}x" if cell.get("speedup") else "-"
    return f"{change_text(cell.get('change'))} {speed:>6}"


def change_text(change: Mapping[str, Any] | None) -> str:
    """A change in points with its standard error, e.g. -0.34 ±0.41."""
    if change is None:
        return "-"
    error = change.get("stderr")
    return f"{100 * change['value']:+.2f}" + (f" ±{100 * error:.2f}" if error is not None else "")

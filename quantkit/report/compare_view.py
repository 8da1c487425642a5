"""The record of a comparison as the values of its page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from quantkit.report.matrix import change_text
from quantkit.report.record import Record
from quantkit.report.repeat import repeat
from quantkit.report.terminal import metric_text

SECTIONS = [
    ("verdict", "Verdict"),
    ("matrix", "Matrix"),
    ("charts", "Charts"),
    ("audit", "Cells"),
    ("repeat", "Repeat"),
]
WORST = 2.0
"""Points of loss that have the strongest colour."""

Cell = Mapping[str, Any]


def page(record: Record) -> dict[str, Any]:
    """Everything the template of a comparison needs."""
    data = record.data
    tasks, backends, methods = data["tasks"], data["backends"], data["methods"]
    cells = {(c["backend"], c["task"], c["method"]): c for c in data["cells"]}
    ok = [cell for cell in data["cells"] if cell["status"] == "ok" and cell["method"]]
    model = data["context"]["settings"].get("model", "a model")
    machine = data["context"]["machine"]["cpu"]
    return {
        "title": f"{model}: quantkit comparison",
        "heading": f"{model}: {counted(methods, 'method')}, {counted(tasks, 'task')}, {counted(backends, 'backend')}",
        "subtitle": f"{machine}, {data['context']['time']}",
        "sections": SECTIONS,
        "verdict": list(data.get("verdict", ())),
        "kept": data.get("kept") or 0,
        "tasks": [(task, data["sources"].get(task, {}).get("metric", "")) for task in tasks],
        "matrices": [
            {
                "backend": backend,
                "rows": [
                    {"method": method or "fp32", "cells": [drawn(cells.get((backend, task, method))) for task in tasks]}
                    for method in ("", *methods)
                ],
            }
            for backend in backends
        ],
        "list": [listed(cell) for cell in data["cells"]],
        "repeat": repeat(with_sources(data)),
        "data": {"methods": methods, "tasks": tasks, "backends": backends, "cells": [point(cell) for cell in ok]},
    }


def drawn(cell: Cell | None) -> dict[str, str]:
    """A cell of the matrix: its text, and the class or colour that it has."""
    if cell is None:
        return {"kind": "base", "text": "not computed", "detail": "", "style": ""}
    if cell["status"] != "ok":
        return {"kind": "failed", "text": "failed", "detail": str(cell.get("reason", "")), "style": ""}
    if not cell["method"]:
        first = next(iter(cell["metrics"].values()), None)
        return {"kind": "base", "text": metric_text(first), "detail": "", "style": ""}
    change = cell.get("change")
    detail = f"{cell['speedup']:.2f}x" if cell.get("speedup") else "not timed"
    style = f"background: {shade(100 * change['value'])}" if change else ""
    return {"kind": "cell", "text": change_text(change), "detail": detail, "style": style}


def shade(points: float) -> str:
    """Orange for a loss, blue for a gain, paler the smaller, grey for nothing: told apart by every colour vision."""
    if points == 0:
        return "rgb(238, 240, 243)"
    share = min(abs(points) / WORST, 1.0)
    red, green, blue = (213, 94, 0) if points < 0 else (0, 114, 178)
    mixed = (round(255 - (255 - part) * (0.06 + 0.62 * share)) for part in (red, green, blue))
    return "rgb({}, {}, {})".format(*mixed)


def listed(cell: Cell) -> dict[str, Any]:
    """A row of the table of all cells."""
    failed = cell["status"] != "ok"
    int8, floats = cell.get("int8_ops"), cell.get("float_ops") or 0
    products = "" if int8 is None else f"{int8} of {int8 + floats}"
    latency = cell.get("latency_ms") or {}
    return {
        "where": (cell["task"], cell["backend"], cell["method"] or "fp32"),
        "failed": failed,
        "reason": str(cell.get("reason", "")),
        "compute": cell.get("compute", ""),
        "products": products,
        "metrics": ", ".join(f"{name} {metric_text(score)}" for name, score in (cell.get("metrics") or {}).items()),
        "change": change_text(cell.get("change")) if cell["method"] else "",
        "ms": f"{latency['median']:.2f}" if "median" in latency else "",
        "speed": f"{cell['speedup']:.2f}x" if cell.get("speedup") else "",
        "notes": " ".join(cell.get("notes") or ()),
    }


def point(cell: Cell) -> dict[str, Any]:
    """What the charts draw of one cell."""
    change = cell.get("change") or {}
    latency = cell.get("latency_ms") or {}
    return {
        **{name: cell[name] for name in ("task", "backend", "method")},
        "change": change.get("value"),
        "stderr": change.get("stderr"),
        "speedup": cell.get("speedup"),
        "ms": latency.get("median"),
    }


def with_sources(data: Mapping[str, Any]) -> dict[str, Any]:
    """The record with its sources in the place where a run's record has one model and task."""
    sources = data["sources"]
    rows = {task: {name: value for name, value in one.items() if name != "model"} for task, one in sources.items()}
    return {**data, "model": {task: one.get("model") for task, one in sources.items()}, "task": rows}


def counted(things: Sequence[Any], name: str) -> str:
    """Their number with their name: "1 task", "2 tasks"."""
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"

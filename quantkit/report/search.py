"""What the terminal shows of a search: the parts of a plan, and the plans that were considered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from quantkit.report.terminal import metric_text


def sensitivity_table(record: Mapping[str, Any]) -> Table:
    """One row a part: what INT8 costs there alone, and what it saves; fits 80 columns."""
    found = record["sensitivity"]
    metric = record["rows"]["metric"]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("in INT8 alone", no_wrap=True)
    for title in ("dB", "agree", metric, "drop", "saves ms", "rank"):
        table.add_column(title, justify="right", no_wrap=True)
    for unit in found["units"]:
        table.add_row(unit["name"], *judged_texts(unit["alone"]), f"{unit['saved_ms']:.2f}", str(unit["rank"]))
    table.add_row("all of them", *judged_texts(found["whole"]), "", "")
    return table


def judged_texts(judged: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """SQNR, agreement, metric and drop of a judged plan."""
    if judged["failed"]:
        return ("failed", "", "", "")
    score = {"value": judged["score"], "stderr": judged["stderr"]}
    return (
        f"{judged['sqnr_db']:.1f}",
        f"{100 * judged['agreement']:.1f}%",
        metric_text(score),
        f"{judged['drop']:.2f} ±{judged['drop_stderr']:.2f}",
    )


def show_sensitivity(record: Mapping[str, Any]) -> None:
    """Prints a sensitivity record."""
    console = Console(highlight=False, markup=False)
    rows, found = record["rows"], record["sensitivity"]
    fp32 = metric_text(rows["fp32"])
    console.print(f"{record['model']['name']} on {record['task']['name']}, {rows['ranking_rows']} train rows held out")
    console.print(
        f"FP32 {rows['metric']} {fp32} ({rows['rows']} rows); {record['plan']['mode']}: {found['whole_ms']:.2f} ms"
    )
    console.print(sensitivity_table(record))
    for line in record["verdict"]:
        console.print(line)


def candidate_table(search: Mapping[str, Any]) -> Table:
    """The plans that were considered; fits 80 columns."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("plan", overflow="fold")
    for title in ("speed", "dB", "agree", search["rows"]["metric"], "drop"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in search["candidates"]:
        kept = len(row["kept_in_float"])
        name = row["plan"]["mode"] + (f" less {kept} in float" if kept else "")
        mark = " *" if row == search["chosen"] else ""
        texts = judged_texts(row["judged"]) if row["judged"] else ("not", "judged", "", "")
        table.add_row(name + mark, f"{row['speedup']:.2f} ±{row['speedup_stderr']:.2f}", *texts)
    return table


def show_search(record: Mapping[str, Any]) -> None:
    """Prints what a search considered; the chosen plan has a star."""
    console = Console(highlight=False, markup=False)
    search = record["search"]
    rows = search["rows"]
    goal = " ".join(f"--{name.replace('_', '-')} {value:g}" for name, value in search["goal"].items())
    console.print(f"{goal}, decided on {rows['rows']} train rows held out; FP32 {metric_text(rows['fp32'])}")
    if search["sensitivity"]:
        console.print(sensitivity_table({"sensitivity": search["sensitivity"], "rows": rows}))
        console.print()
    console.print(candidate_table(search))
    if not record["engines"]:
        for line in record["verdict"]:
            console.print(line)

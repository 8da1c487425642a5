"""What a search found, as far as a report shows it: sensitivity part by part, and the plans that were tried."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MOST = 60
"""Parts that are drawn and listed; a chart of more is no longer read."""

JSON = Mapping[str, Any]


def sensitivity_view(record: JSON | None) -> dict[str, Any] | None:
    """The parts of a sensitivity record by rank; None when there are none.

    A record is read as

        {"units": [{"name", "layer", "group", "rank", "group_ms",
                    "alone": {"drop", "drop_stderr", "sqnr_db", "failed"}}, ...]}

    or as an object with such a record under "sensitivity". `alone` is what the model is worth with this part alone in
    INT8: `drop` and `drop_stderr` in points of the task's metric, `sqnr_db` of the logits, `failed` a reason or empty.
    `group_ms` are the milliseconds a batch that INT8 saves there. Rank 1 costs most for what it saves. Other keys are
    ignored.
    """
    found = record or {}
    if isinstance(found.get("sensitivity"), Mapping):
        found = found["sensitivity"]
    units = [
        unit
        for unit in found.get("units") or ()
        if isinstance(unit, Mapping) and isinstance(unit.get("alone"), Mapping)
    ]
    if not units:
        return None
    units.sort(key=lambda unit: unit.get("rank") or len(units))
    left = f"The first {MOST} of {len(units)} parts are shown." if len(units) > MOST else ""
    return {"left": left, "parts": [part_of(unit) for unit in units[:MOST]]}


def part_of(unit: JSON) -> dict[str, Any]:
    """One part: numbers for the chart, text for the table."""
    alone, failed = unit["alone"], str(unit["alone"].get("failed") or "")
    drop, stderr = number(alone.get("drop")), number(alone.get("drop_stderr"))
    ratio, saved = number(alone.get("sqnr_db")), number(unit.get("group_ms"))
    return {
        "name": str(unit.get("name", "")),
        "rank": unit.get("rank"),
        "layer": number(unit.get("layer")),
        "group": str(unit.get("group") or "part"),
        "db": None if failed else ratio,
        "drop": None if failed else drop,
        "stderr": stderr,
        "cost": failed or ("–" if drop is None else f"{drop:.2f}" + (f" ±{stderr:.2f}" if stderr is not None else "")),
        "sqnr": "–" if ratio is None or failed else f"{ratio:.1f}",
        "saved": "–" if saved is None else f"{saved:.3f}",
    }


def search_view(search: JSON | None) -> dict[str, Any] | None:
    """The goal of a search, the plans that it tried, and why parts stayed in float; None when there are none."""
    found = search or {}
    chosen, goal, rows = found.get("chosen"), found.get("goal") or {}, found.get("rows") or {}
    plans = [
        candidate_text(one, goal, one == chosen) for one in found.get("candidates") or () if isinstance(one, Mapping)
    ]
    if not plans:
        return None
    where = (
        f" on {rows['rows']:,} train rows" if isinstance(rows, Mapping) and isinstance(rows.get("rows"), int) else ""
    )
    return {
        "goal": goal_text(goal, where),
        "plans": plans,
        "reasons": [(str(part), str(why)) for part, why in dict(found.get("reasons") or {}).items()],
    }


def goal_text(goal: JSON, where: str) -> str:
    """What was asked for, a sentence each."""
    most, least = number(goal.get("max_drop")), number(goal.get("min_speedup"))
    said = []
    if most is not None:
        said.append(f"Wanted: the fastest plan that loses at most {most:g} points{where}, one standard error included.")
    if least is not None:
        said.append(f"Wanted: the least noise{where} at {least:g} times FP32's speed or more.")
    return " ".join(said)


def candidate_text(candidate: JSON, goal: JSON, chosen: bool) -> dict[str, Any]:
    """One plan that was tried, and what became of it."""
    plan, judged = candidate.get("plan") or {}, candidate.get("judged") or {}
    kept, speed, drop = (
        candidate.get("kept_in_float") or [],
        number(candidate.get("speedup")),
        number(judged.get("drop")),
    )
    stderr, ratio, failed = number(judged.get("drop_stderr")), number(judged.get("sqnr_db")), judged.get("failed")
    cost = "–" if drop is None else f"{drop:.2f}" + (f" ±{stderr:.2f}" if stderr is not None else "")
    most, least = number(goal.get("max_drop")), number(goal.get("min_speedup"))
    if chosen:
        fate = "chosen"
    elif failed:
        fate = str(failed)
    elif speed is not None and least is not None and speed < least:
        fate = "too slow"
    elif drop is None:
        fate = "not judged"
    elif most is not None and drop + (stderr or 0) > most:
        fate = f"costs too much: {drop + (stderr or 0):.2f} with its error"
    else:
        fate = "would do"
    return {
        "plan": str(plan.get("mode", "")) if isinstance(plan, Mapping) else str(plan),
        "kept": ", ".join(map(str, kept)) or "nothing",
        "speed": "–" if speed is None else f"{speed:.2f}x",
        "cost": cost,
        "sqnr": "–" if ratio is None else f"{ratio:.1f}",
        "fate": fate,
        "chosen": chosen,
    }


def number(value: Any) -> float | None:
    """A JSON number, or None for anything else."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None

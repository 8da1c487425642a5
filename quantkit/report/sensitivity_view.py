"""Sensitivity by layer, as far as a report needs to know it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MOST = 60
"""Bars that are drawn; a chart of more is no longer read."""


def sensitivity_view(record: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The bars of a sensitivity record, most sensitive first; None when there is no such record.

    A record is read as

        {"quantity": text, "caption": text, "rows": [{"name": text, "value": number, "stderr": number or null}, ...]}

    where a larger `value` means that quantizing `name` alone costs more, in the unit that `quantity` names. Other keys
    are ignored; a row without a number is left out.
    """
    if record is None or not isinstance(record.get("rows"), list):
        return None
    rows = [
        {"name": str(row["name"]), "value": float(row["value"]), "stderr": row.get("stderr")}
        for row in record["rows"]
        if isinstance(row, Mapping) and "name" in row and isinstance(row.get("value"), int | float)
    ]
    rows.sort(key=lambda row: -row["value"])
    left = f" The {MOST} most sensitive of {len(rows)} are drawn." if len(rows) > MOST else ""
    caption = str(record.get("caption") or "Cost of quantizing one part alone, the rest in float.")
    return {"quantity": str(record.get("quantity") or "cost"), "caption": caption + left, "rows": rows[:MOST]}

"""The record of a run as the values of its page: numbers become text, rows become what the charts draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from quantkit.calibrate import CALIBRATORS
from quantkit.collect.histogram import NUM_BINS, Histogram
from quantkit.report.files import Beside
from quantkit.report.record import Record
from quantkit.report.repeat import repeat, shown
from quantkit.report.sensitivity_view import search_view, sensitivity_view
from quantkit.report.terminal import metric_text

Row = Mapping[str, Any]

DRAWN_BINS = 120_000
"""Bins of all histograms together that a page may hold, about half a megabyte."""
MOST_NAMED = 24
"""Products in float of an INT8 engine that are named; every one of an encoder's last layers and of its attention."""
REASONS = {
    "entropy": "least KL divergence",
    "legacy": "TensorRT's quantile and regression",
    "minmax": "largest magnitude seen",
    "mse": "least squared error",
    "percentile": "the share of values that is kept",
}
"""Why a method chose a range, where the table gives no reason of its own."""


def page(record: Record, beside: Beside) -> dict[str, Any]:
    """Everything the template of a run needs."""
    data, rows = record.data, record.engines
    metrics = list(dict.fromkeys(name for row in rows for name in row["metrics"]))
    search = data.get("search") or {}
    sensitivity = sensitivity_view(beside.sensitivity) or sensitivity_view(search)
    plans = search_view(search)
    sections = [("verdict", "Verdict")]
    sections += [("engines", "Engines")] if rows else []
    sections += [("tensors", "Tensors")] if beside.tensors else []
    sections += [("sensitivity", "Sensitivity")] if sensitivity else []
    sections += [("search", "Plans")] if plans else []
    task, model, context = data["task"], data["model"], data["context"]
    alone, decided = "rows" in data and bool(sensitivity), data.get("rows") or {}
    return {
        "title": f"{model['name']} on {task['name']}: quantkit report",
        "heading": f"{model['name']} on {task['name']}",
        "subtitle": subtitle(
            {"examples": decided.get("rows", "?"), "split": decided.get("split", "?")} | task, context
        ),
        "sections": [*sections, *([("audit", "Audit")] if rows else []), ("repeat", "Repeat")],
        "tiles": tiles(rows, metrics) if rows or not alone else sensitivity_tiles(data),
        "verdict": list(data.get("verdict", ())),
        "notes": list(beside.notes) if rows or not alone else [],
        "metrics": metrics,
        "engines": [engine_text(row, metrics) for row in rows],
        "compared": [compared_text(row) for row in rows if row.get("against_fp32")],
        "has_tensors": bool(beside.tensors),
        "has_histograms": bool(beside.histograms),
        "sensitivity": sensitivity,
        "search": plans,
        "audits": [audit_of(row) for row in rows],
        "repeat": repeat(data),
        "data": {
            "metrics": metrics,
            "engines": engine_points(rows, metrics),
            "methods": methods_of(beside.tensors),
            "reasons": REASONS,
            "tensors": with_bins(beside),
            "sensitivity": sensitivity["parts"] if sensitivity else [],
        },
    }


def subtitle(task: Row, context: Row) -> str:
    """Rows, shape, machine and time in one line."""
    rows = f"{task.get('examples', '?')} rows of {task.get('split', '?')}"
    shape = f", batches of {task['batch']} x {task['seq_len']} tokens" if "batch" in task and "seq_len" in task else ""
    return f"{rows}{shape}; {context['machine']['cpu']}, {context['time']}"


def find(rows: Sequence[Row], precision: str) -> Row | None:
    """The first row of a precision ("int8" is also int8+fp16); one that works before one that failed."""
    found = [row for row in rows if row["precision"].partition("+")[0] == precision]
    return next((row for row in found if row["status"] == "ok"), found[0] if found else None)


def tiles(rows: Sequence[Row], metrics: Sequence[str]) -> list[dict[str, str]]:
    """What INT8 is, cost and won, in a few large figures."""
    int8, fp32 = find(rows, "int8"), find(rows, "fp32")
    if int8 is None:
        return [tile("INT8", "none", "This run had no INT8 engine.")]
    if int8["status"] != "ok":
        return [tile("INT8", "failed", str(int8.get("reason", "")), "bad"), *instead(rows, metrics)]
    found = [is_int8(int8)]
    if fp32 is None or fp32["status"] != "ok":
        return found
    if metrics and metrics[0] in int8["metrics"] and metrics[0] in fp32["metrics"]:
        found.append(cost(int8, fp32, metrics[0]))
    if int8.get("speedup"):
        own, other = int8["latency_ms"]["median"], fp32["latency_ms"]["median"]
        detail = f"{own:.1f} ms a batch instead of {other:.1f} (medians)"
        tone = "good" if int8["speedup"] > 1 else "bad"
        found.append(tile("speed against FP32", f"{int8['speedup']:.2f}x", detail, tone))
    if int8.get("size_bytes") and fp32.get("size_bytes"):
        share = int8["size_bytes"] / fp32["size_bytes"]
        detail = f"{int8['size_bytes'] / 1e6:.1f} MB instead of {fp32['size_bytes'] / 1e6:.1f}"
        found.append(tile("size of the model file", f"{100 * share:.0f} %", detail))
    return found


def sensitivity_tiles(data: Row) -> list[dict[str, str]]:
    """What a record of `quantkit sensitivity` says of the whole: FP32's metric, and INT8 everywhere."""
    rows, whole = data["rows"], data["sensitivity"]["whole"]
    found = [tile(f"FP32's {rows['metric']}", f"{rows['fp32']['value']:.4f}", f"{rows['rows']} train rows, held out")]
    lost = "" if whole.get("failed") else f"{whole['drop']:.2f} ±{whole['drop_stderr']:.2f} points lost"
    detail = whole.get("failed") or f"{lost}, SQNR of the logits {whole['sqnr_db']:.1f} dB"
    found.append(tile("every part in INT8", f"{data['speedup']:.2f}x", f"FP32's speed; {detail}"))
    return found


def instead(rows: Sequence[Row], metrics: Sequence[str]) -> list[dict[str, str]]:
    """The fastest engine that works, where INT8 does not."""
    working = [row for row in rows if row["status"] == "ok" and row.get("speedup")]
    if not working:
        return []
    best = max(working, key=lambda row: row["speedup"])
    scores = ", ".join(f"{name} {metric_text(best['metrics'][name])}" for name in metrics if name in best["metrics"])
    return [tile(f"fastest that works: {best['precision']}", f"{best['speedup']:.2f}x", scores)]


def is_int8(row: Row) -> dict[str, str]:
    """Whether the engine computes in INT8, as its compiled graph says."""
    products = row.get("int8_ops")
    floats = f", {row['float_ops']} in float" if row.get("float_ops") else ""
    if products:
        return tile("really INT8?", "yes", f"{products} matrix products run in INT8{floats}", "good")
    if products is None:
        return tile("really INT8?", "not known", f"The engine computes {row.get('compute') or 'what it does not say'}.")
    return tile("really INT8?", "no", f"no matrix product runs in INT8{floats}", "bad")


def cost(int8: Row, fp32: Row, metric: str) -> dict[str, str]:
    """What INT8 does to the main metric, and whether that can be told from chance."""
    change = 100 * (int8["metrics"][metric]["value"] - fp32["metrics"][metric]["value"])
    against = int8.get("against_fp32") or {}
    detail = f"{metric_text(int8['metrics'][metric])} instead of {metric_text(fp32['metrics'][metric])}"
    shown = None
    if against:
        shown = against["p_value"] < 0.05
        detail += f"; {'beyond chance' if shown else 'not told from chance'} (p = {against['p_value']:.2g})"
    better = change >= 0 if int8["metrics"][metric].get("higher_is_better", True) else change <= 0
    tone = "" if not shown else "good" if better else "bad"
    return tile(f"{metric} against FP32", f"{change:+.2f} points", detail, tone)


def tile(label: str, figure: str, detail: str, tone: str = "") -> dict[str, str]:
    """One of the large figures."""
    return {"label": label, "figure": figure, "detail": detail, "tone": tone}


def engine_text(row: Row, metrics: Sequence[str]) -> dict[str, Any]:
    """A row of the table of engines, as text."""
    if row["status"] != "ok":
        return {"label": row["precision"], "failed": True, "reason": str(row.get("reason", ""))}
    latency = row.get("latency_ms") or {}
    times = [f"{latency[name]:.2f}" if name in latency else "–" for name in ("median", "p90", "p99")]
    times.append(f"{row['throughput_per_s']:.0f}" if row.get("throughput_per_s") else "–")
    times.append(f"{row['speedup']:.2f}x" if row.get("speedup") else "–")
    times.append(f"{row['size_bytes'] / 1e6:.1f}" if row.get("size_bytes") else "–")
    scores = [metric_text(row["metrics"].get(name)) for name in metrics]
    return {"label": row["precision"], "failed": False, "compute": row["compute"], "scores": scores, "times": times}


def compared_text(row: Row) -> str:
    """The paired comparison with FP32 as a sentence."""
    c = row["against_fp32"]
    return (
        f"{row['precision']}: {c['metric']} {100 * c['difference']:+.2f} points against fp32, 95 % interval "
        f"{100 * c['low']:+.2f} to {100 * c['high']:+.2f}; the same answer on {100 * c['agreement']:.1f} % of "
        f"{c['rows']} rows ({c['test']}, p = {c['p_value']:.2g})."
    )


def engine_points(rows: Sequence[Row], metrics: Sequence[str]) -> list[dict[str, Any]]:
    """What the charts draw of every engine, with `front` where no other is both faster and better."""
    points = [
        {
            "label": row["precision"],
            "precision": row["precision"],
            "status": row["status"],
            "metrics": row["metrics"],
            "latency": row.get("latency_ms") or {},
            "speedup": row.get("speedup"),
        }
        for row in rows
    ]
    name = metrics[0] if metrics else ""
    placed = [p for p in points if p["status"] == "ok" and "median" in p["latency"] and name in p["metrics"]]
    for point in placed:
        point["front"] = not any(dominates(other, point, name) for other in placed)
    return points


def dominates(first: Row, second: Row, metric: str) -> bool:
    """Whether the first is at least as good in both and better in one."""
    sign = 1 if first["metrics"][metric].get("higher_is_better", True) else -1
    a = (-first["latency"]["median"], sign * first["metrics"][metric]["value"])
    b = (-second["latency"]["median"], sign * second["metrics"][metric]["value"])
    return a != b and a[0] >= b[0] and a[1] >= b[1]


def methods_of(tensors: Sequence[Row]) -> list[str]:
    """The methods that gave ranges, in the registry's order; those it does not know after them."""
    seen = dict.fromkeys(method for row in tensors for method in row.get("ranges", ()))
    return sorted(seen, key=lambda name: (name not in CALIBRATORS, name))


def with_bins(beside: Beside) -> list[dict[str, Any]]:
    """The rows of tensors.json with the drawn bins of their histograms."""
    drawn = sum("same_as" not in row for row in beside.tensors)
    factor = 4
    while drawn * NUM_BINS // factor > DRAWN_BINS and factor < 32:
        factor *= 2
    rows = []
    for row in beside.tensors:
        histogram = None if "same_as" in row else beside.histograms.get(row["name"])
        rows.append({**row, "bins": binned(histogram, factor)} if histogram is not None else row)
    return rows


def binned(histogram: Histogram, factor: int) -> dict[str, Any]:
    """Neighbouring bins added up for the drawing; empty ones at the end are left out."""
    counts = histogram.counts.reshape(-1, factor).sum(axis=1)
    filled = np.flatnonzero(counts)
    kept = counts[: int(filled[-1]) + 1] if filled.size else counts[:0]
    return {"width": histogram.bin_width * factor, "counts": kept.tolist()}


def audit_of(row: Row) -> dict[str, Any]:
    """What one engine computes: products by precision, the audit where there is one, and notes."""
    found: dict[str, Any] = {"label": row["precision"], "compute": row.get("compute", "")}
    audit = (row.get("details") or {}).get("audit") or {}
    gemms = audit.get("gemms") or {}
    if not gemms and (row.get("int8_ops") is not None or row.get("float_ops")):
        floats = "float" if row.get("int8_ops") else row.get("compute") or "float"
        gemms = {"int8": row.get("int8_ops") or 0, floats: row.get("float_ops") or 0}
    gemms = {name: int(count) for name, count in gemms.items() if count}
    found["bar"] = [{"tone": tone_of(name), "grow": count} for name, count in gemms.items()]
    found["bar_text"] = "matrix products: " + ", ".join(f"{count} in {name}" for name, count in gemms.items())
    failed = [f"failed: {row.get('reason', '')}"] if row["status"] != "ok" else []
    found["lines"] = list(dict.fromkeys([*failed, *audit.get("verdict", ()), *row.get("notes", ())]))
    shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in (audit.get("time_share") or {}).items())
    facts = {
        "backend": row.get("backend"),
        "model file": row.get("model_file"),
        "time by precision": shares,
        "layers, reformats": f"{audit['layers']}, {audit['reformats']}" if "layers" in audit else "",
        "fused attention": audit.get("fused_attention"),
        "kernels": ", ".join(f"{count} {kind}" for kind, count in (audit.get("kernel_counts") or {}).items()),
        "products in float": some(audit.get("float_products") or ()) if gemms.get("int8") else "",
        "scales not used": ", ".join(audit.get("scales_missing", ())[:20]),
    }
    facts |= {
        name.replace("_", " "): shown(value) for name, value in (row.get("details") or {}).items() if name != "audit"
    }
    found["facts"] = [(name, value) for name, value in facts.items() if value not in (None, "", [])]
    return found


def some(names: Sequence[Any]) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(map(str, names[:MOST_NAMED])) + more


def tone_of(precision: str) -> str:
    """Colour class of a precision in the bar of products."""
    return "int8" if precision == "int8" else "float" if precision in ("float", "f32", "fp32", "tf32") else "other"

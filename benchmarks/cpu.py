"""INT8 on a CPU beside its peers: one model, the same sentences, the same threads; accuracy and latency.

Engines: FP32 of OpenVINO and onnxruntime, OpenVINO's half precision, onnxruntime's static and dynamic quantization,
NNCF's quantization on OpenVINO, quantkit on OpenVINO. Accuracy on every task for which there is an adapter; latency at
three shapes, engines timed in turn on the same batches of one task.

    python benchmarks/cpu.py                      everything, about 15 minutes on two quiet cores
    python benchmarks/cpu.py --quick              everything once with few rows; no figures
    python benchmarks/cpu.py --parts accuracy --tasks sst2 cola
    python benchmarks/cpu.py --resume benchmarks/results/cpu-DATE.json

The result is written after every engine of every task; --resume does what is missing. The table is a Markdown file
beside it. NNCF and onnxruntime are not needed: what is missing is a row that says so (requirements-peers.txt).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from calibration_setup import Json, busy_seconds, context, table, wait_for_quiet, without_telemetry
from cpu_engines import ENGINES, Setup, main_metric, make

from quantkit.evaluate.accuracy import EvalResult, evaluate_engine
from quantkit.evaluate.latency import time_engines
from quantkit.evaluate.significance import compare
from quantkit.files import write_json, write_text

HERE = Path(__file__).resolve().parent
SHARED = HERE.parent.parent / "shared"
TASKS = {"sst2": 64, "cola": 64, "mrpc": 128, "stsb": 128, "rte": 128, "qnli": 128, "rotten_tomatoes": 64}
"""Task -> tokens a sentence or pair, at most."""
SHAPES = ((1, 32), (16, 64), (32, 128))
REFERENCE = "openvino fp32"
TARGETS = {"mean_drop": 0.2, "worst_drop": 0.8, "speedup": 3.0, "against_dynamic": 1.9}


def main() -> None:
    """Measures what was asked for and what is missing, and writes result and table."""
    arguments = parse()
    without_telemetry()
    path, result = load(arguments)
    settings = result["settings"]
    for name in settings["tasks"] if "accuracy" in arguments.parts else ():
        accuracy(path, result, name)
    if "latency" in arguments.parts:
        setup = setup_of(settings, settings["latency_task"])
        for shape in settings["shapes"]:
            latency(path, result, setup, shape, arguments.patience)
    save(path, result)
    print("\n".join(summary(result)))


def setup_of(settings: Json, task: str) -> Setup:
    """The packaged model with a task's adapter, its rows and the calibration sample."""
    from quantkit.data.demo import demo_model_dir
    from quantkit.pipeline.settings import Settings
    from quantkit.pipeline.workspace import Workspace
    from quantkit.report.terminal import SilentWatcher

    chosen = Settings(
        model=str(demo_model_dir()),
        task=task,
        data="" if task == "rotten_tomatoes" else str(SHARED / "glue"),
        adapter=str(SHARED / "adapters" / task),
        calib_samples=settings["samples"],
        batch=16,
        seq_len=TASKS[task],
        limit=settings["limit"],
        threads=settings["threads"],
    )
    return Setup(Workspace(chosen, SilentWatcher()))


def accuracy(path: Path, result: Json, task: str) -> None:
    """Every engine on every evaluation row of a task, compared with FP32 on the same rows."""
    settings = result["settings"]
    rows = result["accuracy"].setdefault(task, {})
    wanted = [name for name in settings["engines"] if name not in rows]
    if not wanted:
        return
    setup = setup_of(settings, task)
    labels, definition, batches = setup.labels, setup.workspace.task, setup.sorted_batches()
    reference: EvalResult | None = None
    for name in dict.fromkeys((REFERENCE, *wanted)):
        started = time.perf_counter()
        try:
            with make(name, setup, None) as engine:
                made_s = time.perf_counter() - started
                found = evaluate_engine(engine, batches, labels, definition)
        except Exception as error:  # a peer may fail in any way, and the others are to be measured all the same
            rows[name] = {"status": "failed", "reason": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
        else:
            reference = found if name == REFERENCE else reference
            metric = main_metric(definition)
            row = {
                "status": "ok",
                "rows": len(labels),
                "metric": metric,
                "scores": {metric: found.scores[metric].as_json()},
                "made_s": round(made_s, 2),
            }
            if reference is not None and name != REFERENCE:
                row["against_fp32"] = compare(reference, found, labels, definition).as_json("FP32", name)
            rows[name] = row
        print(f"{task:16} {name:28} {score_text(rows[name])}", flush=True)
        save(path, result)


def latency(path: Path, result: Json, setup: Setup, shape: list[int], patience_s: float) -> None:
    """Every engine at one shape, in turn, on full batches of the task's own sentences."""
    settings = result["settings"]
    key = f"{shape[0]}x{shape[1]}"
    if key in result["latency"]:
        return
    engines: dict[str, Any] = {}
    rows: dict[str, Json] = {}
    for name in settings["engines"]:
        try:
            engines[name] = make(name, setup, tuple(shape))
        except Exception as error:  # see `accuracy`
            rows[name] = {"status": "failed", "reason": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
    wait_for_quiet(patience_s)
    busy, started = busy_seconds(), time.process_time()
    clock = time.perf_counter()
    feeds = setup.full_batches(8, (shape[0], shape[1]))
    found = time_engines(list(engines.values()), feeds, rounds=settings["rounds"])
    wall = time.perf_counter() - clock
    others = max(0.0, busy_seconds() - busy - (time.process_time() - started)) / wall
    reference = found[list(engines).index(REFERENCE)]
    for name, own in zip(engines, found, strict=True):
        rows[name] = {
            "status": "ok",
            **{f"{q}_ms": value for q, value in own.as_json().items()},
            "per_s": own.throughput_per_s,
            "speedup": own.ratio_to(reference),
            "int8_products": getattr(engines[name], "int8_ops", None),
            "ratios": {other: own.ratio_to(theirs) for other, theirs in zip(engines, found, strict=True)},
        }
    for engine in engines.values():
        engine.close()
    result["latency"][key] = {"engines": rows, "others_cpu": round(others, 2), "rounds": settings["rounds"]}
    print(
        f"{key}: " + ", ".join(f"{n} {r['speedup']:.2f}x" for n, r in rows.items() if r["status"] == "ok"), flush=True
    )
    save(path, result)


def load(arguments: argparse.Namespace) -> tuple[Path, Json]:
    """The result to go on with, or a new one."""
    if arguments.resume:
        return arguments.resume, json.loads(arguments.resume.read_text())
    from quantkit.report.record import available_cores

    settings = {
        "tasks": arguments.tasks,
        "engines": arguments.engines,
        "shapes": [list(shape) for shape in SHAPES],
        "samples": 64 if arguments.quick else 512,
        "limit": 64 if arguments.quick else arguments.limit,
        "rounds": 4 if arguments.quick else arguments.rounds,
        "threads": arguments.threads or available_cores(),
        "latency_task": "sst2",
        "quick": arguments.quick,
    }
    date = datetime.now(timezone.utc).date()
    return arguments.out / f"cpu-{date}.json", {
        "context": context(), "settings": settings, "accuracy": {}, "latency": {},
    }  # fmt: skip


def save(path: Path, result: Json) -> None:
    """The result, and the table beside it."""
    write_json(path, result)
    write_text(path.with_suffix(".md"), "\n".join(summary(result)) + "\n")


def summary(result: Json) -> list[str]:
    """The tables as Markdown."""
    made, settings = result["context"], result["settings"]
    lines = ["# INT8 on a CPU, beside its peers", ""]
    if settings["quick"]:
        lines += ["**A run with few rows, to try the script: no figures.**", ""]
    versions = made["versions"]
    names = [name for name in ("quantkit", "openvino", "onnxruntime", "nncf") if name in versions]
    lines += [
        f"{made['date']}, commit {made['commit']}, {made['machine']['cpu']}, {settings['threads']} threads; "
        + ", ".join(f"{name} {versions[name]}" for name in names)
        + ". all-MiniLM-L6-v2 with one LoRA adapter a task; all calibrate with the same "
        f"{settings['samples']} train sentences. Command: `python benchmarks/cpu.py`.",
        "",
        *accuracy_tables(result),
        *latency_tables(result),
        *targets(result),
    ]
    return lines


def accuracy_tables(result: Json) -> list[str]:
    """Scores times 100 with their standard errors, then drops with theirs."""
    if not result["accuracy"]:
        return []
    tasks = list(result["accuracy"])
    columns = {"engine": "engine", **{task: task for task in tasks}}
    scores = [
        {"engine": name} | {task: score_text(result["accuracy"][task].get(name)) for task in tasks}
        for name in result["settings"]["engines"]
    ]
    drops = []
    for name in result["settings"]["engines"]:
        found = [result["accuracy"][task].get(name, {}) for task in tasks]
        values = [-100 * row["against_fp32"]["difference"] for row in found if "against_fp32" in row]
        if values:
            texts = {task: drop_text(row) for task, row in zip(tasks, found, strict=True)}
            drops.append({"engine": name, **texts, "mean": f"{np.mean(values):.2f}", "worst": f"{max(values):.2f}"})
    about = "Accuracy, Matthews (cola) and Pearson (stsb) correlation, times 100, with standard errors."
    paired = (
        "Points lost against OpenVINO's FP32 on the same rows (less is better, negative is a gain), with the paired "
        "standard error; a star where a difference can be shown at the 5 % level (McNemar; bootstrap for correlations)."
    )
    return [
        *("## Accuracy", "", about, "", *table(scores, columns), "", paired, ""),
        *table(drops, {**columns, "mean": "mean", "worst": "worst"}),
        "",
    ]


def score_text(row: Json | None) -> str:
    """A score and its standard error, times 100."""
    if row is None:
        return ""
    if row["status"] != "ok":
        return row["reason"][:60]
    score = row["scores"][row["metric"]]
    return f"{100 * score['value']:.2f} ± {100 * score['stderr']:.2f}"


def drop_text(row: Json) -> str:
    """Points lost, the paired standard error, a star where it can be shown."""
    if "against_fp32" not in row:
        return ""
    against = row["against_fp32"]
    star = "*" if against["p_value"] < 0.05 else ""
    return f"{-100 * against['difference']:.2f} ± {100 * against['stderr']:.2f}{star}"


def latency_tables(result: Json) -> list[str]:
    """Milliseconds and ratios at every shape."""
    if not result["latency"]:
        return []
    rows = []
    for name in result["settings"]["engines"]:
        row: Json = {"engine": name}
        for key, found in result["latency"].items():
            own = found["engines"].get(name, {})
            if own.get("status") == "ok":
                row[f"{key} ms"], row[f"{key} x"] = f"{own['median_ms']:.1f}", f"{own['speedup']:.2f}"
            elif own:
                row[f"{key} ms"] = "failed"
        rows.append(row)
    columns = {"engine": "engine"}
    for key in result["latency"]:
        columns |= {f"{key} ms": f"{key}, ms", f"{key} x": "speed"}
    noise = ", ".join(f"{key} {found['others_cpu']:.2f}" for key, found in result["latency"].items())
    about = (
        "Median of a batch, and how many times faster than OpenVINO's FP32 (median over rounds of the ratio in the "
        f"same round). Cores that other processes kept busy meanwhile: {noise}."
    )
    return ["## Latency", "", about, "", *table(rows, columns), ""]


def targets(result: Json) -> list[str]:
    """The project's own goals, and whether this run reaches them."""
    lines = []
    ours = [name for name in result["settings"]["engines"] if name.startswith("quantkit")]
    for name in ours:
        for key in ("16x64",):
            rows = result["latency"].get(key, {}).get("engines", {})
            own = rows.get(name, {})
            if own.get("status") != "ok":
                continue
            said = f"- {name} at {key}: {own['speedup']:.2f} times OpenVINO's FP32 (goal {TARGETS['speedup']})"
            for peer in ("nncf", "onnxruntime dynamic"):
                if peer in own["ratios"]:
                    said += f", {own['ratios'][peer]:.2f} times {peer}"
            lines.append(said + f" (goals 1 and {TARGETS['against_dynamic']}).")
    for name in [*ours, "nncf"]:
        rows = [tasks.get(name, {}) for tasks in result["accuracy"].values()]
        drops = [-100 * row["against_fp32"]["difference"] for row in rows if "against_fp32" in row]
        if drops:
            goal = f" (goals {TARGETS['mean_drop']} and {TARGETS['worst_drop']})" if name in ours else ""
            lines.append(
                f"- {name}: mean drop {np.mean(drops):.2f}, worst {max(drops):.2f} of {len(drops)} tasks{goal}."
            )
    return ["## Goals", "", *lines] if lines else []


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=("accuracy", "latency"), default=["accuracy", "latency"])
    parser.add_argument("--tasks", nargs="+", choices=tuple(TASKS), default=list(TASKS))
    parser.add_argument("--engines", nargs="+", choices=tuple(ENGINES), default=list(ENGINES))
    parser.add_argument("--limit", type=int, default=0, help="evaluate the first N rows only")
    parser.add_argument("--rounds", type=int, default=30, help="timed samples an engine and shape")
    parser.add_argument("--threads", type=int, default=0, help="0 is all cores")
    parser.add_argument("--patience", type=float, default=60, help="seconds to wait for a quiet machine")
    parser.add_argument("--quick", action="store_true", help="few rows and rounds")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the result")
    parser.add_argument("--resume", type=Path, help="a result to complete")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

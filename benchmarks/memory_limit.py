"""Calibrates a model of BERT-base's size within a memory limit, and without one, and compares the tables.

    python benchmarks/memory_limit.py [--samples 10000] [--seq-len 16] [--memory 1500M] [--shared ../shared]

The model has BERT-base's shape (12 layers, 768 wide) and random weights; the sentences are the first of a seeded draw
from SST-2's train split. Each way is one `quantkit calibrate` in a process of its own, whose resident memory is read
every second, its high-water mark (the kernel's own, so that nothing falls between two seconds) as well. Tables of all
methods and histograms must be the same. With --keep the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "gpu"))

from bert_base import make  # noqa: E402

from quantkit.collect.store import load_histograms  # noqa: E402
from quantkit.data.demo import demo_model_dir  # noqa: E402
from quantkit.files import write_text  # noqa: E402
from quantkit.report.record import cpu_name, versions  # noqa: E402


def resident_mib(process: int) -> tuple[float, float] | None:
    """Resident memory of a process, now and at most so far; None when it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return None
    found = {line.split()[0]: int(line.split()[1]) / 1024 for line in lines if line.startswith(("VmRSS:", "VmHWM:"))}
    return (found["VmRSS:"], found["VmHWM:"]) if len(found) == 2 else None


def calibrated(folder: Path, options: argparse.Namespace, limit: str) -> dict[str, Any]:
    """One run of the command, with its memory second by second; in --keep, all of its starts together."""
    kept = Path(f"{folder}.json")
    before: list[dict[str, Any]] = json.loads(kept.read_text()) if kept.is_file() else []
    if before and before[-1]["finished"]:
        return before[-1]["result"]
    command = [sys.executable, "-m", "quantkit", "calibrate", str(folder.parent / "model"), "--task", "sst2"]
    command += ["--data", str(options.shared / "glue"), "-n", str(options.samples), "--batch", str(options.batch)]
    command += ["--seq-len", str(options.seq_len), "--backend", options.backend, "--out", str(folder), "--json"]
    command += ["--threads", str(options.threads)] if options.threads else []
    command += ["--memory", limit] if limit else []
    shutil.rmtree(folder, ignore_errors=True)

    started, trace, peak = time.time(), [], 0.0
    own = os.environ | {"QUANTKIT_CACHE": str(folder) + "-cache"}
    with (
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as told,
        subprocess.Popen(command, env=own, stdout=out, stderr=told) as child,
    ):
        while child.poll() is None:
            if (now := resident_mib(child.pid)) is not None:
                trace.append(round(now[0], 1))
                peak = max(peak, now[1])
                start = {"finished": False, "seconds": time.time() - started, "peak": peak, "trace": trace}
                if len(trace) % 10 == 0:
                    write_text(kept, json.dumps([*before, start]))
            time.sleep(1)
        out.seek(0)
        told.seek(0)
        said = " ".join(told.read().decode().split())
        answer = json.loads(out.read() or b"{}")
    if child.returncode:
        raise SystemExit(f"calibrate ended with {child.returncode}: {said[-600:]}")
    trace = [value for start in before for value in start["trace"]] + trace
    result = {
        "limit": limit,
        "starts": len(before) + 1,
        "seconds": round(time.time() - started + sum(start["seconds"] for start in before), 1),
        "collecting_s": answer["seconds"],
        "peak_mib": round(max(peak, *(start["peak"] for start in before), 0), 1),
        "peak_by_quarter_mib": [max(trace[len(trace) * i // 4 : len(trace) * (i + 1) // 4] or [0]) for i in range(4)],
        "trace_mib": trace[:: max(1, len(trace) // 200)],
        "said": [part for part in said.split("--memory") if "stretches" in part or "at once" in part],
        "samples": answer["samples"],
    }
    write_text(kept, json.dumps([*before, {"finished": True, "result": result}]))
    return result


def differences(one: Path, other: Path) -> list[str]:
    """Files that differ: caches byte by byte, tables as JSON, histograms tensor by tensor."""
    found = [
        path.name
        for path in sorted(one.iterdir())
        if path.suffix in (".cache", ".json") and path.read_bytes() != (other / path.name).read_bytes()
    ]
    mine, theirs = (load_histograms(folder / "histograms.npz").histograms for folder in (one, other))
    return found + [name for name in mine if mine[name] != theirs.get(name)]


def main() -> int:
    """Prints the result; exit code 1 when anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--seq-len", type=int, default=16)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--memory", default="1500M")
    parser.add_argument("--backend", default="openvino")
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    parser.add_argument("--keep", type=Path, default=None, help="folder to work in, to go on with after a stop")
    parser.add_argument("--shared", type=Path, default=HERE.parent.parent / "shared")
    parser.add_argument("--out", type=Path, default=None, help="JSON file for the result")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="quantkit-memory-") as name:
        place = Path(name) if options.keep is None else options.keep
        make(place / "model")
        for file in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
            if (demo_model_dir() / file).is_file():
                shutil.copy(demo_model_dir() / file, place / "model")
        ways = (("limited", options.memory), ("free", ""))
        runs = {what: calibrated(place / what, options, limit) for what, limit in ways}
        odd = differences(place / "limited", place / "free")
        result = {
            "date": time.strftime("%Y-%m-%d"),
            "cpu": cpu_name(),
            "cores": len(os.sched_getaffinity(0)),
            "versions": versions(),
            "threads": options.threads,
            "batch": options.batch,
            "seq_len": options.seq_len,
            "backend": options.backend,
            "tensors": len(load_histograms(place / "free" / "histograms.npz").histograms),
            "runs": runs,
            "different": odd,
        }
    if options.out is not None:
        options.out.write_text(json.dumps(result) + "\n")
    shown = {k: {n: v for n, v in run.items() if n != "trace_mib"} for k, run in runs.items()}
    print(json.dumps({**result, "runs": shown}, indent=2))
    return int(bool(odd))


if __name__ == "__main__":
    sys.exit(main())

"""What calibration costs: collecting, threshold search, and the whole, beside other tools on the same model and data.

    python benchmarks/calibration.py               # about eight minutes on two cores
    python benchmarks/calibration.py --quick       # a minute, to see that everything runs
    python benchmarks/calibration.py --resume benchmarks/results/calibration-2026-01-01.json

The result is written after every step, so a run that was stopped can be resumed. benchmarks/README.md says what is
measured and how the peers are installed; a peer that is not installed is a row with the reason.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path

import calibration_jobs
import calibration_peers
from calibration_setup import Json, context, reply_to, run_child, table, wait_for_quiet, write_inputs

HERE = Path(__file__).resolve().parent
PARTS = ("collect", "search", "whole")
TARGETS = {"overhead_ratio": 0.5, "entropy_ms": 2.0}
JOBS: dict[str, Callable[[Json], Json]] = {
    "collect": calibration_jobs.collect,
    "search": calibration_jobs.search,
    "search peers": calibration_peers.search,
    "whole": calibration_jobs.whole,
    "model only": calibration_jobs.model_only,
    "whole peer": calibration_peers.whole,
    "model only peer": calibration_peers.model_only,
}


def main() -> None:
    """Runs the steps that are asked for, or, with --job, is the child that runs one of them."""
    if sys.argv[1:2] == ["--job"]:
        child(json.loads(sys.argv[2]))
        return
    arguments = parse()
    result = load(arguments)
    path = result.pop("path")
    with tempfile.TemporaryDirectory(prefix="quantkit-benchmark-") as name:
        run = Run(result, path, Path(name), arguments)
        result["inputs"] = write_inputs(Path(name), result["settings"])
        if "collect" in arguments.parts:
            run.step("collect", {"job": "collect", "numpy_batches": 1 if arguments.quick else 3})
        if "search" in arguments.parts:
            run.step("search", {"job": "search", "repeats": 1 if arguments.quick else 5})
            few = {"tensors": 6, "slow_tensors": 2} if arguments.quick else {"tensors": 24, "slow_tensors": 6}
            run.step("search peers", {"job": "search peers", "samples": 64, **few})
        if "whole" in arguments.parts:
            whole(run, result["settings"]["samples"])
    text = "\n".join(summary(result))
    path.with_suffix(".md").write_text(text + "\n")
    print(text)


class Run:
    """One run: runs steps that the result lacks, and writes it after each."""

    def __init__(self, result: Json, path: Path, folder: Path, options: argparse.Namespace) -> None:
        self.result, self._path, self._folder = result, path, folder
        self._limit, self._timeout, self._patience = options.memory_limit, options.timeout, options.patience

    def step(self, name: str, job: Json) -> Json:
        """The answer of a step, run now unless it is there already."""
        steps = self.result["steps"]
        if name not in steps:
            print(f"{name} ...", file=sys.stderr, flush=True)
            wait_for_quiet(self._patience)
            job = job | {"settings": self.result["settings"]}
            at = datetime.now(timezone.utc).isoformat(timespec="seconds")
            steps[name] = {"at": at} | run_child(HERE / "calibration.py", job, self._folder, self._limit, self._timeout)
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(json.dumps(self.result, indent=1) + "\n")
        return dict(steps[name])


def whole(run: Run, samples: int) -> None:
    """Whole calibrations: each tool at the largest of samples, 3/4, 1/2, 3/8, 1/4 ... of them that fits the limit."""
    run.step("quantkit, model only", {"job": "model only", "samples": samples})
    run.step("quantkit", {"job": "whole", "samples": samples})
    survived: dict[str, int] = {}
    for peer, (package, method) in calibration_peers.PEERS.items():
        # All of onnxruntime's histogram methods keep the same arrays: what one did not survive, the next does not.
        kind = f"{package} {'minmax' if method == 'minmax' else 'histograms'}"
        for tried in fewer_and_fewer(survived.get(kind, samples), run.result["settings"]["batch"]):
            answer = run.step(f"{peer}, {tried}", {"job": "whole peer", "peer": peer, "samples": tried})
            if answer["status"] != "memory":
                break
        survived[kind] = tried
        run.step(f"{package}, model only", {"job": "model only peer", "peer": peer, "samples": min(samples, 64)})


def fewer_and_fewer(samples: int, batch: int) -> Iterator[int]:
    """`samples`, then 3/4, 1/2, 3/8, 1/4 ... of them, in whole batches, down to one batch."""
    shares = [share / 2**halvings for halvings in range(32) for share in (1, 0.75)]
    yield from dict.fromkeys(max(batch, int(samples * share) // batch * batch) for share in shares)


def child(job: Json) -> None:
    """Runs one job and leaves its answer; a package that is not there is an answer too."""
    try:
        answer = JOBS[job["job"]](job)
    except ImportError as error:
        answer = {"status": "missing", "reason": f"not installed: {error.name or error}"}
    reply_to(job, answer)


def load(arguments: argparse.Namespace) -> Json:
    """A new result, or the one that is resumed."""
    if arguments.resume is not None:
        result: Json = json.loads(arguments.resume.read_text())
        return result | {"path": arguments.resume}
    names = ("samples", "batch", "seq_len", "seed", "threads", "adapter", "rounds", "round_batches")
    settings = {name: getattr(arguments, name) for name in names}
    about = context()
    stem = arguments.name or about["date"][:10]
    if settings["adapter"]:
        settings["adapter"] = str(Path(settings["adapter"]).resolve())
    limits = {"memory_limit_gib": arguments.memory_limit}
    return about | {"settings": settings, **limits, "steps": {}, "path": arguments.out / f"calibration-{stem}.json"}


def summary(result: Json) -> list[str]:
    """The result as Markdown."""
    machine, settings, steps = result["machine"], result["settings"], result["steps"]
    lines = [
        f"{result['date'][:10]}, {machine['cpu']}, {settings['threads']} threads, {machine['memory_gib']} GiB; "
        f"quantkit at {result['commit']}; "
        + ", ".join(f"{name} {version}" for name, version in result["versions"].items() if name != "quantkit"),
        f"{settings['samples']} sentences, {settings['batch']} x {settings['seq_len']} tokens a batch; "
        f"{result['inputs']['tensors']} tensors, {result['inputs']['tensors_that_share_values']} of which share "
        "another's values.",
        "",
    ]
    if "collect" in steps:
        lines += ["### Collecting every activation, per batch", "", *table(collect_rows(steps["collect"]), COLLECT), ""]
    if "search" in steps:
        lines += ["### Threshold search, per tensor", "", *table(search_rows(steps), SEARCH), ""]
    if "quantkit" in steps:
        lines += ["### Calibration from model and tokens to ranges", "", *table(whole_rows(steps), WHOLE), ""]
    others = {name: s["others_cpu"] for name, s in steps.items() if s.get("others_cpu", 0) > 0.1}
    noise = ", ".join(f"{name} {cores:.1f}" for name, cores in others.items())
    lines.append(f"Other processes used this many cores meanwhile: {noise}." if others else "The machine was quiet.")
    return lines


COLLECT = {"what": "what", "ms": "ms a batch", "ratio": "of FP32 inference", "note": "note"}
SEARCH = {
    "tool": "tool", "method": "method", "bins": "bins", "tensors": "tensors", "ms": "ms a tensor (mean)",
    "median_ms": "median", "max_ms": "slowest", "reason": "note",
}  # fmt: skip
WHOLE = {
    "tool": "tool", "samples": "sentences", "tensors": "tensors", "seconds": "s", "collect_s": "of it collecting",
    "search_s": "of it searching", "per_sentence": "ms a sentence", "peak": "peak MiB",
    "above": "above the model alone", "reason": "note",
}  # fmt: skip


def collect_rows(step: Json) -> list[Json]:
    """Rows of the table of collecting."""
    if step["status"] != "ok":
        return [{"what": "quantkit", "note": step["reason"]}]
    low, high = step["overhead_quartiles"]
    both = step["tap_ms"] + step["histogram_ms"]
    return [
        {"what": "FP32 inference alone", "ms": step["infer_ms"], "ratio": 1.0},
        {"what": "inference that shows every tensor", "ms": step["tap_ms"], "ratio": step["tap_ratio"] + 1},
        {"what": "reading every value once", "ms": step["read_ms"], "ratio": step["read_ratio"], "note": "NumPy's max"},
        {
            "what": "histograms of them",
            "ms": step["histogram_ms"],
            "ratio": step["histogram_ratio"],
            "note": f"{step['histogram_ns_per_value']:.2f} ns a value, {step['values_a_batch'] / 1e6:.1f} M values",
        },
        {
            "what": "**collecting, on top of inference**",
            "ms": both - step["infer_ms"],
            "ratio": step["overhead_ratio"],
            "note": f"quartiles {low:.2f} to {high:.2f} over {step['rounds']} rounds, "
            f"{step['quiet_rounds']} of them quiet; {step['overhead_cpu_ratio']:.2f} in CPU time; "
            f"target {TARGETS['overhead_ratio']}",
        },
        {"what": "NumPy (products, bincount)", "ms": step["numpy_bincount_ms"], "ratio": step["numpy_bincount_ratio"]},
        {"what": "numpy.histogram", "ms": step["numpy_histogram_ms"], "ratio": step["numpy_histogram_ratio"]},
    ]


def search_rows(steps: Json) -> list[Json]:
    """Rows of the table of searches."""
    rows: list[Json] = []
    for name, tool in (("search", "quantkit"), ("search peers", "peers")):
        step = steps.get(name, {"status": "failed", "reason": "not run"})
        rows += step["rows"] if step["status"] == "ok" else [{"tool": tool, "reason": step["reason"]}]
    return rows


def whole_rows(steps: Json) -> list[Json]:
    """Rows of the table of whole calibrations; of every peer the try that went through, or the last one."""
    rows = [_whole_row("quantkit, all five methods", steps["quantkit"], steps["quantkit, model only"])]
    for peer, (package, _) in calibration_peers.PEERS.items():
        tries = {int(name.rsplit(", ", 1)[1]): s for name, s in steps.items() if name.rpartition(", ")[0] == peer}
        if not tries:
            continue
        samples = min(tries)
        row = _whole_row(peer, tries[samples], steps.get(f"{package}, model only", {}))
        if len(tries) > 1 and "reason" not in row:
            more = min(tried for tried in tries if tried > samples)
            row["reason"] = f"{more} sentences: {tries[more]['reason']}"
        rows.append(row)
    return rows


def _whole_row(tool: str, step: Json, base: Json) -> Json:
    """One row; the model alone is the same process with the same imports that only runs the model."""
    keys = ("samples", "tensors", "seconds", "collect_s", "search_s", "reason")
    row: Json = {"tool": tool} | {key: step[key] for key in keys if key in step}
    if step["status"] == "ok":
        row |= {"per_sentence": step["seconds"] * 1e3 / step["samples"], "peak": round(step["peak_mib"])}
        if base.get("status") == "ok":
            row["above"] = round(step["peak_mib"] - base["peak_mib"])
    return row


def parse() -> argparse.Namespace:
    """The command line."""
    from quantkit.report.record import available_cores

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few sentences and tensors; the figures mean little")
    parser.add_argument("--parts", type=lambda t: t.split(","), default=list(PARTS), help="of collect,search,whole")
    parser.add_argument("--samples", type=int, help="sentences of the demo's train split (default 512, quick 64)")
    parser.add_argument("--rounds", type=int, help="rounds of the collecting part (default 40, quick 4)")
    parser.add_argument("--round-batches", type=int, default=4, help="batches of each kind in a round")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seq-len", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--adapter", default="", help="a LoRA adapter for the model instead of the demo's own")
    parser.add_argument("--memory-limit", type=float, default=8.0, help="GiB that a tool may take (default 8)")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds that a step may take")
    parser.add_argument("--patience", type=float, default=30.0, help="seconds to wait for a quiet machine, per step")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--name", default="", help="ending of the result's name (default the date)")
    parser.add_argument("--resume", type=Path, help="a result to continue, with its settings")
    arguments = parser.parse_args()
    arguments.samples = arguments.samples or (64 if arguments.quick else 512)
    arguments.rounds = arguments.rounds or (4 if arguments.quick else 40)
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"there is no part {sorted(unknown)[0]!r}; known: {', '.join(PARTS)}")
    return arguments


if __name__ == "__main__":
    main()

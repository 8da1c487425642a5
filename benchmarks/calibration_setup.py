"""What the calibration benchmarks share: the model and sentences, child processes under a memory limit, the record.

Every measurement runs in a child process of its own: its peak memory is its own, a peer that runs out of memory ends
nothing but itself, and one library's threads do not disturb another's. All children get the same two files,
`model.onnx` (the network with the fixed shape of one batch) and `feeds.npz` (the token arrays of all sentences).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
PACKAGES = (
    "quantkit", "numpy", "numba", "scipy", "onnx", "openvino", "onnxruntime", "nvidia-modelopt", "nncf", "torch",
)  # fmt: skip
MIB = 1 << 20
Json = dict[str, Any]


def write_inputs(folder: Path, settings: Mapping[str, Any], extra_texts: list[str] | None = None) -> Json:
    """Writes model.onnx and feeds.npz into `folder` and returns facts about them.

    Args:
        folder: an existing folder.
        settings: "samples", "batch", "seq_len", "seed", "adapter".
        extra_texts: sentences that follow those of the demo's train split.
    """
    import onnx

    from quantkit.data.batches import TokenBatches
    from quantkit.data.tokenize import encode

    workspace = workspace_of(settings)
    batch, seq_len = settings["batch"], settings["seq_len"]
    network = workspace.network
    onnx.save(network.fixed(batch, seq_len), str(folder / "model.onnx"))
    texts = [*workspace.sample.examples.texts, *((text,) for text in extra_texts or ())]
    batches = TokenBatches(encode(workspace.tokenizer, texts, seq_len), batch, seq_len, fill="drop", inputs=INPUTS)
    feeds = list(batches)
    np.savez(folder / "feeds.npz", **{name: np.concatenate([feed[name] for feed in feeds]) for name in INPUTS})
    return {
        "model_sha256": network.sha256,
        "data_sha256": batches.sha256,
        "sentences": batches.examples,
        "tokens_without_padding": int(sum(feed["attention_mask"].sum() for feed in feeds)),
        "tensors": len(network.activations()),
        "tensors_that_share_values": len(network.aliases()),
    }


def workspace_of(settings: Mapping[str, Any]) -> Any:
    """The workspace for the demo model: what `quantkit calibrate demo` works with."""
    from quantkit.pipeline.settings import Settings
    from quantkit.pipeline.workspace import Workspace
    from quantkit.report.terminal import SilentWatcher

    chosen = Settings(
        calib_samples=settings["samples"],
        batch=settings["batch"],
        seq_len=settings["seq_len"],
        seed=settings["seed"],
        adapter=settings.get("adapter", ""),
        threads=settings["threads"],
    )
    return Workspace(chosen, SilentWatcher())


def read_feeds(folder: Path, samples: int, batch: int) -> list[dict[str, np.ndarray]]:
    """The first `samples` sentences as int64 arrays of shape (batch, sequence), a dict a batch."""
    with np.load(folder / "feeds.npz", allow_pickle=False) as arrays:
        whole = {name: arrays[name][:samples] for name in INPUTS}
    rows = len(whole[INPUTS[0]])
    return [{name: whole[name][i : i + batch] for name in INPUTS} for i in range(0, rows - rows % batch, batch)]


def run_child(script: Path, job: Json, folder: Path, limit_gib: float, timeout_s: float) -> Json:
    """Runs `script --job` in a process of its own and watches its memory.

    Returns:
        What the job returned, with "status" ("ok", "missing", "failed", "memory", "timeout"), "reason" when it is not
        ok, "peak_mib", and "others_cpu": how many cores other processes kept busy meanwhile.
    """
    reply = folder / "reply.json"
    reply.unlink(missing_ok=True)
    environment = os.environ | {"NNCF_CI": "1"}  # NNCF sends no usage data then
    busy, started = busy_seconds(), time.perf_counter()
    with (folder / "child.log").open("wb") as log:
        child = subprocess.Popen(
            [sys.executable, str(script), "--job", json.dumps(job | {"folder": str(folder), "reply": str(reply)})],
            stdout=log,
            stderr=log,
            env=environment,
        )
        peak, verdict, rc, own = _watch(child.pid, limit_gib * 1024, started + timeout_s)
    wall = time.perf_counter() - started
    child.returncode = rc
    answer: Json = json.loads(reply.read_text()) if rc == 0 and reply.is_file() else {"status": verdict or "failed"}
    if answer["status"] == "failed" and "reason" not in answer:
        answer["reason"] = _last_line(folder / "child.log", folder)
    if verdict == "memory":
        answer["reason"] = f"needs more than {limit_gib:g} GiB"
    if verdict == "timeout":
        answer["reason"] = f"not done after {timeout_s:.0f} s"
    answer.setdefault("peak_mib", round(peak, 1))
    answer["others_cpu"] = round(max(0.0, busy_seconds() - busy - own) / wall, 2)
    return answer


def _watch(pid: int, limit_mib: float, deadline: float) -> tuple[float, str, int, float]:
    """Waits for a child: (largest memory seen in MiB, "" or "memory" or "timeout", exit code, CPU seconds it used)."""
    peak, verdict = 0.0, ""
    while True:
        done, status, usage = os.wait4(pid, os.WNOHANG)
        if done:
            return peak, verdict, os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime
        peak = max(peak, resident_mib(pid))
        if not verdict and (peak > limit_mib or time.perf_counter() > deadline):
            verdict = "memory" if peak > limit_mib else "timeout"
            os.kill(pid, 9)
        time.sleep(0.01)


def resident_mib(pid: int | str = "self") -> float:
    """Memory of a process now, in MiB; 0 when it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / MIB


def own_peak_mib() -> float:
    """The most memory this process ever had, in MiB. getrusage would carry over what the parent had before exec."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return 0.0


def busy_seconds() -> float:
    """CPU seconds that all processes of the machine have used since it started."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    user, nice, system, _, _, irq, softirq, steal = (int(f) for f in fields[:8])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def wait_for_quiet(patience_s: float, allowed: float = 0.15) -> None:
    """Returns when other processes used less than `allowed` cores for three seconds, or after `patience_s`."""
    deadline = time.perf_counter() + patience_s
    while time.perf_counter() < deadline:
        busy = busy_seconds()
        time.sleep(3)
        if busy_seconds() - busy < 3 * allowed:
            return


def _last_line(path: Path, folder: Path) -> str:
    """The last line of a log, without paths of this machine."""
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return re.sub(r"(/[\w.+-]+){2,}", "...", (lines or ["it said nothing"])[-1].replace(str(folder), "..."))[:200]


def without_telemetry() -> None:
    """Keeps OpenVINO and NNCF from sending an event over the network when they are imported."""
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]


def reply_to(job: Json, answer: Json) -> None:
    """Leaves the answer of a child where the parent looks for it."""
    answer.setdefault("status", "ok")
    answer["peak_mib"] = round(own_peak_mib(), 1)
    Path(job["reply"]).write_text(json.dumps(answer))


def context() -> Json:
    """Date, machine and versions."""
    from quantkit.report.record import available_cores, cpu_name

    versions = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / MIB / 1024
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": {"cpu": cpu_name(), "cores": available_cores(), "memory_gib": round(memory, 1)},
        "load_average": round(os.getloadavg()[0], 2),
        "versions": versions,
        "commit": _commit(),
    }


def _commit() -> str:
    """The checkout's commit, and whether quantkit differs from it."""
    root = Path(__file__).resolve().parents[1]
    try:
        head = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run(
            ["git", "-C", root, "status", "--porcelain", "quantkit"], capture_output=True, text=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip()[:12] + (" and changes" if changed.stdout.strip() else "")


def table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> Iterator[str]:
    """Lines of a Markdown table; `columns` maps a row's key to the column's title; what a row lacks stays empty."""
    texts = [[_text(row.get(key)) for key in columns] for row in rows]
    widths = [max(len(t) for t in column) for column in zip(columns.values(), *texts, strict=True)]
    for line in (list(columns.values()), ["-" * max(3, w) for w in widths], *texts):
        yield "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"


def _text(value: Any) -> str:
    """A cell: numbers with as many digits as mean something."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)

"""Jobs that are stopped at random points, continued, and compared with ones that nobody stopped.

    python tests/pipeline/kills.py MODEL DATA FOLDER --points 100

A point is one of the calls that the job makes, Python functions and C functions alike; half of the points are drawn
from all calls, half from those around file operations. There the job is killed (SIGKILL), interrupted (Ctrl-C), fails
(an exception that nobody expects) or finds the disk full from then on. One stop in three is followed by a second one.
Then the job runs to its end, and everything it wrote must have the same bits as without the stops.

The process forks for every attempt: the packages are imported once. Times, and files that hold times, are compared
without them.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import io
import json
import os
import random
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

FILE_CALLS = frozenset(("replace", "fsync", "fdopen", "write", "flush", "unlink", "chmod", "mkdir", "open", "close"))
VOLATILE = frozenset(
    (
        "time",
        "seconds",
        "latency_ms",
        "throughput_per_s",
        "speedup",
        "fp32_ms",
        "reused",
        "kept",
        "command",
        "verdict",
        "file",
    )
)
"""Keys of a record that hold times or places in the cache, or tell how often the job was started."""
JOBS = ("calibrate", "run", "eval", "build", "compare", "tune")
ACTIONS = ("kill", "kill", "interrupt", "fail", "full")
STOPPED, UNTOLD = 77, 78
"""Exit codes of a job that was stopped, and of one that made something else of Ctrl-C."""


def job(name: str, model: Path, data: Path) -> None:
    """One job in the working folder, on a tiny model; a checkpoint after every batch."""
    from quantkit.pipeline import compare, run, tune, unfinished
    from quantkit.pipeline.calibration import write_tables
    from quantkit.pipeline.settings import Settings
    from quantkit.report.terminal import SilentWatcher
    from quantkit.search import clock

    unfinished.SECONDS, unfinished.SHARE, run.LATENCY_ROUNDS, run.LATENCY_WARMUP = 0.0, 0, 2, 0
    clock.time_engines = told_times
    settings = Settings(
        model=str(model),
        task="sst2",
        data=str(data),
        backend="fake" if name != "compare" else "onnxruntime",
        method="entropy",
        methods=("entropy", "minmax"),
        precisions=("fp32", "int8"),
        calib_samples=32,
        limit=24,
        batch=8,
        seq_len=16,
        threads=1,
        tune_rows=24,
        out=Path("out"),
    )
    if name == "calibrate":
        write_tables(settings, SilentWatcher())
    elif name == "compare":
        compare.compare_all(settings, ["sst2"], ["onnxruntime"], SilentWatcher())
    elif name == "build":
        run.build_only(settings, SilentWatcher())
    elif name == "tune":
        tune.tune(settings, tune.Goal(max_drop=1.0), SilentWatcher())
    else:
        run.run_settings(settings, SilentWatcher(), latency=name == "run")


def told_times(engines: Any, _feeds: Any, *, rounds: int, **_: Any) -> list[Any]:
    """Latencies that depend on the engine alone: what a search chooses by time is then the same every time."""
    from quantkit.evaluate.latency import Latency

    times = [4.0 - 0.01 * engine.int8_ops if engine.int8_ops else 8.0 for engine in engines]
    return [Latency(ms, ms, ms, 1000 / ms, (ms,) * rounds) for ms in times]


class FullDisk(io.FileIO):
    """A file on a disk that is full: half of what is written arrives."""

    def write(self, data: Any) -> int:
        super().write(bytes(data)[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def act(action: str) -> None:
    """Stops the job."""
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if action == "interrupt":
        raise KeyboardInterrupt
    if action == "fail":
        raise RuntimeError("a defect")
    os.fdopen = lambda handle, mode="rb", **_: FullDisk(handle, mode.replace("b", ""))


def stop_at(point: int, action: str) -> Callable[[Any, str, Any], None]:
    """A profile function that stops the job at its `point`-th call."""
    seen = 0

    def profile(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal seen
        if event in ("call", "c_call"):
            seen += 1
            if seen == point:
                act(action)

    return profile


def calls_of(name: str, model: Path, data: Path, notes: Path) -> None:
    """Runs the job and notes how many calls it makes, and the numbers of those that deal with files."""
    seen, files = 0, []

    def profile(_frame: Any, event: str, argument: Any) -> None:
        nonlocal seen
        if event in ("call", "c_call"):
            seen += 1
            if event == "c_call" and argument.__name__ in FILE_CALLS:
                files.append(seen)

    sys.setprofile(profile)
    job(name, model, data)
    sys.setprofile(None)
    notes.write_text(json.dumps([seen, files]))


def forked(folder: Path, work: Callable[[], None], *, tell: bool = True, interrupted: bool = False) -> int:
    """Does the work in a process of its own, in `folder`; its exit status, negative for a signal.

    With `tell` an exception that no user should meet is printed. A stop inside a library may end in an exception of its
    own; the command line tells Ctrl-C by what led to it, and one that led to nothing of that kind is UNTOLD.
    """
    from quantkit.cli.app import interruption
    from quantkit.errors import QuantkitError

    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = STOPPED
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.chdir(folder)
        os.environ["QUANTKIT_CACHE"] = str(folder / "cache")
        work()
        status = 0
    except (KeyboardInterrupt, RuntimeError):
        pass
    except BaseException as error:
        if tell and type(error).__name__ != "StorageError":
            traceback.print_exc()
            status = 1
        elif interrupted and not interruption(error) and not isinstance(error, QuantkitError):
            traceback.print_exc()
            status = UNTOLD
    finally:
        os._exit(status)


def attempt(folder: Path, model: Path, data: Path, name: str, point: int = 0, action: str = "") -> int:
    """One attempt at a job, stopped at a point or not."""

    def work() -> None:
        if point:
            sys.setprofile(stop_at(point, action))
        job(name, model, data)

    return forked(folder, work, tell=not point, interrupted=action == "interrupt")


def stable(value: Any) -> Any:
    """A JSON value without what holds times."""
    if isinstance(value, dict):
        return {k: stable(v) for k, v in value.items() if k not in VOLATILE}
    return [stable(item) for item in value] if isinstance(value, list) else value


def content(folder: Path) -> dict[str, str]:
    """Path -> hash of what a job has left: results, cached histograms and tables; times left out."""
    from quantkit.collect.store import load_histograms

    found = {}
    for path in sorted(folder.rglob("*")):
        place = str(path.relative_to(folder))
        if not path.is_file() or path.suffix in (".lock", ".part", ".html", ".md"):
            continue  # report and README show the record's times
        data = path.read_bytes()
        if path.parent.name == "refinements":
            data = refined(path)
        elif path.suffix == ".npz":
            data = b"".join(
                repr((name, [getattr(h, field) for field in h.SCALARS])).encode() + h.counts.tobytes()
                for name, h in load_histograms(path).histograms.items()
            )
        elif path.suffix == ".json":
            value = stable(json.loads(data))
            if path.parent.name == "cells":
                value.pop("sha256", None)  # of the cell with its times
            value.get("files", {}).pop("histograms", None)  # its hash: the file holds the seconds of the pass
            data = json.dumps(value).encode()
        found[place] = hashlib.sha256(data).hexdigest()
    return found


def refined(path: Path) -> bytes:
    """What a refinement file holds, the seconds it took left out."""
    from quantkit.network.refinement_file import load_refinement

    found, _ = load_refinement(path)
    arrays = (found.constants, found.biases, found.factors, found.summands)
    parts = [repr((name, value.tolist())) for named in arrays for name, value in named.items()]
    parts += [repr((name, w.codes.tolist(), w.scales.tolist())) for name, w in found.weights.items()]
    return "\n".join([*parts, repr(sorted(found.entries.items())), repr(found.steps)]).encode()


def differences(expected: dict[str, str], found: dict[str, str]) -> list[str]:
    """Files that are not the same."""
    return [name for name in sorted(expected.keys() | found.keys()) if expected.get(name) != found.get(name)]


def trial(draw: random.Random, folder: Path, model: Path, data: Path, name: str, calls: list[Any]) -> dict[str, Any]:
    """One job that is stopped once or twice and then runs to its end."""
    total, files = calls
    stops = []
    for _ in range(1 + (draw.random() < 1 / 3)):
        around = max(1, draw.choice(files) + draw.choice((-1, 0, 1)))
        point = around if draw.random() < 0.5 else draw.randint(1, total)
        action = draw.choice(ACTIONS)
        stops.append([point, action, attempt(folder, model, data, name, point, action)])
    status = attempt(folder, model, data, name)
    return {"job": name, "stops": stops, "status": status}


def main() -> int:
    """Prints a JSON summary; exit code 1 when a job ended otherwise than without stops."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--points", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", default=",".join(JOBS))
    arguments = parser.parse_args()
    model, data, folder = (path.resolve() for path in (arguments.model, arguments.data, arguments.folder))
    folder.mkdir(parents=True, exist_ok=True)
    names = arguments.jobs.split(",")
    whole, calls = {}, {}
    # All that a job imports and compiles is in this process before it forks.
    (folder / "first").mkdir()
    os.chdir(folder / "first")
    os.environ["QUANTKIT_CACHE"] = str(folder / "first" / "cache")
    for name in names:
        job(name, model, data)
    for name in names:
        place, notes = folder / f"{name}-whole", folder / f"{name}.json"
        if forked(place, lambda name=name, notes=notes: calls_of(name, model, data, notes)):
            return 1
        whole[name], calls[name] = content(place), json.loads(notes.read_text())
    draw, failed, ended = random.Random(arguments.seed), [], {}
    for number in range(arguments.points):
        name, place = names[number % len(names)], folder / str(number)
        found = trial(draw, place, model, data, name, calls[name])
        for _, action, status in found["stops"]:
            what = f"{action}: {'not reached' if status == 0 else 'stopped'}"
            ended[what] = ended.get(what, 0) + 1
        untold = any(status == UNTOLD for _, _, status in found["stops"])
        if found["status"] or untold or (odd := differences(whole[name], content(place))):
            failed.append(found | {"number": number, "different": [] if found["status"] or untold else odd})
        else:
            shutil.rmtree(place)
    print(json.dumps({"points": arguments.points, "calls": {n: c[0] for n, c in calls.items()}, "ended": ended}))
    for found in failed:
        print(json.dumps(found))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())

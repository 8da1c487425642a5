"""Runs engines for a long time and looks whether their memory stays.

    python benchmarks/soak.py [--inferences 10000] [--threads 4] [--backends openvino,onnxruntime]

Each backend has a process of its own: the demo's FP32 and INT8 engines with free shapes, shared by several threads,
get batches of changing sizes and lengths. Resident memory is read every hundred inferences, after free memory was given
back to the system. The first fifth is warm-up: every shape has been seen by then. What follows has to be flat: a
straight line through the readings rises by at most --allowed MiB over all inferences that follow, and the mean of the
last quarter lies at most that much above the first's. Each answer is compared with the first to the same batch.

The GPU's counterpart is benchmarks/gpu/leak.py.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

WARM_UP = 0.2
SHAPES = tuple((batch, length) for batch in (1, 2, 3, 5, 8) for length in (8, 16, 24, 33))


def growth(readings: Sequence[tuple[int, float]]) -> dict[str, float]:
    """How memory changes: the line's rise over all inferences, and the last quarter's mean over the first's; MiB.

    Args:
        readings: (number of inferences, MiB), warm-up left out.
    """
    numbers, mib = np.array(readings, np.float64).T
    slope = float(np.polyfit(numbers, mib, 1)[0])
    quarter = max(1, len(mib) // 4)
    rise = slope * float(numbers[-1] - numbers[0])
    return {"rise_mib": round(rise, 2), "drift_mib": round(float(mib[-quarter:].mean() - mib[:quarter].mean()), 2)}


def is_flat(readings: Sequence[tuple[int, float]], allowed: float) -> bool:
    """Whether memory stays, within `allowed` MiB."""
    return all(value <= allowed for value in growth(readings).values())


def soak(
    engines: Sequence[Any], feeds: Sequence[dict[str, Any]], inferences: int, threads: int, every: int = 100
) -> dict[str, Any]:
    """Runs the engines, in turn, over the feeds in changing order, from several threads.

    Args:
        engines: shared by all threads.
        feeds: batches of several shapes.
        inferences: of all threads together.
        threads: how many call at the same time.
        every: inferences between two readings.

    Returns:
        JSON values: readings of memory, seconds, and how many answers were others than the first to the same batch.
    """
    from quantkit.pipeline.memory import resident

    first: dict[tuple[int, int], Any] = {}
    for e, engine in enumerate(engines):
        for f, feed in enumerate(feeds):
            first[e, f] = {name: array.copy() for name, array in engine.infer(feed).items()}
    count, odd, errors = iter(range(inferences)), [0] * threads, []
    lock, readings = threading.Lock(), []
    draw = np.random.default_rng(0)
    order = draw.integers(0, len(feeds), inferences)

    def next_number() -> int | None:
        with lock:
            number = next(count, None)
            if number is not None and number % every == 0:
                readings.append((number, round(resident() / 2**20, 2)))
            return number

    def work(thread: int) -> None:
        try:
            while (number := next_number()) is not None:
                e, f = number % len(engines), int(order[number])
                answer = engines[e].infer(feeds[f])
                odd[thread] += any(not np.array_equal(answer[name], first[e, f][name]) for name in answer)
        except BaseException as error:
            errors.append(repr(error))

    started = time.perf_counter()
    workers = [threading.Thread(target=work, args=(thread,)) for thread in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return {
        "inferences": inferences,
        "threads": threads,
        "seconds": round(time.perf_counter() - started, 1),
        "readings": readings,
        "other_answers": sum(odd),
        "errors": errors,
    }


def feeds_of(words: int, shapes: Sequence[tuple[int, int]] = SHAPES) -> list[dict[str, Any]]:
    """A batch of random tokens for every shape, with padding."""
    draw, feeds = np.random.default_rng(1), []
    for batch, length in shapes:
        ids = draw.integers(1, words, (batch, length))
        mask = (np.arange(length) < draw.integers(2, length + 1, (batch, 1))).astype(np.int64)
        feeds.append({"input_ids": ids * mask, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)})
    return feeds


def engines_of(backend: str, threads: int) -> tuple[list[Any], Callable[[], None]]:
    """The demo's FP32 and INT8 engines with free shapes, and what closes them."""
    from quantkit.backends import get_backend
    from quantkit.pipeline.calibration import calibrate
    from quantkit.pipeline.candidates import build_candidate
    from quantkit.pipeline.run import plan_of
    from quantkit.pipeline.settings import Settings
    from quantkit.pipeline.workspace import Workspace
    from quantkit.report.terminal import SilentWatcher

    settings = Settings(backend=backend, calib_samples=64, refine="none", threads=threads)
    workspace = Workspace(settings, SilentWatcher())
    graph = workspace.network.proto
    made = build_candidate(workspace, graph, calibrate(workspace).table, plan_of(settings, workspace.backend))
    kinds = (("fp32", graph), ("int8", made.proto))
    engines = [get_backend(backend).compile(proto, kind, threads=threads) for kind, proto in kinds]

    def close() -> None:
        for engine in engines:
            engine.close()

    return engines, close


def one(backend: str, options: argparse.Namespace) -> dict[str, Any]:
    """The soak of one backend, in this process."""
    engines, close = engines_of(backend, options.engine_threads)
    found = soak(engines, feeds_of(30000), options.inferences, options.threads)
    close()
    steady = [reading for reading in found["readings"] if reading[0] >= WARM_UP * options.inferences]
    return found | growth(steady) | {"flat": is_flat(steady, options.allowed)}


def main() -> int:
    """Prints the result; exit code 1 when memory grows, an answer changes or a call fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inferences", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=4, help="threads that share the engines")
    parser.add_argument("--engine-threads", type=int, default=2, help="threads of an engine itself")
    parser.add_argument("--backends", default="openvino,onnxruntime")
    parser.add_argument("--allowed", type=float, default=4.0, help="MiB that memory may grow by after warm-up")
    parser.add_argument("--out", type=Path, default=None, help="JSON file for the result")
    parser.add_argument("--one", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.one, options)))
        return 0
    from quantkit.report.record import cpu_name, versions

    result: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "cpu": cpu_name(), "versions": versions()}
    result |= {"allowed_mib": options.allowed, "shapes": SHAPES, "backends": {}}
    for backend in options.backends.split(","):
        command = [sys.executable, __file__, "--one", backend, "--inferences", str(options.inferences)]
        command += ["--threads", str(options.threads), "--engine-threads", str(options.engine_threads)]
        command += ["--allowed", str(options.allowed)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{backend} ended with {done.returncode}: {done.stderr[-500:]}")
        result["backends"][backend] = json.loads(done.stdout)
    if options.out is not None:
        options.out.write_text(json.dumps(result) + "\n")
    good = True
    for backend, found in result["backends"].items():
        good &= found["flat"] and not found["other_answers"] and not found["errors"]
        print(json.dumps({"backend": backend} | {k: v for k, v in found.items() if k != "readings"}))
        print(f"  memory, MiB: {[mib for _, mib in found['readings']][:: max(1, len(found['readings']) // 12)]}")
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())

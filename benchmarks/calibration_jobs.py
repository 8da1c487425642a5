"""quantkit's side of the calibration benchmark: collecting against plain inference, threshold searches, the whole.

Each function is one job; it runs in a child process and returns plain JSON.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from calibration_setup import Json, busy_seconds, read_feeds, resident_mib, workspace_of

METHODS = ("minmax", "entropy", "legacy", "percentile", "mse")
QUIET = 0.1
"""Cores that other processes may use in a round that counts; /proc/stat counts in steps of 0.01 s."""
BUDGET_S = 150.0
"""Seconds to wait for quiet rounds."""
ENOUGH = 8
"""Quiet rounds that are enough to leave the others out."""
Clock = npt.NDArray[np.float64]


def collect(job: Json) -> Json:
    """Plain FP32 inference (A) against inference plus collecting every tensor (B), in turn, in one process.

    A round is `round_batches` batches through A, then the same through B, or the other way round every second time.
    The result is the median over the rounds of (B - A) / A, in wall time and in CPU time of the process, which other
    processes disturb less; B is split into the model that shows its tensors and the histograms of them. A busy machine
    slows the model more than the histograms, whose threads never wait for each other, and so flatters the ratio: rounds
    during which others computed are left out where enough are quiet.
    """
    settings, folder = job["settings"], Path(job["folder"])
    workspace = workspace_of(settings)
    network, backend, threads = workspace.network, workspace.backend, settings["threads"]
    feeds = read_feeds(folder, settings["samples"], settings["batch"])
    proto = network.fixed(settings["batch"], settings["seq_len"])
    from quantkit.collect.collector import Collector

    with (
        Collector(network.activations(), aliases=network.aliases(), threads=threads) as collector,
        backend.compile(proto, "fp32", threads=threads) as engine,
        backend.tap(proto, collector.collected, threads=threads) as tap,
    ):
        for feed in feeds[:3]:  # warm: kernels are compiled, memory is there, ranges have settled
            engine.infer(feed)
            collector.update(tap.infer(feed))
        arrays = tap.infer(feeds[0])
        elements = sum(array.size for array in arrays.values())
        rounds, noise = _rounds(engine, tap, collector, feeds, settings)
        compared = _numpy_ms(tap, feeds[: job["numpy_batches"]])
        compared["read"] = _read_ms(tap.infer(feeds[0]), threads)
    used = rounds[noise < QUIET] if (noise < QUIET).sum() >= ENOUGH else rounds
    plain, shown, counted = used.transpose(1, 2, 0)  # each (wall and CPU, rounds)
    plain_ms, shown_ms, counted_ms = (float(np.median(wall)) for wall, _ in (plain, shown, counted))
    ratios, cpu_ratios = (shown + counted) / plain - 1
    return {
        "infer_ms": plain_ms,
        "tap_ms": shown_ms,
        "histogram_ms": counted_ms,
        "overhead_ratio": float(np.median(ratios)),
        "overhead_quartiles": [float(q) for q in np.percentile(ratios, (25, 75))],
        "overhead_cpu_ratio": float(np.median(cpu_ratios)),
        "tap_ratio": float(np.median(shown[0] / plain[0] - 1)),
        "histogram_ratio": float(np.median(counted[0] / plain[0])),
        "cpu_ms": [float(np.median(cpu)) for _, cpu in (plain, shown, counted)],
        "best_ms": [float(wall.min()) for wall, _ in (plain, shown, counted)],
        "rounds": len(rounds),
        "quiet_rounds": int((noise < QUIET).sum()),
        "others_cpu_median": float(np.median(noise)),
        "overhead_ratio_all_rounds": float(np.median(rounds[:, 1:, 0].sum(1) / rounds[:, 0, 0] - 1)),
        "values_a_batch": elements,
        "histogram_ns_per_value": counted_ms * 1e6 / elements,
        "collected": len(collector.collected),
        "answered": len(collector.names),
        "largest": sorted(((a.size, n) for n, a in arrays.items()), reverse=True)[:4],
        **{f"{name}_ms": ms for name, ms in compared.items()},
        **{f"{name}_ratio": ms / plain_ms for name, ms in compared.items()},
    }


def _rounds(engine: Any, tap: Any, collector: Any, feeds: list[Any], settings: Json) -> tuple[Clock, Clock]:
    """Milliseconds a batch, float64 (rounds, 3, 2): plain, shown, counted, each wall and CPU; and cores used by others.

    Rounds go on until as many as wanted were quiet, or BUDGET_S has passed.
    """
    rows: list[Any] = []
    noise: list[float] = []
    size, wanted = settings["round_batches"], settings["rounds"]
    deadline = time.perf_counter() + BUDGET_S
    while sum(n < QUIET for n in noise) < wanted and (len(rows) < ENOUGH or time.perf_counter() < deadline):
        number = len(rows)
        chosen = [feeds[(number * size + i) % len(feeds)] for i in range(size)]
        start, busy = _clock(), busy_seconds()
        if number % 2:
            both = _collecting(tap, collector, chosen)
            row = (_plain(engine, chosen), *both)
        else:
            plain = _plain(engine, chosen)
            row = (plain, *_collecting(tap, collector, chosen))
        wall, own = _clock() - start
        noise.append(max(0.0, busy_seconds() - busy - own) / wall)
        rows.append(row)
    return np.array(rows) * 1e3 / size, np.array(noise)


def _plain(engine: Any, feeds: Iterable[Any]) -> Clock:
    """Seconds of inference alone."""
    start = _clock()
    for feed in feeds:
        engine.infer(feed)
    return _clock() - start


def _collecting(tap: Any, collector: Any, feeds: Iterable[Any]) -> tuple[Clock, Clock]:
    """Seconds of inference that shows its tensors, and of their histograms."""
    shown, counted = np.zeros(2), np.zeros(2)
    for feed in feeds:
        start = _clock()
        arrays = tap.infer(feed)
        middle = _clock()
        collector.update(arrays)
        shown += middle - start
        counted += _clock() - middle
    return shown, counted


def _clock() -> Clock:
    """Wall time, and CPU time of all threads of this process, in seconds."""
    return np.array([time.perf_counter(), time.process_time()])


def _read_ms(arrays: dict[str, Any], threads: int) -> float:
    """Milliseconds that reading every value once takes with `threads` threads: NumPy's vectorised maximum."""
    pieces = sorted(arrays.values(), key=lambda array: -array.size)
    with ThreadPoolExecutor(threads) as pool:
        times = []
        for _ in range(5):
            started = time.perf_counter()
            list(pool.map(np.max, pieces))
            times.append(time.perf_counter() - started)
    return float(np.median(times)) * 1e3


def _numpy_ms(tap: Any, feeds: list[Any]) -> dict[str, float]:
    """Milliseconds a batch of the same histograms in NumPy: by products and `bincount`, and by `numpy.histogram`."""
    seconds = {"numpy_bincount": 0.0, "numpy_histogram": 0.0}
    for feed in feeds:
        for array in tap.infer(feed).values():
            started = time.perf_counter()
            magnitudes = np.abs(array)
            amax = magnitudes.max() or np.float32(1)
            slots = np.minimum((magnitudes * np.float32(2048 / amax)).astype(np.int32), 2047)
            np.bincount(slots.ravel(), minlength=2048)
            middle = time.perf_counter()
            np.histogram(np.abs(array), 2048, (0, amax))
            seconds["numpy_bincount"] += middle - started
            seconds["numpy_histogram"] += time.perf_counter() - middle
    return {name: value * 1e3 / max(1, len(feeds)) for name, value in seconds.items()}


def search(job: Json) -> Json:
    """Milliseconds a tensor of every method over the sample's histograms; methods in turn, median of repeats."""
    from quantkit.calibrate import make_calibrator

    histograms = quantkit_histograms(job)
    calibrators = {name: make_calibrator(name) for name in METHODS}
    times: dict[str, list[list[float]]] = {name: [] for name in METHODS}
    for _ in range(job["repeats"]):
        for name, calibrator in calibrators.items():
            row = []
            for histogram in histograms.values():
                started = time.perf_counter()
                calibrator.compute(histogram)
                row.append((time.perf_counter() - started) * 1e3)
            times[name].append(row)
    rows = []
    for name in METHODS:
        per_tensor = np.median(np.array(times[name]), axis=0)
        rows.append(
            {
                "tool": "quantkit",
                "method": name,
                "bins": 2048,
                "tensors": len(histograms),
                "ms": float(per_tensor.mean()),
                "median_ms": float(np.median(per_tensor)),
                "max_ms": float(per_tensor.max()),
            }
        )
    return {"rows": rows}


def quantkit_histograms(job: Json) -> dict[str, Any]:
    """Histogram of every tensor that has values of its own, over the sample."""
    workspace = workspace_of(job["settings"])
    from quantkit.pipeline.collection import batches_of, collect_batches

    histograms = collect_batches(workspace, batches_of(workspace))
    aliases = workspace.network.aliases()
    return {name: histogram for name, histogram in histograms.items() if name not in aliases}


def whole(job: Json) -> Json:
    """`quantkit calibrate`: from a loaded model and token arrays to the ranges of all five methods."""
    settings = job["settings"] | {"samples": job["samples"]}
    workspace = workspace_of(settings)
    from quantkit.calibrate import calibrate_histograms, make_calibrator
    from quantkit.collect.histogram import HistogramAccumulator
    from quantkit.pipeline.collection import batches_of, collect_batches

    batches = batches_of(workspace)
    list(islice(batches, 1))
    HistogramAccumulator().update(np.ones(1000, np.float32))  # the compiled kernel is read from its cache
    len(workspace.network.activations())
    before = resident_mib()
    started = time.perf_counter()
    histograms = collect_batches(workspace, batches)
    collected = time.perf_counter()
    tables = {name: calibrate_histograms(histograms, make_calibrator(name)) for name in METHODS}
    done = time.perf_counter()
    return {
        "collect_s": collected - started,
        "search_s": done - collected,
        "seconds": done - started,
        "samples": batches.examples,
        "tensors": len(tables["entropy"]),
        "before_mib": before,
    }


def model_only(job: Json) -> Json:
    """The same process as `whole` with the model alone: plain FP32 inference over the sentences."""
    settings = job["settings"] | {"samples": job["samples"]}
    workspace = workspace_of(settings)
    from quantkit.pipeline.collection import batches_of

    batches = batches_of(workspace)
    proto = workspace.network.fixed(settings["batch"], settings["seq_len"])
    started = time.perf_counter()
    with workspace.backend.compile(proto, "fp32", threads=settings["threads"]) as engine:
        for feed in batches:
            engine.infer(feed)
    return {"seconds": time.perf_counter() - started, "samples": batches.examples}

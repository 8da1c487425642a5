"""Where a batch's time goes in OpenVINO: milliseconds by kind of kernel, for FP32, quantkit's placements and NNCF.

    python benchmarks/cpu_kernels.py                     16 x 64 tokens of sst2, one thread, least of 40 runs

The compiled graph says which operation became which kernel and in which precision. The least of many runs is taken for
each kernel and their sum compared, so that a busy machine matters little; on a quiet one the sum is the time of the
whole. One thread, because a kernel's threads wait for each other when others use the cores.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from calibration_setup import context, table, without_telemetry
from cpu import HERE, setup_of
from cpu_engines import Setup, nncf_at

from quantkit.files import write_json, write_text
from quantkit.pipeline.candidates import build_candidate
from quantkit.pipeline.run import plan_of

SHAPE = (16, 64)
MODES = ("gemm", "gemm+residual", "gemm+mha", "gemm+residual+mha")


def main() -> None:
    """Profiles every graph and writes result and table."""
    arguments = parse()
    without_telemetry()
    settings = {"samples": 512, "limit": 0, "threads": 1, "runs": arguments.runs}
    setup = setup_of(settings, "sst2")
    feed = setup.full_batches(1, SHAPE)[0]
    found = {name: profile(model, feed, arguments.runs) for name, model in models(setup)}
    path = arguments.out / f"cpu-kernels-{datetime.now(timezone.utc).date()}.json"
    result = {"context": context(), "settings": settings, "graphs": found}
    write_json(path, result)
    lines = summary(result)
    write_text(path.with_suffix(".md"), "\n".join(lines) + "\n")
    print("\n".join(lines))


def models(setup: Setup) -> Any:
    """Name and ov.Model of every graph."""
    from quantkit.backends.openvino import engine

    fixed = setup.graph(SHAPE)
    yield "openvino fp32", engine.read_model(fixed.SerializeToString())
    plan = plan_of(setup.workspace.settings, setup.workspace.backend)
    for mode in MODES:
        for symmetric in (False, True):
            changed = replace(plan, mode=mode, symmetric=symmetric)
            proto = build_candidate(setup.workspace, fixed, setup.calibrated.table, changed).proto
            grid = "symmetric" if symmetric else "asymmetric"
            yield f"quantkit {mode}, {grid}", engine.read_model(proto.SerializeToString())
    try:
        yield "nncf", nncf_at(setup, SHAPE)
    except ImportError as error:
        print(f"nncf is left out: {error}", file=sys.stderr)


def profile(model: Any, feed: Mapping[str, Any], runs: int) -> dict[str, Any]:
    """Least milliseconds of every kernel over the runs, added up by kind, and of the whole."""
    from quantkit.backends.openvino import runtime

    settings = runtime.settings("int8", 1) | {"PERF_COUNT": True}
    request = runtime.core().compile_model(model, runtime.DEVICE, settings).create_infer_request()
    names = {name for port in request.model_inputs for name in port.get_names()}
    inputs = {name: array for name, array in feed.items() if name in names}
    least: dict[str, float] = {}
    kinds: dict[str, str] = {}
    whole = float("inf")
    for _ in range(runs):
        started = time.perf_counter()
        request.infer(inputs)
        whole = min(whole, 1e3 * (time.perf_counter() - started))
        for kernel in request.profiling_info:
            if kernel.status.name == "EXECUTED":
                ms = 1e3 * kernel.real_time.total_seconds()
                least[kernel.node_name] = min(least.get(kernel.node_name, ms), ms)
                kinds[kernel.node_name] = f"{kernel.node_type} {kernel.exec_type}"
    sums: Counter[str] = Counter()
    for name, ms in least.items():
        sums[kinds[name]] += ms
    numbers = Counter(kinds.values())
    rows = [{"kernel": kind, "ms": round(ms, 2), "number": numbers[kind]} for kind, ms in sums.most_common()]
    return {"whole_ms": round(whole, 2), "sum_ms": round(sum(least.values()), 2), "kernels": rows}


def summary(result: Mapping[str, Any]) -> list[str]:
    """One table for all graphs, kinds of kernels of at least 0.2 ms."""
    made, graphs = result["context"], result["graphs"]
    reference = graphs["openvino fp32"]["sum_ms"]
    rows = []
    for name, graph in graphs.items():
        shown = [row for row in graph["kernels"] if row["ms"] >= 0.2]
        kernels = "; ".join(f"{row['number']} x {row['kernel']} {row['ms']:.1f}" for row in shown)
        ms = graph["sum_ms"]
        rows.append({"graph": name, "ms": f"{ms:.1f}", "x": f"{reference / ms:.2f}", "kernels": kernels})
    columns = {"graph": "graph", "ms": "ms", "x": "speed", "kernels": "kernels, ms"}
    head = f"{made['date']}, commit {made['commit']}, {made['machine']['cpu']}, OpenVINO {made['versions']['openvino']}"
    about = (
        f"{SHAPE[0]} x {SHAPE[1]} tokens, one thread, least of {result['settings']['runs']} runs. "
        "Command: `python benchmarks/cpu_kernels.py`."
    )
    return ["# Kernels of INT8 graphs in OpenVINO", "", f"{head}. {about}", "", *table(rows, columns)]


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the result")
    return parser.parse_args()


if __name__ == "__main__":
    main()

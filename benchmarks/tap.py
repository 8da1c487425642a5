"""What it costs to see every tensor of the FP32 graph, on top of running it.

    python benchmarks/tap.py                          # the demo model, 16 x 64 tokens
    python benchmarks/tap.py --model DIR --adapter DIR --batch 8 --sequence 128 --json out.json

All ways run in turn, round after round, so that a busy machine slows each of them alike; the ratio is the median over
the rounds of (way / engine of the same round). "copied out" is what InferRequest.infer() does by default, "fixed
shapes" lets OpenVINO copy each tensor once, "tap" is quantkit's. The tensors are those that a calibration collects: all
floating-point activations but those that only reshape or transpose another.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.backends import BACKENDS, get_backend
from quantkit.backends.base import serialized, thread_count
from quantkit.backends.cpu import cpu_name
from quantkit.backends.openvino.engine import Feeder, compile_model, read_model
from quantkit.data.demo import demo_adapter_dir, demo_model_dir
from quantkit.files import write_json
from quantkit.network.graph import Network
from quantkit.network.model import load_model
from quantkit.types import Array, TensorSpec

Way = Callable[[], object]
WARMUP = 3
HEADER = """\
| way | ms (median) | ms (best) | ratio to its engine | page faults a batch |
| --- | ---: | ---: | ---: | ---: |"""


def main() -> None:
    """Measures and prints a table in Markdown."""
    options = arguments()
    if options.model is None:
        options.model, options.adapter = demo_model_dir(), demo_adapter_dir()
    network = load_model(options.model, options.adapter)
    proto = network.fixed(options.batch, options.sequence)
    names = [name for name in network.activations() if name not in network.aliases()]
    feed = random_feed(network, options.batch, options.sequence)
    ways, tensors_mb = build(proto, names, feed, options.threads)
    rows = measure(ways, options.rounds)
    size = f"{options.batch} x {options.sequence} tokens, {len(names)} tensors, {tensors_mb:.0f} MB a batch"
    print(f"{cpu_name()}, {size}\n\n{HEADER}")
    for row in rows:
        print("| {way} | {median_ms:.1f} | {best_ms:.1f} | {ratio:.2f} | {page_faults} |".format(**row))
    if options.json:
        facts = {"cpu": cpu_name(), "batch": options.batch, "sequence": options.sequence, "rounds": options.rounds}
        write_json(options.json, {**facts, "tensors": len(names), "tensors_mb": tensors_mb, "rows": rows})


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Cost of seeing every tensor of the FP32 graph.")
    parser.add_argument("--model", type=Path, help="model folder or .onnx file; the demo model by default")
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--sequence", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    return parser.parse_args()


def random_feed(network: Network, batch: int, sequence: int) -> dict[str, Array]:
    """Seeded token ids without padding; the arithmetic costs the same for any tokens."""
    draw = np.random.default_rng(0)
    tokens = draw.integers(1000, 20000, (batch, sequence))
    ones = np.ones((batch, sequence), np.int64)
    return {n: tokens if n == "input_ids" else ones * (n == "attention_mask") for n in network.input_names}


def build(
    proto: Any, names: list[str], feed: dict[str, Array], threads: int | None
) -> tuple[dict[str, tuple[str, Way]], float]:
    """Name of a way -> (the engine it is compared with, the way); and the megabytes of all tensors."""
    ways: dict[str, tuple[str, Way]] = {}
    tensors_mb = 0.0
    for backend_name in BACKENDS:
        backend = get_backend(backend_name)
        if backend.available() is not None:
            continue
        engine = backend.compile(proto, "fp32", threads=threads)
        tap = backend.tap(proto, names, threads=threads)
        base = f"{backend_name}: engine"
        tensors_mb = sum(array.nbytes for array in tap.infer(feed).values()) / 1e6
        ways[base] = (base, lambda engine=engine: engine.infer(feed))
        ways[f"{backend_name}: tap"] = (base, lambda tap=tap: tap.infer(feed))
        if backend_name == "openvino":
            for name, way in plain_openvino(proto, names, feed, engine.inputs, thread_count(threads)).items():
                ways[f"openvino: {name}"] = (base, way)
    return ways, tensors_mb


def plain_openvino(
    proto: Any, names: list[str], feed: dict[str, Array], inputs: tuple[TensorSpec, ...], threads: int
) -> dict[str, Way]:
    """The graph with all outputs and fixed shapes: run without looking at them, and as InferRequest.infer() does it."""
    model = read_model(serialized(proto))
    model.add_outputs(names)
    compiled = compile_model(model, "fp32", threads)
    feeder, request = Feeder(compiled, inputs), compiled.create_infer_request()
    return {"fixed shapes": lambda: feeder.run(feed), "fixed shapes, copied out": lambda: request.infer(feed)}


def measure(ways: dict[str, tuple[str, Way]], rounds: int) -> list[dict[str, Any]]:
    """One row a way."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    faults: dict[str, list[int]] = {name: [] for name in ways}
    for _ in range(WARMUP + rounds):
        for name, (_, way) in ways.items():
            before, start = page_faults(), time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
            faults[name].append(page_faults() - before)
    rows = []
    for name, (base, _) in ways.items():
        own, engine = seconds[name][WARMUP:], seconds[base][WARMUP:]
        rows.append(
            {
                "way": name,
                "median_ms": statistics.median(own) * 1e3,
                "best_ms": min(own) * 1e3,
                "ratio": statistics.median(a / b for a, b in zip(own, engine, strict=True)),
                "page_faults": int(statistics.median(faults[name][WARMUP:])),
            }
        )
    return rows


def page_faults() -> int:
    """Pages that this process has had mapped so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


if __name__ == "__main__":
    main()

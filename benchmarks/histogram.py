"""What a histogram costs an element: the compiled kernel, its NumPy reference, and the shortest NumPy that bins at all.

    python benchmarks/histogram.py [--rounds 15] [--threads 2] [--json results.json]

The shapes are those of MiniLM-L6 at 16 x 64 tokens: hidden states 393,216 elements, attention scores and probabilities
786,432, feed-forward 1,572,864. All contenders take turns in one run on the same arrays; the arrays rotate through more
memory than the caches hold, as activations do. The last lines are one collector over every tensor of the whole graph.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from quantkit.collect.collector import Collector
from quantkit.collect.histogram import HistogramAccumulator

Floats = npt.NDArray[np.float32]
BATCH, SEQUENCE, HIDDEN, INNER, HEADS, LAYERS = 16, 64, 384, 1536, 12, 6
COPIES_BYTES = 64 << 20
CALLS_A_TURN = 5


def gaussian(draw: np.random.Generator, size: int) -> Floats:
    """Like a linear layer's output."""
    return draw.standard_normal(size, np.float32)


def probabilities(draw: np.random.Generator, size: int) -> Floats:
    """Softmax over rows of 64: most values in the first few bins."""
    scores = np.exp(3 * draw.standard_normal((size // SEQUENCE, SEQUENCE), np.float32))
    return (scores / scores.sum(axis=1, keepdims=True)).ravel()


def gelu(draw: np.random.Generator, size: int) -> Floats:
    """The feed-forward activation (tanh form)."""
    x = draw.standard_normal(size, np.float32)
    return (0.5 * x * (1 + np.tanh(0.7978845608 * (x + 0.044715 * x**3)))).astype(np.float32)


CASES: dict[str, tuple[int, Callable[[np.random.Generator, int], Floats]]] = {
    "hidden 393k": (BATCH * SEQUENCE * HIDDEN, gaussian),
    "probabilities 786k": (BATCH * HEADS * SEQUENCE * SEQUENCE, probabilities),
    "feed-forward 1.57M": (BATCH * SEQUENCE * INNER, gelu),
}


def bare_numpy(values: Floats, upper: float) -> None:
    """Only the bins, in the fewest NumPy calls: no extremes, no NaN, a range known beforehand."""
    slots = (np.abs(values) * np.float32(2048 / upper)).astype(np.int32)
    np.bincount(slots, minlength=2049)


def measure(make: Callable[[np.random.Generator, int], Floats], size: int, rounds: int) -> dict[str, float]:
    """Median ns an element of each contender, taking turns."""
    first = make(np.random.default_rng(3), size)
    arrays = [first.copy() for _ in range(max(2, COPIES_BYTES // first.nbytes))]
    kernel = HistogramAccumulator("tensorrt")
    reference = HistogramAccumulator("tensorrt", compiled=False)
    for accumulator in (kernel, reference):
        accumulator.update(first)
    if kernel.snapshot() != reference.snapshot():
        raise SystemExit("The kernel and its reference differ.")
    upper = kernel.snapshot().upper
    contenders: dict[str, Callable[[Floats], None]] = {
        "kernel": kernel.update,
        "reference": reference.update,
        "bare NumPy": lambda values: bare_numpy(values, upper),
    }
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    turn = itertools.cycle(arrays)
    for _ in range(rounds):
        for name, run in contenders.items():
            for values in itertools.islice(turn, CALLS_A_TURN):
                started = time.perf_counter()
                run(values)
                samples[name].append((time.perf_counter() - started) / size * 1e9)
    return {name: float(np.median(times)) for name, times in samples.items()}


def graph_shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of what MiniLM-L6 computes at 16 x 64 tokens, tensors that only reshape another left out."""
    hidden, inner = (BATCH, SEQUENCE, HIDDEN), (BATCH, SEQUENCE, INNER)
    scores = (BATCH, HEADS, SEQUENCE, SEQUENCE)
    for name in ("word", "position", "sum", "norm"):
        yield f"embeddings.{name}", hidden
    for layer in range(LAYERS):
        wide = ("ffn.intermediate.matmul", "ffn.intermediate", "ffn.erf.in", "ffn.erf", "ffn.erf.sum", "ffn.gelu")
        square = ("attention.scores", "attention.scores_masked", "attention.probs")
        narrow = [f"attention.{part}{end}" for part in ("query", "key", "value", "output") for end in (".matmul", "")]
        narrow += ["attention.query_scaled", "attention.context", "attention.residual", "attention.norm"]
        narrow += ["ffn.output.matmul", "ffn.output", "ffn.residual", "ffn.norm"]
        for names, shape in ((narrow, hidden), (square, scores), (wide, inner)):
            yield from ((f"layer{layer}.{name}", shape) for name in names)


def collect_graph(threads: int, rounds: int) -> dict[str, float]:
    """Median seconds of one `Collector.update` over the whole graph, and how many elements that is."""
    draw = np.random.default_rng(5)
    shapes = dict(graph_shapes())
    pool = {shape: [draw.standard_normal(shape, np.float32) for _ in range(6)] for shape in set(shapes.values())}
    tensors = {name: pool[shape][i % 6] for i, (name, shape) in enumerate(shapes.items())}
    elements = sum(array.size for array in tensors.values())
    with Collector(tensors, threads=threads) as collector:
        collector.update(tensors)
        times = []
        for _ in range(rounds):
            started = time.perf_counter()
            collector.update(tensors)
            times.append(time.perf_counter() - started)
    return {"elements": elements, "ms": float(np.median(times)) * 1e3, "threads": threads, "tensors": len(tensors)}


def cpu_name() -> str:
    """The processor's name as Linux gives it, else what Python knows."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def main() -> None:
    """Measures, prints a table and writes JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    started = time.perf_counter()
    HistogramAccumulator("pow2").update(np.ones(1, np.float32))
    first_use = time.perf_counter() - started
    results: dict[str, object] = {
        "cpu": cpu_name(),
        "load_before": os.getloadavg()[0],
        "numpy": np.__version__,
        "first_use_s": first_use,
    }
    print(f"first use of the kernel: {first_use:.2f} s\n")
    print(f"{'ns an element':20} {'kernel':>8} {'reference':>10} {'bare NumPy':>11} {'ratio':>7} {'to bare':>8}")
    for name, (size, make) in CASES.items():
        row = measure(make, size, options.rounds)
        results[name] = row
        ratios = row["reference"] / row["kernel"], row["bare NumPy"] / row["kernel"]
        columns = f"{row['kernel']:8.3f} {row['reference']:10.3f} {row['bare NumPy']:11.3f}"
        print(f"{name:20} {columns} {ratios[0]:6.1f}x {ratios[1]:7.1f}x")
    print()
    graphs = [collect_graph(threads, options.rounds) for threads in dict.fromkeys((1, options.threads))]
    for graph in graphs:
        print(
            f"whole graph, {graph['tensors']} tensors, {graph['elements'] / 1e6:.1f} M elements, "
            f"{graph['threads']} thread(s): {graph['ms']:.1f} ms a batch"
        )
    results["graph"] = graphs
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()

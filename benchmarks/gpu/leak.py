"""10,000 inferences, and whether device memory stays: leak.py PLANS OUT.json.

Each plan runs RUNS times over changing shapes where it allows them, with and without CUDA graphs, then once more
loaded and closed several times; free device memory is read on the way.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from quantkit.backends.trt.backend import TensorRTBackend
from quantkit.backends.trt.cuda import device
from quantkit.backends.trt.plan import example_feed

RUNS, EVERY, RELOADS = 10_000, 1_000, 5


def main(plans: Path, out: Path) -> None:
    """Runs the smallest plan, plain and with graphs."""
    results = {}
    paths = sorted(plans.glob("*.plan"), key=lambda path: path.stat().st_size)[:1]
    for path in paths:
        for graphs in (False, True):
            backend = TensorRTBackend(graphs=graphs)
            with backend.load(path) as engine:
                feed = example_feed(engine.plan)
                first = engine.infer(feed)
                engine.infer(feed)
                free = [device().free_bytes()]
                for number in range(1, RUNS + 1):
                    last = engine.infer(feed)
                    if number % EVERY == 0:
                        free.append(device().free_bytes())
                same = all(np.array_equal(first[name], last[name]) for name in first)
                refusal = engine.graph_refusal
            results[f"{path.name} graphs={graphs}"] = {
                "free_bytes": free,
                "lost_bytes": free[0] - free[-1],
                "same_answer": same,
                "graph_refusal": refusal,
            }
    reloads = []
    for _ in range(RELOADS):
        TensorRTBackend().load(paths[0]).close()
        reloads.append(device().free_bytes())
    results["after closing"] = reloads
    out.write_text(json.dumps(results, indent=2))
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

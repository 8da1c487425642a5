"""Our engine time against a plain script's: plain.py PLANS OUT.json.

For every plan of fixed shapes in the folder, the same engine is timed twice: by quantkit, and by a few lines of
TensorRT and PyCUDA with CUDA events around execute_async_v3. The two measure by turns.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pycuda.driver as cuda
import tensorrt as trt

from quantkit.backends.trt.backend import TensorRTBackend
from quantkit.backends.trt.plan import example_feed

ROUNDS, RUNS = 5, 200


class Plain:
    """A context of the engine with one stream, one buffer a tensor, and two events."""

    def __init__(self, engine: object) -> None:
        self.engine = engine
        self.context = self.engine.create_execution_context()
        self.stream = cuda.Stream()
        self.start, self.end = cuda.Event(), cuda.Event()
        self.memory = []
        for i in range(self.engine.num_io_tensors):
            name = self.engine.get_tensor_name(i)
            dtype = np.dtype(trt.nptype(self.engine.get_tensor_dtype(name)))
            host = np.full(tuple(self.engine.get_tensor_shape(name)), "mask" in name, dtype)
            self.memory.append(cuda.to_device(host))
            self.context.set_tensor_address(name, int(self.memory[-1]))

    def milliseconds(self) -> float:
        """One execution, by events."""
        self.start.record(self.stream)
        self.context.execute_async_v3(self.stream.handle)
        self.end.record(self.stream)
        self.stream.synchronize()
        return float(self.end.time_since(self.start))


def main(plans: Path, out: Path) -> None:
    """Times every plan both ways."""
    backend = TensorRTBackend()
    cuda.init()
    context = cuda.Device(0).retain_primary_context()
    results = {}
    for path in sorted(plans.glob("*.plan")):
        with backend.load(path) as engine:
            if any(-1 in spec.shape for spec in engine.inputs):
                continue
            feed = example_feed(engine.plan)
            context.push()
            plain = Plain(engine.plan.raw)
            ours, theirs = [], []
            for round_number in range(ROUNDS + 1):
                a = [engine.measure(feed).compute for _ in range(RUNS)]
                b = [plain.milliseconds() for _ in range(RUNS)]
                if round_number:  # the first round warms up
                    ours.append(float(np.median(a)))
                    theirs.append(float(np.median(b)))
            results[path.name] = {
                "precision": engine.precision,
                "quantkit_ms": ours,
                "plain_ms": theirs,
                "ratio": round(float(np.median(np.array(ours) / np.array(theirs))), 4),
            }
            del plain
            context.pop()
        print(path.name, json.dumps(results[path.name]), flush=True)
        out.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

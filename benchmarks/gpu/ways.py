"""The two ways to a network against the CPU: ways.py DATA OUT.json.

Logits of all SST-2 dev batches, from an ONNX import and from the network API in all its variants, against onnxruntime
on the CPU and against recorded FP32 logits; largest difference, accuracy, milliseconds.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

from quantkit.backends import get_backend
from quantkit.backends.trt.backend import TensorRTBackend
from quantkit.backends.trt.options import BuildOptions, ShapeRange, Source
from quantkit.errors import QuantkitError
from quantkit.network.model import load_model

BATCH, SEQ_LEN = 16, 64
VARIANTS = {
    "onnx fp32": BuildOptions("fp32"),
    "onnx fp32 dynamic": BuildOptions("fp32", profiles=(ShapeRange((1, 8), (BATCH, SEQ_LEN), (32, 128)),)),
    "api fp32": BuildOptions("fp32", "api"),
    "api fp32 dynamic": BuildOptions("fp32", "api", profiles=(ShapeRange((1, 8), (BATCH, SEQ_LEN), (32, 128)),)),
    "api fp32 convolution, elementwise norm": BuildOptions("fp32", "api", dense="convolution", norm="elementwise"),
    "api tf32": BuildOptions("tf32", "api"),
    "onnx fp16": BuildOptions("fp16"),
    "api fp16": BuildOptions("fp16", "api"),
}


def main(data: Path, out: Path) -> None:
    """Builds every variant and compares."""
    network = load_model(data / "model", data / "adapters" / "sst2")
    tokens = np.load(data / "golden" / "minilm_sst2" / "tokens.npz")
    recorded = np.load(data / "golden" / "minilm_sst2" / "fp32.logits.npy")
    labels = tokens["labels"]
    feeds = [
        {name: tokens[f"dev_{name}"][i].astype(np.int64) for name in network.input_names}
        for i in range(len(tokens["dev_input_ids"]))
    ]
    rows = len(labels)
    with get_backend("onnxruntime").compile(network.fixed(BATCH, SEQ_LEN), "fp32") as cpu:
        reference = np.concatenate([cpu.infer(feed)["logits"] for feed in feeds])[:rows]
    results = {"recorded against CPU": float(np.abs(recorded[:rows] - reference).max())}
    print(json.dumps(results))
    backend = TensorRTBackend()
    for name, options in VARIANTS.items():
        dynamic = bool(options.profiles)
        source = Source("", str(data / "model"), str(data / "adapters" / "sst2"))
        if not dynamic:
            source = Source("", source.model, source.adapter, "classifier", BATCH, SEQ_LEN)
        graph = network.proto if dynamic else network.fixed(BATCH, SEQ_LEN)
        started = time.perf_counter()
        try:
            with backend.build(graph if options.network == "onnx" else source, options) as engine:
                build_s = time.perf_counter() - started
                logits = np.concatenate([engine.infer(feed)["logits"] for feed in feeds])[:rows]
                compute = np.median([engine.measure(feeds[0]).compute for _ in range(50)])
                results[name] = {
                    "difference": float(np.abs(logits - reference).max()),
                    "accuracy": float((logits.argmax(1) == labels).mean()),
                    "compute_ms": round(float(compute), 4),
                    "build_s": round(build_s, 1),
                    "notes": list(engine.notes),
                }
        except QuantkitError as error:
            results[name] = {"error": str(error)}
        print(name, json.dumps(results[name]), flush=True)
        out.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

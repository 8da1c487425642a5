"""An exported INT8 model through TensorRT's own parser, without quantkit: exported.py MODEL.onnx SST2.npz OUT.json.

MODEL.onnx is what `quantkit build --tensorrt-model` wrote (int8-tensorrt.onnx); SST2.npz holds the dev sentences as
tokens (plugins.py prepare). Built with INT8 and FP16 and with INT8 alone, run with PyCUDA, counted by the inspector.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pycuda.driver as cuda
import tensorrt as trt

BATCH, SEQ_LEN = 16, 64
WAYS = {"int8 + fp16": (trt.BuilderFlag.INT8, trt.BuilderFlag.FP16), "int8": (trt.BuilderFlag.INT8,)}


class Log(trt.ILogger):
    """Keeps what TensorRT warns of."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.lines: list[str] = []

    def log(self, severity: Any, message: str) -> None:
        """Warnings and errors only."""
        if severity <= trt.ILogger.WARNING and len(self.lines) < 40:
            self.lines.append(message[:300])


def build(log: Log, model: Path, flags: tuple[Any, ...]) -> bytes:
    """A plan of the file for batches of up to BATCH rows."""
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(model)):
        raise RuntimeError("; ".join(str(parser.get_error(i)) for i in range(parser.num_errors)))
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    for flag in flags:
        config.set_flag(flag)
    profile = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        profile.set_shape(network.get_input(i).name, (1, SEQ_LEN), (BATCH, SEQ_LEN), (BATCH, SEQ_LEN))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise RuntimeError("; ".join(log.lines[-3:]))
    return bytes(plan)


def evaluate(log: Log, plan: bytes, ids: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, dict[str, int], float]:
    """Logits, layers by kind of tactic, and the median of a full batch in milliseconds."""
    engine = trt.Runtime(log).deserialize_cuda_engine(plan)
    context, stream = engine.create_execution_context(), cuda.Stream()
    inspected = json.loads(engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON))
    names = [str(layer.get("TacticName") or layer.get("LayerType")) for layer in inspected["Layers"]]
    kinds = Counter("int8" if "i8i8" in n or "int8" in n.lower() or "imma" in n else "other" for n in names)
    given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    logits, times = [], []
    start, end = cuda.Event(), cuda.Event()
    for first in range(0, len(ids), BATCH):
        memory, result = {}, None
        rows = min(BATCH, len(ids) - first)
        for i in range(engine.num_io_tensors):
            name = engine.get_tensor_name(i)
            dtype = np.dtype(trt.nptype(engine.get_tensor_dtype(name)))
            if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
                context.set_input_shape(name, (rows, SEQ_LEN))
                memory[name] = cuda.to_device(np.ascontiguousarray(given[name][first : first + rows], dtype))
            else:
                result = np.empty((rows, 2), dtype)
                memory[name] = output = cuda.mem_alloc(result.nbytes)
            context.set_tensor_address(name, int(memory[name]))
        start.record(stream)
        if not context.execute_async_v3(stream.handle):
            raise RuntimeError("; ".join(log.lines[-3:]))
        end.record(stream)
        stream.synchronize()
        cuda.memcpy_dtoh(result, output)
        logits.append(result)
        if rows == BATCH:
            times.append(end.time_since(start))
    return np.concatenate(logits), dict(kinds), float(np.median(times))


def main(model: Path, tokens: Path, out: Path) -> None:
    """Builds, evaluates, writes."""
    cuda.init()
    held = cuda.Device(0).retain_primary_context()
    held.push()
    with np.load(tokens) as file:
        ids, mask, labels = file["ids"], file["mask"], file["labels"]
    found: dict[str, Any] = {"tensorrt": trt.__version__, "gpu": cuda.Device(0).name(), "model": model.name}
    for name, flags in WAYS.items():
        log, started = Log(), time.perf_counter()
        try:
            plan = build(log, model, flags)
            logits, kinds, ms = evaluate(log, plan, ids, mask)
            found[name] = {
                "build_s": round(time.perf_counter() - started, 1),
                "accuracy": float((logits.argmax(1) == labels).mean()),
                "rows": len(labels),
                "layers": kinds,
                "compute_ms": round(ms, 4),
            }
        except RuntimeError as error:
            found[name] = {"error": str(error)[:1000]}
        found[name]["log"] = log.lines
        print(name, json.dumps(found[name]), flush=True)
        out.write_text(json.dumps(found, indent=1))
    held.pop()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))

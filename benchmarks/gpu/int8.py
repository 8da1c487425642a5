"""Ways to an INT8 engine: which build, what they compute, how fast and how accurate: int8.py DATA OUT.json [WAY ...].

All-MiniLM-L6-v2 with the SST-2 adapter, 16 x 64 tokens, ranges from 128 training sentences. Every way is a graph with
Q/DQ pairs, or a table that TensorRT places itself; FP16 engines stand beside them. Builds run several at a time, so
build times are only rough; engines are timed afterwards, by turns.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from quantkit.backends import get_backend
from quantkit.backends.trt.backend import TensorRTBackend
from quantkit.backends.trt.options import BuildOptions, ShapeRange, Source
from quantkit.backends.trt.timing import TimingOptions, time_phases
from quantkit.calibrate import calibrate_histograms, make_calibrator
from quantkit.collect.collector import Collector
from quantkit.network.model import load_model
from quantkit.network.precision import PrecisionPlan
from quantkit.network.qdq import insert_qdq
from quantkit.pipeline.tables import table_from

BATCH, SEQ_LEN, CALIBRATION_BATCHES, AT_ONCE = 16, 64, 8, 6
DYNAMIC = (ShapeRange((1, 8), (BATCH, SEQ_LEN), (32, 128)),)


def parts_of_norms(proto: onnx.ModelProto) -> onnx.ModelProto:
    """LayerNormalization as mean, deviation, mean square, quotient, scale and shift."""
    model = onnx.ModelProto()
    model.CopyFrom(proto)
    nodes = []
    for node in model.graph.node:
        if node.op_type != "LayerNormalization":
            nodes.append(node)
            continue
        (x, gamma, beta), name = node.input, node.output[0]
        epsilon = numpy_helper.from_array(np.array(1e-12, np.float32), f"{name}.epsilon")
        model.graph.initializer.append(epsilon)
        for op, inputs, word in (
            ("ReduceMean", [x], "mean"),
            ("Sub", [x, f"{name}.mean"], "centred"),
            ("Mul", [f"{name}.centred"] * 2, "square"),
            ("ReduceMean", [f"{name}.square"], "variance"),
            ("Add", [f"{name}.variance", epsilon.name], "shifted"),
            ("Sqrt", [f"{name}.shifted"], "deviation"),
            ("Div", [f"{name}.centred", f"{name}.deviation"], "normal"),
            ("Mul", [f"{name}.normal", gamma], "scaled"),
            ("Add", [f"{name}.scaled", beta], ""),
        ):
            output = f"{name}.{word}" if word else name
            attributes = {"axes": [-1]} if op == "ReduceMean" else {}
            nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
    kept = onnx.GraphProto(node=nodes)
    del model.graph.node[:]
    model.graph.node.extend(kept.node)
    return model


def statically_quantized(proto: onnx.ModelProto, feeds: list[dict[str, np.ndarray]]) -> onnx.ModelProto:
    """The graph as onnxruntime's static quantization makes it: min-max, per channel, S8S8, products with weights."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(feeds)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.left, None)

    constants = {t.name for t in proto.graph.initializer}
    dense = [
        n.name for n in proto.graph.node if n.op_type == "MatMul" and n.input[1] in constants and "layer" in n.name
    ]
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder) / "a.onnx", Path(folder) / "b.onnx"
        onnx.save(proto, before)
        options = {"ActivationSymmetric": True, "WeightSymmetric": True}
        quantize_static(
            *(before, after, Reader()),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=dense,
            extra_options=options,
        )
        return onnx.load(after)


def main(data: Path, out: Path, wanted: list[str]) -> None:
    """Builds every way, then times and evaluates what was built."""
    network = load_model(data / "model", data / "adapters" / "sst2")
    tokens = np.load(data / "golden" / "minilm_sst2" / "tokens.npz")
    labels = tokens["labels"]

    def feeds_of(kind: str) -> list[dict[str, np.ndarray]]:
        count = len(tokens[f"{kind}_input_ids"])
        return [{n: tokens[f"{kind}_{n}"][i].astype(np.int64) for n in network.input_names} for i in range(count)]

    kind = next(k.split("_")[0] for k in tokens.files if k.endswith("_input_ids") and not k.startswith("dev"))
    evaluation, calibration = feeds_of("dev"), feeds_of(kind)[:CALIBRATION_BATCHES]
    fixed = network.fixed(BATCH, SEQ_LEN)
    names = network.activations()
    with Collector(names, aliases=network.aliases()) as collector:
        with get_backend("onnxruntime").tap(fixed, collector.collected) as tap:
            for feed in calibration:
                collector.update(tap.infer(feed), feed["attention_mask"])
        histograms = collector.histograms()
    calibrator = make_calibrator("mse")
    table = table_from(histograms, calibrator, calibrate_histograms(histograms, calibrator))
    source = Source("", str(data / "model"), str(data / "adapters" / "sst2"), "classifier", BATCH, SEQ_LEN)
    backend = TensorRTBackend()
    qdq = BuildOptions("int8", ranges="qdq")

    def pairs(mode: str, graph: onnx.ModelProto = fixed) -> onnx.ModelProto:
        return insert_qdq(graph, table, PrecisionPlan(mode, symmetric=True, int8_only=True)).proto

    def api(ranges: str, **changes: str) -> Callable[[], object]:
        return lambda: backend.build(source, BuildOptions("int8", "api", ranges, **changes), table)

    dynamic = BuildOptions("int8", ranges="qdq", profiles=DYNAMIC)
    # Those that take longest to build come first.
    ways: dict[str, Callable[[], object]] = {
        "api, fully connected, elementwise norm": api("dynamic_range", dense="fully_connected", norm="elementwise"),
        "api, convolution, elementwise norm": api("dynamic_range", dense="convolution", norm="elementwise"),
        "fp16 onnx": lambda: backend.build(fixed, BuildOptions("fp16")),
        "fp16 api": lambda: backend.build(source, BuildOptions("fp16", "api")),
        "gemm": lambda: backend.build(pairs("gemm"), qdq),
        "gemm, norms in parts": lambda: backend.build(parts_of_norms(pairs("gemm")), qdq),
        "ffn-only": lambda: backend.build(pairs("ffn-only"), qdq),
        "gemm+residual": lambda: backend.build(pairs("gemm+residual"), qdq),
        "gemm+residual, norms in parts": lambda: backend.build(parts_of_norms(pairs("gemm+residual")), qdq),
        "gemm+residual+mha": lambda: backend.build(pairs("gemm+residual+mha"), qdq),
        "gemm, changing shapes": lambda: backend.build(pairs("gemm", network.proto), dynamic),
        "onnxruntime static": lambda: backend.build(statically_quantized(fixed, calibration), qdq),
        "cache": lambda: backend.build(fixed, BuildOptions("int8", ranges="cache"), table),
        "dynamic range": lambda: backend.build(fixed, BuildOptions("int8", ranges="dynamic_range"), table),
        "api, matmul": api("dynamic_range"),
    }
    chosen = {name: way for name, way in ways.items() if not wanted or name in wanted}
    results: dict[str, dict[str, object]] = {}

    def build(name: str) -> None:
        started = time.perf_counter()
        try:
            chosen[name]().close()  # type: ignore[attr-defined]
            results[name] = {"build_s": round(time.perf_counter() - started, 1)}
        except Exception as error:
            results[name] = {"error": f"{type(error).__name__}: {error}"}
        print(name, results[name], flush=True)
        out.write_text(json.dumps(results, indent=2))

    with ThreadPoolExecutor(int(os.environ.get("AT_ONCE", AT_ONCE))) as pool:
        list(pool.map(build, chosen))
    built = [name for name in chosen if "error" not in results[name]]
    engines = [chosen[name]() for name in built]  # from the plan cache
    timings = time_phases(engines, evaluation[:8], TimingOptions(iterations=200, duration_s=3.0))  # type: ignore[arg-type]
    for name, engine, timing in zip(built, engines, timings, strict=True):
        logits = np.concatenate([engine.infer(feed)["logits"] for feed in evaluation])[: len(labels)]  # type: ignore[attr-defined]
        phases = timing.as_json()
        results[name] |= {
            "compute_ms": phases["compute_ms"]["median"],
            "accuracy": round(float((logits.argmax(1) == labels).mean()), 4),
            **engine.audit.as_json(),  # type: ignore[attr-defined]
            "kernel_list": [[kernel.name, kernel.precision, kernel.ms] for kernel in engine.audit.kernels],  # type: ignore[attr-defined]
        }
        told = {key: value for key, value in results[name].items() if key not in ("kernel_list", "scales_missing")}
        print(name, json.dumps(told), flush=True)
        out.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])

"""The other tools' side of the calibration benchmark; each function is one job in a child process.

All read the same model.onnx and feeds.npz. The calibrators of onnxruntime and ModelOpt are asked for every float tensor
of the graph, as quantkit is. "whole" rows are a tool's own `quantize`: fewer tensors, and a quantized graph in the end.
"""

from __future__ import annotations

import contextlib
import io
import time
from pathlib import Path
from typing import Any

import numpy as np
from calibration_setup import Json, read_feeds, without_telemetry

PEERS: dict[str, tuple[str, str]] = {
    "onnxruntime percentile": ("onnxruntime", "percentile"),
    "onnxruntime entropy, 2048 bins": ("onnxruntime", "entropy2048"),
    "onnxruntime entropy, default": ("onnxruntime", "entropy"),
    "onnxruntime minmax": ("onnxruntime", "minmax"),
    "ModelOpt max": ("modelopt", "max"),
    "ModelOpt entropy": ("modelopt", "entropy"),
    "ModelOpt quantize, whole": ("modelopt", "quantize"),
    "NNCF quantize, whole": ("nncf", "quantize"),
}
"""Row -> (package, what it is asked for)."""


def whole(job: Json) -> Json:
    """A peer's calibration from model file and token arrays to ranges, at `samples` sentences."""
    package, method = PEERS[job["peer"]]
    feeds = read_feeds(Path(job["folder"]), job["samples"], job["settings"]["batch"])
    with contextlib.redirect_stdout(io.StringIO()):
        if package == "nncf":
            answer = _nncf(job, feeds)
        else:
            answer = (_onnxruntime if package == "onnxruntime" else _modelopt)(job, feeds, method)
    return answer | {"samples": len(feeds) * job["settings"]["batch"]}


def model_only(job: Json) -> Json:
    """The peer's packages imported and the plain model run over the sentences by the engine that the peer uses."""
    package, _ = PEERS[job["peer"]]
    feeds = read_feeds(Path(job["folder"]), job["samples"], job["settings"]["batch"])
    path = str(Path(job["folder"]) / "model.onnx")
    if package == "nncf":
        without_telemetry()
        import nncf  # noqa: F401
        import openvino as ov

        core = ov.Core()
        hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": job["settings"]["threads"]}
        compiled = core.compile_model(core.read_model(path), "CPU", hints)
        for feed in feeds:
            compiled(feed)
        return {}
    if package == "modelopt":
        import modelopt.onnx.quantization  # noqa: F401
    import onnxruntime
    import onnxruntime.quantization

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # as both calibrators do
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    for feed in feeds:
        session.run(None, feed)
    return {}


class _Reader:
    """The batches in the form that onnxruntime's calibrators read."""

    def __init__(self, feeds: list[dict[str, np.ndarray]]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch, None at the end."""
        return next(self._feeds, None)


def _onnxruntime(job: Json, feeds: list[Any], method: str) -> Json:
    """create_calibrator, collect_data, compute_data, all tensors."""
    from onnxruntime.quantization import CalibrationMethod, calibrate

    kind = {"percentile": CalibrationMethod.Percentile, "minmax": CalibrationMethod.MinMax}
    options = {"num_bins": 2048, "num_quantized_bins": 128} if method == "entropy2048" else {}
    started = time.perf_counter()
    calibrator = calibrate.create_calibrator(
        Path(job["folder"]) / "model.onnx",
        augmented_model_path=str(Path(job["folder"]) / "augmented.onnx"),
        calibrate_method=kind.get(method, CalibrationMethod.Entropy),
        extra_options=options,
    )
    return _run(calibrator, feeds, started)


def _modelopt(job: Json, feeds: list[Any], method: str) -> Json:
    """ModelOpt's `quantize`, or its calibrators, which are onnxruntime's with methods replaced, for all nodes."""
    import onnx
    from modelopt.onnx.quantization.ort_utils import configure_ort
    from onnxruntime.quantization import CalibrationMethod, calibrate

    path = Path(job["folder"]) / "model.onnx"
    if method == "quantize":
        return _modelopt_quantize(job, feeds, path)
    nodes = [node.name for node in onnx.load(str(path), load_external_data=False).graph.node]
    started = time.perf_counter()
    options, _ = configure_ort([], [], calibration_eps=["cpu"])
    calibrator = calibrate.create_calibrator(
        path,
        nodes,  # ModelOpt's version of this function takes names of nodes here
        augmented_model_path=str(Path(job["folder"]) / "augmented.onnx"),
        calibrate_method=CalibrationMethod.Entropy if method == "entropy" else CalibrationMethod.MinMax,
        extra_options={"execution_providers": options["ExecutionProviders"], "symmetric": True},
    )
    return _run(calibrator, feeds, started)


def _modelopt_quantize(job: Json, feeds: list[Any], path: Path) -> Json:
    """modelopt.onnx.quantization.quantize with its default method, entropy: it chooses tensors and writes the graph."""
    import onnx
    from modelopt.onnx.quantization import quantize

    output = Path(job["folder"]) / "modelopt.onnx"
    data = {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}
    started = time.perf_counter()
    quantize(
        str(path),
        calibration_data=data,
        calibration_method="entropy",
        calibration_eps=["cpu"],
        output_path=str(output),
        high_precision_dtype="fp32",
        log_level="ERROR",
    )
    seconds = time.perf_counter() - started
    graph = onnx.load(str(output)).graph
    constants = {tensor.name for tensor in graph.initializer}
    quantized = [n for n in graph.node if n.op_type == "QuantizeLinear" and n.input[0] not in constants]
    return {"seconds": seconds, "tensors": len(quantized)}


def _run(calibrator: Any, feeds: list[Any], started: float) -> Json:
    """Collects and computes; bins and tensors as they came out."""
    calibrator.collect_data(_Reader(feeds))
    collected = time.perf_counter()
    ranges = calibrator.compute_data()
    done = time.perf_counter()
    collector = getattr(calibrator, "collector", None)
    bins = [len(h[0]) for h in collector.get_histogram_dict().values()] if collector else []
    return {
        "collect_s": collected - started,
        "search_s": done - collected,
        "seconds": done - started,
        "tensors": len(ranges.keys()),
        "bins": [min(bins), max(bins)] if bins else None,
    }


def _nncf(job: Json, feeds: list[Any]) -> Json:
    """nncf.quantize as documented for transformers: statistics, SmoothQuant, bias correction, the graph."""
    without_telemetry()
    import nncf
    import openvino as ov

    model = ov.Core().read_model(str(Path(job["folder"]) / "model.onnx"))
    started = time.perf_counter()
    quantized = nncf.quantize(model, nncf.Dataset(feeds), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(feeds))
    seconds = time.perf_counter() - started
    sources = [
        op.input_value(0).get_node().get_type_name()
        for op in quantized.get_ops()
        if op.get_type_name() == "FakeQuantize"
    ]
    return {"seconds": seconds, "tensors": sum(source not in ("Constant", "Convert") for source in sources)}


def search(job: Json) -> Json:
    """Milliseconds a tensor of the peers' searches, over every nth tensor of a few batches."""
    from calibration_jobs import workspace_of

    settings = job["settings"]
    workspace = workspace_of(settings)
    network = workspace.network
    sources = [name for name in network.activations() if name not in network.aliases()]
    chosen = sources[:: max(1, len(sources) // job["tensors"])]
    feeds = read_feeds(Path(job["folder"]), job["samples"], settings["batch"])
    arrays: dict[str, list[np.ndarray]] = {name: [] for name in chosen}
    proto = network.fixed(settings["batch"], settings["seq_len"])
    with workspace.backend.tap(proto, chosen, threads=settings["threads"]) as tap:
        for feed in feeds:
            for name, array in tap.infer(feed).items():
                arrays[name].append(np.array(array))
    values = {name: np.concatenate([part.ravel() for part in parts]) for name, parts in arrays.items()}
    rows = []
    for measure in (_search_onnxruntime, _search_modelopt_torch):
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                rows += measure(values, job)
        except ImportError as error:
            rows.append({"tool": measure.__name__.removeprefix("_search_"), "reason": f"not installed: {error.name}"})
    return {"rows": rows}


def _search_onnxruntime(values: dict[str, np.ndarray], job: Json) -> list[Json]:
    """get_entropy_threshold over one histogram of all values, and its percentile."""
    from onnxruntime.quantization.calibrate import HistogramCollector

    rows = []
    for label, method, bins in (
        ("entropy", "entropy", 2048),
        ("entropy, default", "entropy", 128),
        ("percentile", "percentile", 2048),
    ):
        times = []
        for name, array in values.items():
            collector = HistogramCollector(method, method == "percentile", bins, 128, 99.999, "same")
            (collector.collect_absolute_value if method == "percentile" else collector.collect_value)({name: array})
            times.append(_timed(collector.compute_collection_result))
        rows.append(_row("onnxruntime", label, bins, times))
    return rows


def _search_modelopt_torch(values: dict[str, np.ndarray], job: Json) -> list[Json]:
    """ModelOpt's torch calibrator, the one with 2048 bins; a few tensors, for it takes a second each."""
    import torch
    from modelopt.torch.quantization.calib.histogram import HistogramCalibrator

    few = list(values.values())[:: max(1, len(values) // job["slow_tensors"])][: job["slow_tensors"]]
    rows = []
    for method in ("entropy", "mse", "percentile"):
        times, failed = [], 0
        for array in few:
            calibrator = HistogramCalibrator()
            calibrator.collect(torch.from_numpy(np.abs(array)))
            try:
                times.append(_timed(lambda c=calibrator, m=method: c.compute_amax(m)))
            except RuntimeError:  # "Count mismatch": float32 counts no longer add up
                failed += 1
        row = _row("ModelOpt (torch)", method, 2048, times)
        rows.append(row | ({"reason": f"{failed} of {len(few)} tensors refused: count mismatch"} if failed else {}))
    return rows


def _timed(call: Any) -> float:
    """Milliseconds of one call."""
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1e3


def _row(tool: str, method: str, bins: int, times: list[float]) -> Json:
    """One row of the table of searches."""
    row: Json = {"tool": tool, "method": method, "bins": bins, "tensors": len(times)}
    if times:
        row |= {"ms": float(np.mean(times)), "median_ms": float(np.median(times)), "max_ms": float(np.max(times))}
    return row

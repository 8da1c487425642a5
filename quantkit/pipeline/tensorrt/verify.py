"""`quantkit verify --backend tensorrt`: TensorRT's calibrator and ours on the same batches, tensor by tensor."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from quantkit.backends import BACKENDS, get_backend
from quantkit.backends.trt.backend import Calibration, TensorRTBackend
from quantkit.backends.trt.options import CalibratorOptions
from quantkit.calibrate import calibrate_histograms, make_calibrator
from quantkit.collect.histogram import Histogram
from quantkit.data.batches import TokenBatches
from quantkit.data.tokenize import encode
from quantkit.errors import InputError, TableError
from quantkit.pipeline.collection import collect_batches
from quantkit.pipeline.settings import Settings
from quantkit.pipeline.verify import Row, compare
from quantkit.pipeline.workspace import Workspace
from quantkit.types import Watcher

METHODS = {"entropy2": "entropy", "entropy": "entropy", "minmax": "minmax", "legacy": "legacy"}
"""TensorRT's calibrator -> our method."""
HALF_A_BIN = 0.5


def compare_calibrators(
    settings: Settings, calibrators: tuple[CalibratorOptions, ...], watcher: Watcher, collector: str = ""
) -> dict[str, Any]:
    """Calibrates by TensorRT and by us, and compares.

    Args:
        settings: model, task and calibration data; ranges follow TensorRT's rule whatever they say.
        calibrators: TensorRT's calibrators to run.
        watcher: who is told how it goes.
        collector: backend that runs the model for us; empty takes the first one on a CPU that is installed.

    Returns:
        JSON value: "collector", "batches", "seconds", and in "calibrators" for each its counts and a row a tensor.

    Raises:
        BackendError: TensorRT cannot calibrate; the step is named.
        CalibrationError: a batch is bad, or activations hold NaN or Inf.
        TableError: the two have no tensor in common.
    """
    backend = TensorRTBackend(reuse=False)
    backend.require()
    settings = replace(settings, backend=collector or first_cpu_backend(), order_free=False, ignore_padding=False)
    workspace = Workspace(settings, watcher)
    encoded = encode(workspace.tokenizer, workspace.sample.examples.texts, settings.seq_len)
    batches = TokenBatches(encoded, settings.batch, settings.seq_len, fill="drop")
    started = time.perf_counter()
    histograms = collect_batches(workspace, batches)
    seconds = time.perf_counter() - started
    graph = workspace.network.fixed(settings.batch, settings.seq_len)
    results = []
    for options in calibrators:
        with watcher.stage(f"TensorRT's {options.algorithm} calibrator"):
            theirs = backend.calibrate(graph, batches, options)
        results.append(comparison(theirs, histograms, options))
    return {
        "collector": settings.backend,
        "batches": len(batches),
        "seconds": round(seconds, 3),
        "calibrators": results,
    }


def comparison(theirs: Calibration, histograms: Mapping[str, Histogram], options: CalibratorOptions) -> dict[str, Any]:
    """One calibrator's table against what our histograms give.

    Raises:
        TableError: not one tensor is common.
    """
    parameters = {"quantile": options.quantile, "regression_cutoff": options.cutoff}
    method = METHODS[options.algorithm]
    calibrator = make_calibrator(method, **(parameters if method == "legacy" else {}))
    common = {name: histograms[name] for name in theirs.table.names if name in histograms}
    if not common:
        raise TableError("TensorRT's cache and the collected histograms have no tensor in common.")
    started = time.perf_counter()
    thresholds = calibrate_histograms(common, calibrator)
    seconds = time.perf_counter() - started
    rows = [compare(name, theirs.table, common[name], thresholds) for name in common]
    same = sum(in_same_bin(row) for row in rows)
    found: dict[str, Any] = {
        "calibrator": options.algorithm,
        "method": method,
        "tensorrt_s": theirs.seconds,
        "quantkit_s": round(seconds, 3),
        "compared": len(rows),
        "equal": sum(row.verdict == "equal" for row in rows),
        "same_bin": same,
        "share_same_bin": round(same / len(rows), 5),
        "only_tensorrt": [name for name in theirs.table.names if name not in histograms],
        "only_quantkit": [name for name in histograms if name not in theirs.table],
        "tensors": [row.as_json() for row in rows],
    }
    if theirs.histograms:
        both = [name for name in theirs.histograms if name in histograms]
        equal = sum(bool((theirs.histograms[n].counts == histograms[n].counts).all()) for n in both)
        found |= {"histograms_compared": len(both), "histograms_equal": equal}
    return found


def in_same_bin(row: Row) -> bool:
    """Whether the two thresholds are less than half a bin of the histogram apart."""
    return row.verdict == "equal" or abs(row.bins) < HALF_A_BIN


def first_cpu_backend() -> str:
    """The first installed backend that runs on a CPU, else TensorRT itself.

    Raises:
        InputError: none is installed.
    """
    for name in (*(n for n in BACKENDS if n != "tensorrt"), "tensorrt"):
        if get_backend(name).available() is None:
            return name
    raise InputError("No backend is installed that could run the model.", "pip install onnxruntime")

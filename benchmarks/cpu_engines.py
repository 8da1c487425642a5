"""The engines of benchmarks/cpu.py: each made from the same FP32 graph and the same calibration sentences.

Peers run as their own documentation says, with the settings that suit a BERT on this kind of CPU: onnxruntime with
uint8 activations and int8 weights a channel, NNCF with its model type for transformers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from quantkit.backends import get_backend
from quantkit.backends.base import CheckedRunner, EngineInfo
from quantkit.data.batches import TokenBatches
from quantkit.data.tokenize import encode
from quantkit.pipeline.calibration import Calibrated, calibrate
from quantkit.pipeline.candidates import build_candidate
from quantkit.pipeline.collection import batches_of
from quantkit.pipeline.run import plan_of
from quantkit.pipeline.settings import threads_of
from quantkit.pipeline.workspace import Workspace

Shape = tuple[int, int]


def main_metric(task: Any) -> str:
    """The metric that a task is judged by."""
    return str(task.metrics[0])


@dataclass
class Setup:
    """One task: the FP32 network, the calibration batches, the evaluation rows."""

    workspace: Workspace

    @property
    def threads(self) -> int:
        """Threads of every engine."""
        return threads_of(self.workspace.settings)

    @cached_property
    def calibrated(self) -> Calibrated:
        """Quantkit's ranges."""
        return calibrate(self.workspace)

    @cached_property
    def calibration(self) -> list[dict[str, np.ndarray]]:
        """The calibration batches that everybody sees; all of one shape."""
        batches = batches_of(self.workspace)
        return [
            {name: feed[name] for name in self.workspace.network.input_names}
            for feed, valid in zip(batches, batches.valid, strict=True)
            if valid == batches.batch
        ]

    @cached_property
    def _order(self) -> np.ndarray:
        encoded = encode(self.workspace.tokenizer, self.workspace.evaluation.texts, self.workspace.settings.seq_len)
        return np.argsort(encoded.lengths, kind="stable")

    @property
    def labels(self) -> np.ndarray:
        """Labels of the evaluation rows, the short rows first."""
        return np.asarray(self.workspace.evaluation.labels)[self._order]

    def sorted_batches(self) -> TokenBatches:
        """The evaluation rows, the short ones first, padded no further than their batch needs."""
        texts = self.workspace.evaluation.take(self._order).texts
        settings = self.workspace.settings
        return TokenBatches(encode(self.workspace.tokenizer, texts, settings.seq_len), settings.batch)

    def full_batches(self, count: int, shape: Shape) -> list[dict[str, np.ndarray]]:
        """Batches of evaluation rows in file order, of exactly this shape; longer rows are cut."""
        texts = self.workspace.evaluation.texts[: count * shape[0]]
        return list(TokenBatches(encode(self.workspace.tokenizer, texts, shape[1]), *shape, fill="pad"))

    @cached_property
    def nncf_model(self) -> Any:
        """The OpenVINO model that NNCF's post-training quantization makes of the graph with free shapes."""
        import logging

        import nncf as library

        from quantkit.backends.openvino import runtime

        logging.getLogger("nncf").setLevel(logging.ERROR)
        model = runtime.core().read_model(self.workspace.network.proto.SerializeToString())
        data = library.Dataset(self.calibration)
        kind = library.ModelType.TRANSFORMER
        return library.quantize(model, data, subset_size=len(self.calibration), model_type=kind)

    def graph(self, shape: Shape | None) -> onnx.ModelProto:
        """The FP32 graph, with free shapes or one."""
        network = self.workspace.network
        return network.proto if shape is None else network.fixed(*shape)


def quantkit(setup: Setup, shape: Shape | None, **changes: Any) -> CheckedRunner:
    """Quantkit's INT8 with its defaults, or with another placement."""
    from dataclasses import replace

    graph = setup.graph(shape)
    plan = replace(plan_of(setup.workspace.settings, setup.workspace.backend), **changes)
    placed = build_candidate(setup.workspace, graph, setup.calibrated.table, plan)
    return get_backend("openvino").compile(placed.proto, "int8", threads=setup.threads)


def nncf_at(setup: Setup, shape: Shape | None) -> Any:
    """NNCF's model with free shapes, or a copy of it with one."""
    model = setup.nncf_model.clone()
    if shape is not None:
        model.reshape({port: list(shape) for port in model.inputs})
    return model


def nncf(setup: Setup, shape: Shape | None) -> CheckedRunner:
    """NNCF's model as an engine."""
    from quantkit.backends.openvino import engine
    from quantkit.backends.openvino.execution import matmul_names, read_execution

    quantized = nncf_at(setup, shape)
    names = matmul_names(quantized)
    compiled = engine.compile_model(quantized, "int8", setup.threads)
    found = read_execution(compiled, names)
    info = EngineInfo("int8", found.compute, 0, found.int8_ops, found.float_ops)
    return engine.OpenVINOEngine(info, compiled, setup.graph(shape))


class Reader:
    """What onnxruntime's calibration reads batches from."""

    def __init__(self, feeds: list[dict[str, np.ndarray]]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch, None after the last."""
        return next(self._feeds, None)


def ort_static(setup: Setup, shape: Shape | None) -> CheckedRunner:
    """Onnxruntime's static quantization: Q/DQ, uint8 activations, int8 weights a channel, min-max."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    with tempfile.TemporaryDirectory(prefix="cpu-") as folder:
        source, target = Path(folder) / "fp32.onnx", Path(folder) / "static.onnx"
        onnx.save(setup.workspace.network.proto, str(source))
        quantize_static(
            str(source),
            str(target),
            Reader(setup.calibration),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            calibrate_method=CalibrationMethod.MinMax,
            op_types_to_quantize=["MatMul"],
            extra_options={"MatMulConstBOnly": True},
        )
        return ort_engine(setup, onnx.load(str(target)))


def ort_dynamic(setup: Setup, shape: Shape | None) -> CheckedRunner:
    """Onnxruntime's dynamic quantization: int8 weights a channel, activations quantized while running."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory(prefix="cpu-") as folder:
        source, target = Path(folder) / "fp32.onnx", Path(folder) / "dynamic.onnx"
        onnx.save(setup.workspace.network.proto, str(source))
        quantize_dynamic(str(source), str(target), weight_type=QuantType.QInt8, per_channel=True)
        return ort_engine(setup, onnx.load(str(target)))


def ort_engine(setup: Setup, proto: onnx.ModelProto) -> CheckedRunner:
    """A session with onnxruntime's own defaults."""
    from quantkit.backends.ort import runtime
    from quantkit.backends.ort.engine import OnnxRuntimeEngine

    data = proto.SerializeToString()
    info = EngineInfo("int8", "int8+f32", len(data))
    return OnnxRuntimeEngine(info, runtime.session(data, setup.threads), setup.workspace.network.proto)


def plain(backend: str, precision: str) -> Callable[[Setup, Shape | None], CheckedRunner]:
    """Quantkit's own engine of the FP32 graph."""
    return lambda setup, shape: get_backend(backend).compile(setup.graph(shape), precision, threads=setup.threads)  # type: ignore[arg-type]


ENGINES: dict[str, Callable[[Setup, Shape | None], CheckedRunner]] = {
    "openvino fp32": plain("openvino", "fp32"),
    "onnxruntime fp32": plain("onnxruntime", "fp32"),
    "openvino half": plain("openvino", "fp16"),
    "onnxruntime static": ort_static,
    "onnxruntime dynamic": ort_dynamic,
    "nncf": nncf,
    "quantkit": quantkit,
    "quantkit gemm": lambda setup, shape: quantkit(setup, shape, mode="gemm"),
}


def make(name: str, setup: Setup, shape: Shape | None) -> CheckedRunner:
    """An engine for free shapes (None) or for one."""
    return ENGINES[name](setup, shape)

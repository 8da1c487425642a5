"""INT8 on the GPU: TensorRT's calibrators, tables in builds, audits."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest

from quantkit.backends.trt.options import CALIBRATORS, BuildOptions, CalibratorOptions, Source
from quantkit.calibrate import calibrate_histograms, make_calibrator
from quantkit.collect.collector import Collector
from quantkit.errors import CalibrationError, TableError
from quantkit.network.precision import PrecisionPlan
from quantkit.network.qdq import insert_qdq
from quantkit.pipeline.tables import table_from
from quantkit.tables.table import CalibrationTable, Entry

pytestmark = pytest.mark.gpu


class Batches:
    """Some feeds as a BatchSource."""

    def __init__(self, feeds) -> None:
        self.feeds = feeds

    def __len__(self) -> int:
        return len(self.feeds)

    def __iter__(self):
        return iter(self.feeds)


@pytest.fixture
def batches(feed):
    return Batches([feed(4, 16, seed) for seed in range(8)])


@pytest.fixture
def histograms(network, batches):
    from quantkit.backends import get_backend

    names = network.activations()
    warnings.simplefilter("ignore")  # without numba histograms are counted with NumPy, which warns
    with Collector(names, aliases=network.aliases()) as collector:
        with get_backend("onnxruntime").tap(network.fixed(4, 16), collector.collected) as tap:
            for one in batches:
                collector.update(tap.infer(one), one["attention_mask"])
        return collector.histograms()


@pytest.mark.parametrize("algorithm", list(CALIBRATORS))
def test_tensorrt_s_calibrators_agree_with_ours(backend, network, batches, histograms, algorithm) -> None:
    theirs = backend.calibrate(network.fixed(4, 16), batches, CalibratorOptions(algorithm))
    method = "entropy" if algorithm.startswith("entropy") else algorithm
    common = {name: histograms[name] for name in theirs.table.names if name in histograms}
    assert len(common) >= 10
    ours = calibrate_histograms(common, make_calibrator(method))
    apart = [
        name
        for name in common
        if abs(theirs.table[name].amax - ours[name].amax) > 0.5 * max(common[name].bin_width, 1e-6 * ours[name].amax)
    ]
    assert len(apart) <= max(1, len(common) // 20), apart
    assert (len(theirs.histograms) > 0) == (algorithm == "legacy")


@pytest.mark.parametrize("ranges", ["cache", "dynamic_range"])
@pytest.mark.parametrize("way", ["onnx", "api"])
def test_a_table_is_used(backend, network, tiny_bert_dir, histograms, feed, reference, way, ranges) -> None:
    calibrator = make_calibrator("minmax")
    table = table_from(histograms, calibrator, calibrate_histograms(histograms, calibrator))
    given = feed(4, 16)
    source = network.fixed(4, 16) if way == "onnx" else Source("", str(tiny_bert_dir), batch=4, seq_len=16)
    with replace(backend, timeout_s=120).build(source, BuildOptions("int8", way, ranges, level=0), table) as engine:
        assert np.abs(engine.infer(given)["logits"] - reference(given)).max() < 0.5
        assert len(engine.audit.scales_used) > 50


def test_q_dq_pairs(backend, network, histograms, feed, reference) -> None:
    calibrator = make_calibrator("minmax")
    table = table_from(histograms, calibrator, calibrate_histograms(histograms, calibrator))
    graph = insert_qdq(network.fixed(4, 16), table, PrecisionPlan("gemm", symmetric=True, int8_only=True)).proto
    given = feed(4, 16)
    for precision in ("int8", "int8+fp32"):
        with backend.compile(graph, precision) as engine:
            assert np.abs(engine.infer(given)["logits"] - reference(given)).max() < 0.5
            assert engine.audit.layers


def test_missing_tensors_are_listed_and_a_foreign_table_is_refused(backend, network, histograms) -> None:
    calibrator = make_calibrator("minmax")
    table = table_from(histograms, calibrator, calibrate_histograms(histograms, calibrator))
    some = CalibrationTable({name: table[name] for name in table.names[:20]}, "minmax")
    with backend.build(network.fixed(4, 16), BuildOptions("int8", ranges="cache", level=0), some) as engine:
        assert set(engine.audit.scales_missing) == set(network.activations()) - set(some.names)
    with pytest.raises(TableError, match="another model's"):
        foreign = CalibrationTable({"nothing": Entry(np.float32(1))})
        backend.build(network.fixed(4, 16), BuildOptions("int8", ranges="cache", level=0), foreign)


def test_a_bad_batch_raises(backend, network, feed) -> None:
    class Bad(Batches):
        def __iter__(self):
            yield feed(4, 16)
            yield feed(3, 16)

    with pytest.raises(CalibrationError, match="batch 1"):
        backend.calibrate(network.fixed(4, 16), Bad([0, 0]), CalibratorOptions("minmax"))

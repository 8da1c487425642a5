"""TensorRT's attention plugin and linear layers in engines: the CPU's logits, sentences of different lengths."""

from __future__ import annotations

import numpy as np
import pytest

from quantkit.backends.trt import runtime
from quantkit.backends.trt.options import BuildOptions, Mix, ShapeRange, Source
from quantkit.backends.trt.plugins import library

pytestmark = pytest.mark.gpu

PROFILE = ShapeRange((1, 2), (4, 32), (8, 48))


@pytest.fixture(autouse=True)
def _attention_plugin() -> None:
    able = runtime.table()
    if reason := able.refusal("plugins") or able.refusal("attention plugin"):
        pytest.skip(reason)


@pytest.fixture
def exact(tiny_bert_dir, on_the_cpu):
    """CPU logits of a feed, and a table of min-max ranges."""
    return on_the_cpu(tiny_bert_dir)


@pytest.mark.parametrize(
    "mix",
    [
        Mix(linear="convolution", attention="tensorrt", norms="tensorrt", sums="half"),
        Mix(linear="convolution", attention="tensorrt"),
        Mix(linear="own", attention="tensorrt"),
    ],
    ids=["theirs", "our-norms", "our-linear"],
)
@pytest.mark.parametrize("precision, tolerance", [("fp16", 0.02), ("int8", 0.2)])
def test_logits(backend, tiny_bert_dir, exact, feed, precision: str, tolerance: float, mix: Mix) -> None:
    """Heads of 16 are filled up to the kernel's width."""
    if mix.norms == "auto" and not library.is_built():
        pytest.skip("our plugins are not built")
    if mix.linear == "own" and (reason := runtime.table().refusal("own linear")):
        pytest.skip(reason)
    ranges = "dynamic_range" if precision == "int8" else ""
    options = BuildOptions(precision, "plugins", ranges, (PROFILE,), packed=True, mix=mix)
    given = feed(5, 40)
    logits, table = exact(given)
    with backend.build(Source("", str(tiny_bert_dir)), options, table if ranges else None) as engine:
        for batch in (given, feed(8, 48, 1), feed(1, 7, 2)):
            expected, _ = exact(batch)
            found = engine.infer(batch)["logits"]
            assert np.abs(found - expected).max() < tolerance * np.abs(logits).max()
        assert any("attention plugin" in note for note in engine.notes)
        if engine.audit and engine.audit.kernels:
            assert engine.audit.fused_attention == 2
            if precision == "int8":
                # Where our plugins do not end the network, TensorRT may make the classifier's few columns in FP32.
                ends = 1 if mix.norms == "tensorrt" else 0
                assert engine.int8_ops >= 8 and engine.audit.gemms.get("fp32", 0) <= ends

"""Engines of our plugins: the CPU's logits, packed and padded alike, INT8 where it is said to be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from quantkit.backends.trt.options import BuildOptions, ShapeRange, Source
from quantkit.errors import QuantkitError

pytestmark = pytest.mark.gpu

PROFILE = ShapeRange((1, 2), (4, 16), (8, 48))


@pytest.fixture(scope="module")
def wide(tiny_bert_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny BERT with one head of 32."""
    folder = tmp_path_factory.mktemp("wide") / "model"
    shutil.copytree(tiny_bert_dir, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_attention_heads": 1}))
    return folder


@pytest.fixture(scope="module", autouse=True)
def _library() -> None:
    """`quantkit plugins build` was run, or QUANTKIT_PLUGINS names a library."""
    from quantkit.backends.trt.plugins import library

    try:
        library.kernels()
    except QuantkitError as error:
        pytest.skip(str(error))


@pytest.fixture
def exact(wide: Path, on_the_cpu):
    """CPU logits of a feed, and a table of min-max ranges."""
    return on_the_cpu(wide)


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("precision, tolerance", [("fp16", 0.01), ("int8", 0.12)])
def test_logits(backend, wide, exact, feed, precision: str, tolerance: float, graphs: bool) -> None:
    from dataclasses import replace

    given = feed(5, 40)
    logits, table = exact(given)
    ranges = "dynamic_range" if precision == "int8" else ""
    found = []
    for packed in (False, True):
        options = BuildOptions(precision, "plugins", ranges, (PROFILE,), packed=packed)
        own = replace(backend, graphs=graphs)
        with own.build(Source("", str(wide)), options, table if ranges else None) as engine:
            answers = [engine.infer(given)["logits"] for _ in range(4)]
            for other in answers[1:]:
                np.testing.assert_array_equal(other, answers[0])
            assert not engine.graph_refusal
            found.append(answers[0])
            if precision == "int8" and engine.audit and engine.audit.kernels:
                assert engine.int8_ops == 8 and engine.audit.gemms.get("fp32", 0) == 0
    assert np.abs(found[0] - logits).max() < tolerance * np.abs(logits).max()
    np.testing.assert_allclose(found[1], found[0], atol=1e-3 * np.abs(logits).max())

"""The stand-in for TensorRT and PyCUDA, in this process and in the building one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from trt_helpers import fake_tensorrt

HERE = Path(__file__).resolve().parent


@pytest.fixture
def fake_trt() -> Iterator[None]:
    """TensorRT 8.6.0 on an H100, as far as names and protocols go."""
    with fake_tensorrt():
        yield


@pytest.fixture
def network(tiny_bert_dir: Path):
    """The tiny BERT as a Network."""
    from quantkit.network.model import load_model

    return load_model(tiny_bert_dir)


@pytest.fixture
def make_feed():
    """Makes feeds: make_feed(batch, seq_len, seed), rows of different lengths."""
    import numpy as np

    def make(batch: int, seq_len: int, seed: int = 0) -> dict[str, np.ndarray]:
        draw = np.random.default_rng(seed)
        mask = np.zeros((batch, seq_len), np.int64)
        for row in mask:
            row[: draw.integers(2, seq_len + 1)] = 1
        ids = draw.integers(5, 100, (batch, seq_len)) * mask
        return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}

    return make


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plugins compiled for the CPU.

    A machine stands in the place of CUDA and of the kernels' PTX (emulator/), and as much of TensorRT's interface
    as they use, with a host that does what TensorRT does with a plugin (emulator_trt/).
    """
    from filelock import FileLock

    from quantkit.backends.trt.plugins.compiler import sources

    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler")
    # Test processes side by side share what one of them compiled.
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "emulated"
    library = folder / "libemulated.so"
    with FileLock(f"{folder}.lock"):
        if library.is_file():
            return library
        folder.mkdir()
        own = [*(HERE / "emulator").iterdir(), *(HERE / "emulator_trt").iterdir()]
        replaced = {path.name for path in own}
        for path in [*own, *(source for source in sources() if source.name not in replaced)]:
            shutil.copy(path, folder)
        units = sorted(str(path) for path in folder.iterdir() if path.suffix in (".cu", ".cpp"))
        options = ["-O2", "-march=native", "-std=c++17", "-shared", "-fPIC", "-fvisibility=hidden", f"-I{folder}"]
        command = ["g++", *options, "-x", "c++", *units, "-o", library, "-ldl"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return library


@pytest.fixture
def wide_bert_dir(tiny_bert_dir: Path, tmp_path: Path) -> Path:
    """The tiny BERT with one head of 32, as the plugins want it."""
    folder = tmp_path / "wide"
    shutil.copytree(tiny_bert_dir, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_attention_heads": 1}))
    return folder


@pytest.fixture
def cpu(wide_bert_dir: Path):
    """FP32 logits and a min-max table of the wide BERT, from the CPU."""

    import quantkit
    from quantkit.backends import get_backend
    from quantkit.network.model import load_model

    network = load_model(wide_bert_dir)

    def run(feed: dict[str, Any]) -> Any:
        with get_backend("onnxruntime").compile(network.fixed(*feed["input_ids"].shape), "fp32") as engine:
            return engine.infer(feed)["logits"]

    def table(feed: dict[str, Any]):
        names = network.activations()
        with get_backend("onnxruntime").tap(network.fixed(*feed["input_ids"].shape), names) as tap:
            return quantkit.calibrate_arrays([{n: a.copy() for n, a in tap.infer(feed).items()}], method="minmax")

    run.table = table
    return run

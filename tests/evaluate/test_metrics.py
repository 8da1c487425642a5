"""Metrics through the `evaluate` library: no network, no files, clear errors."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from quantkit.errors import DataError, UnknownNameError
from quantkit.evaluate.metrics import METRICS, Score, compute

OFFLINE = """
import pathlib, socket, sys, warnings

def refuse(*args, **kwargs):
    raise AssertionError("a metric asked for the network")

socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
from quantkit.evaluate.metrics import METRICS, compute
assert "evaluate" not in sys.modules, "importing the metrics must not import evaluate"
scores = compute(METRICS, [0, 1, 1, 0, 1, 1], [0, 1, 0, 0, 1, 1])
assert 0 < scores["accuracy"].value < 1
files = {str(p.relative_to(p.home())) for p in pathlib.Path.home().rglob("*") if p.is_file()}
print(sorted(files - {".cache/huggingface/hub/version.txt"}))  # transformers 4 writes it when it is imported
"""


def test_no_network_no_files_no_noise(tmp_path):
    """Every module is made and used with sockets blocked and an empty home, which stays empty; nothing is said."""
    import os

    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "XDG_", "TRANSFORMERS_"))}
    environment = kept | {"HOME": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    result = subprocess.run([sys.executable, "-c", OFFLINE], capture_output=True, text=True, env=environment)
    assert (result.returncode, result.stdout, result.stderr) == (0, "[]\n", "")


def test_scores_come_with_errors_and_direction():
    scores = compute(["accuracy", "f1"], [1, 0, 1, 1], np.array([1, 1, 1, 0]))
    assert list(scores) == ["accuracy", "f1"]
    assert scores["accuracy"] == Score(0.5, 0.25, higher_is_better=True)
    assert scores["f1"].as_json() == {
        "value": pytest.approx(2 / 3),
        "stderr": pytest.approx(math_f1_stderr(2, 2)),
        "higher_is_better": True,
    }


def math_f1_stderr(hits: int, wrong: int) -> float:
    return (4 * hits * wrong * (hits + wrong)) ** 0.5 / (2 * hits + wrong) ** 2


def test_scores_keep_float64_precision():
    draw = np.random.default_rng(1)
    x, y = 1e6 + draw.random(100), draw.random(100)
    assert compute(["pearson"], x, y)["pearson"].value == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-9)


@pytest.mark.parametrize("name", sorted(METRICS))
def test_modules_are_evaluate_metrics_of_their_own(name):
    import evaluate

    metric = METRICS[name]()
    assert isinstance(metric, evaluate.Metric)
    assert metric.name == name
    for prediction, reference in zip([1, 0, 1, 1, 0], [1, 0, 0, 1, 1], strict=True):
        metric.add_batch(predictions=[prediction], references=[reference])
    result = metric.compute()
    assert set(result) == {name, f"{name}_stderr"}
    assert result[name] == compute([name], [1, 0, 1, 1, 0], [1, 0, 0, 1, 1])[name].value


def test_modules_can_keep_rows_in_files(tmp_path):
    metric = METRICS["accuracy"](keep_in_memory=False, cache_dir=str(tmp_path))
    assert metric.compute(predictions=[1, 0], references=[1, 1])["accuracy"] == 0.5
    assert list(tmp_path.iterdir())


def test_metric_names_say_did_you_mean():
    with pytest.raises(UnknownNameError, match="Did you mean accuracy"):
        compute(["acuracy"], [1], [1])


@pytest.mark.parametrize(
    ("predictions", "references", "words"),
    [
        ([], [], "shapes"),
        ([1], [1, 0], r"shapes \(1,\) and \(2,\)"),
        ([[1]], [[1]], "shapes"),
        ([0.5, float("nan")], [1.0, 2.0], "prediction of row 1 is nan"),
        ([0.5, 1.0], [float("inf"), 2.0], "reference of row 0 is inf"),
    ],
)
def test_rows_that_cannot_be_judged(predictions, references, words):
    with pytest.raises(DataError, match=words):
        compute(["pearson"], predictions, references)

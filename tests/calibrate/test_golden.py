"""A second set of TensorRT 8.6 recordings, kept in the checkout: reproduced bit for bit from its own histograms."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from quantkit.calibrate import make_calibrator
from quantkit.collect.histogram import Histogram

RECORDED = Path(__file__).parents[1] / "golden/trt860/synthetic2.npz"
RUNS = (
    "entropy2_nb1",
    "entropy2_nb2",
    "entropy2_nb6",
    "entropy_nb6",
    "minmax_nb6",
    "legacy_q1.0_c1.0_nb1",
    "legacy_q1.0_c1.0_nb2",
    "legacy_q1.0_c1.0_nb6",
    "legacy_q0.5_c1.0_nb1",
    "legacy_q0.9999_c0.75_nb6",
    "legacy_q0.9999_c0.5_nb1",
    "legacy_q0.9999_c0.5_nb2",
    "legacy_q0.999_c0.25_nb6",
    "legacy_q0.75_c0.1_nb2",
    "legacy_q0.9_c0.0_nb6",
)


@pytest.fixture(scope="module")
def recorded() -> dict[str, np.ndarray]:
    with np.load(RECORDED, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


@pytest.fixture(scope="module")
def histograms(recorded) -> list[Histogram]:
    rows = zip(recorded["counts"], recorded["upper"].tolist(), recorded["amax"].tolist(), strict=True)
    return [Histogram(counts, upper, amax, -amax, amax, 0, 0, 0, "tensorrt") for counts, upper, amax in rows]


def test_the_list_of_runs_is_complete(recorded):
    assert sorted(recorded["runs"].tolist()) == sorted(RUNS)


@pytest.mark.parametrize("run", RUNS)
def test_scales_are_tensorrts(run, recorded, histograms):
    method, quantile, cutoff, batches = re.fullmatch(r"([a-z]+)2?(?:_q(.+)_c(.+))?_nb(\d)", run).groups()
    parameters = {"quantile": float(quantile), "regression_cutoff": float(cutoff)} if quantile else {}
    calibrator = make_calibrator(method, **parameters)
    rows = recorded["histogram"][recorded["batches"].tolist().index(int(batches))]
    scales = recorded["scale_bits"][recorded["runs"].tolist().index(run)].view(np.float32)
    found = np.array([calibrator.compute(histograms[row]).scale for row in rows])
    different = found.view(np.uint32) != scales.view(np.uint32)
    assert not recorded["names"][different].tolist()
    assert found.size == 275

"""Shape ranges, build options, jobs as JSON."""

from __future__ import annotations

import json

import pytest

from quantkit.backends.trt.capabilities import Gpu, capabilities
from quantkit.backends.trt.options import BuildOptions, CalibratorOptions, Job, Outcome, ShapeRange, Source
from quantkit.backends.trt.versions import Version
from quantkit.errors import BackendError, InputError, UnknownNameError

H100 = Gpu("NVIDIA H100", (9, 0))


def test_shape_ranges_are_parsed() -> None:
    assert ShapeRange.parse("1x8:16x64:32x128") == ShapeRange((1, 8), (16, 64), (32, 128))
    assert ShapeRange.parse("16x64") == ShapeRange.fixed(16, 64)
    assert ShapeRange.parse("1x8:4x16:8x32").holds((8, 8))
    assert not ShapeRange.parse("1x8:4x16:8x32").holds((9, 8))


@pytest.mark.parametrize("text", ["", "16", "1x2:3x4", "axb", "1x8:2x16:1x32", "0x8", "1x2x3"])
def test_bad_ranges_are_errors(text: str) -> None:
    with pytest.raises(InputError):
        ShapeRange.parse(text)


@pytest.mark.parametrize(
    "changes, error",
    [
        ({"precision": "fp8"}, UnknownNameError),
        ({"network": "caffe"}, UnknownNameError),
        ({"dense": "magic"}, UnknownNameError),
        ({"precision": "int8"}, InputError),
        ({"precision": "int8", "ranges": "guess"}, InputError),
        ({"ranges": "cache"}, InputError),
        ({"workspace_mb": 0}, InputError),
        ({"level": 6}, InputError),
    ],
)
def test_bad_options_are_errors(changes: dict, error: type[Exception]) -> None:
    with pytest.raises(error):
        BuildOptions(**changes)


def test_which_precisions_allow_float16() -> None:
    half = {"fp16", "int8", "int8+fp16"}
    for name in ("fp32", "tf32", "fp16", "int8", "int8+fp16", "int8+fp32"):
        options = BuildOptions(name, ranges="cache" if name.startswith("int8") else "")
        assert options.half == (name in half)
        assert options.int8 == name.startswith("int8")


def test_what_a_version_cannot_do_is_said_before_the_build() -> None:
    eleven = capabilities(Version(11, 0), H100)
    for ranges in ("cache", "dynamic_range", "calibrate"):
        with pytest.raises(BackendError, match="were removed in 11"):
            BuildOptions("int8", ranges=ranges).check(eleven)
    BuildOptions("int8", ranges="qdq").check(eleven)
    with pytest.raises(BackendError, match="API network is float32"):
        BuildOptions("fp16", "api").check(eleven)
    with pytest.raises(BackendError, match="carry no Q/DQ pairs"):
        BuildOptions("int8", "api", "qdq").check(capabilities(Version(8, 6), H100))
    with pytest.raises(BackendError, match="no CUDA device"):
        BuildOptions().check(capabilities(Version(8, 6), None))


def test_jobs_travel_as_json() -> None:
    job = Job(
        Source("model.onnx"),
        BuildOptions("int8", "onnx", "calibrate", (ShapeRange.parse("1x8:4x16:8x32"),), level=1),
        CalibratorOptions("legacy", 0.99, 0.5),
        7,
        stop_after_calibration=True,
        verbose=True,
        inspect=False,
    )
    assert Job.from_json(json.loads(json.dumps(job.to_json()))) == job
    plain = Job(Source(model="folder", head="masked-lm", batch=2), BuildOptions("fp16", "api"))
    assert Job.from_json(json.loads(json.dumps(plain.to_json()))) == plain


def test_an_outcome_of_a_later_version_is_read() -> None:
    outcome = Outcome(1.5, missing=["a"], version="8.6.0")
    assert Outcome.from_json({**outcome.to_json(), "new": 1}) == outcome


@pytest.mark.parametrize("changes", [{"algorithm": "kl"}, {"quantile": 1.5}, {"cutoff": -0.1}])
def test_bad_calibrators_are_errors(changes: dict) -> None:
    with pytest.raises(InputError):
        CalibratorOptions(**changes)

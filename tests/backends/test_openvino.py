"""What only OpenVINO does: quiet import, half precision, and reading the runtime graph."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from quantkit.backends import get_backend
from quantkit.backends.openvino import runtime
from quantkit.backends.openvino.execution import Execution
from quantkit.errors import BackendError

pytestmark = pytest.mark.skipif(get_backend("openvino").available() is not None, reason="openvino is not installed")


@pytest.fixture(scope="module")
def backend():
    return get_backend("openvino")


def test_import_is_silent_and_loads_no_telemetry(tmp_path):
    code = (
        "import sys; from quantkit.backends.openvino import runtime; ov = runtime.load()\n"
        "assert runtime.load() is ov\n"
        "from openvino.tools.ovc import telemetry_utils\n"
        "print([m for m in sys.modules if m.startswith('openvino_telemetry')], telemetry_utils.tm.__name__)"
    )
    environment = {"HOME": str(tmp_path), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == ["[]", "openvino.tools.ovc.telemetry_stub"]
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == []  # telemetry would leave a client id in the home folder


def test_settings_keep_to_what_was_asked(backend, make_transformer):
    compiled = backend.compile(make_transformer(4, 8).proto, "fp32", threads=1)._feeder._request.get_compiled_model()
    ov = runtime.load()
    assert compiled.get_property("INFERENCE_PRECISION_HINT") == ov.Type.f32
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 1
    assert compiled.get_property("NUM_STREAMS") == 1
    assert compiled.get_property("ENABLE_CPU_PINNING") is False


def test_threads_that_are_not_there(backend, make_transformer):
    with backend.compile(make_transformer(4, 8).proto, "fp32", threads=10_000) as engine:
        assert "of the 10000 threads" in engine.notes[-1]
    with backend.compile(make_transformer(4, 8).proto, "fp32", threads=1) as engine:
        assert engine.notes == ()


def test_half_precision_is_the_cpus(backend, make_transformer, make_feed):
    graph = make_transformer(4, 8)
    with backend.compile(graph.proto, "fp16", threads=1) as half, backend.compile(graph.proto, "fp32") as full:
        assert half.compute == (runtime.half_precision() or "f32")
        assert bool(half.notes) == (half.compute == "f32")
        difference = np.abs(half.infer(make_feed())["logits"] - full.infer(make_feed())["logits"]).max()
        assert difference < 0.1
        assert (difference > 0) == (half.compute != "f32")


def test_a_cpu_without_half_precision(backend, make_transformer, make_feed, monkeypatch):
    monkeypatch.setattr(runtime, "half_precision", lambda: None)
    with backend.compile(make_transformer(4, 8).proto, "fp16", threads=1) as engine:
        assert (engine.precision, engine.compute) == ("fp16", "f32")
        assert engine.notes == (
            "Half precision was asked for and f32 is computed: this CPU has no bf16 or f16 arithmetic.",
        )


@pytest.mark.parametrize(("found", "half"), [({"BF16", "FP16"}, "bf16"), ({"FP16"}, "f16"), ({"FP32", "INT8"}, None)])
def test_which_half_precision(found, half, monkeypatch):
    monkeypatch.setattr(runtime, "capabilities", lambda: tuple(found))
    assert runtime.half_precision() == half


def test_describe(backend):
    facts = backend.describe()
    assert "FP32" in facts["capabilities"]
    assert facts["half"] in ("bf16", "f16", None)
    assert facts["version"].startswith("20")


@pytest.mark.parametrize(
    ("products", "others", "compute", "int8", "floats"),
    [
        ({"f32": 5}, {"f32": 9}, "f32", 0, 5),
        ({"bf16": 5, "f32": 1}, {}, "bf16", 0, 6),
        ({"i8": 4, "u8": 2, "f32": 3}, {}, "int8+f32", 6, 3),
        ({"i8": 4}, {"f32": 2}, "int8+f32", 4, 0),
        ({"i8": 4}, {}, "int8", 4, 0),
        ({}, {"f16": 2}, "f16", 0, 0),
        ({}, {}, "none", 0, 0),
    ],
)
def test_execution(products, others, compute, int8, floats):
    execution = Execution(Counter(products), Counter(others))
    assert (execution.compute, execution.int8_ops, execution.float_ops) == (compute, int8, floats)


def test_a_fixed_shape_written_into_the_graph_can_be_tapped(backend):
    """A Reshape to numbers stands against loosening the batch: the tap must fall back, not fail."""
    shape = numpy_helper.from_array(np.array([2, 2, 2]), "shape")
    scale = numpy_helper.from_array(np.arange(8, dtype=np.float32).reshape(2, 2, 2), "scale")
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["cube"]),
        helper.make_node("Mul", ["cube", "scale"], ["scaled"]),
        helper.make_node("Relu", ["scaled"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 2, 2])
    graph = helper.make_graph(nodes, "fixed", [x], [y], [shape, scale])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    feed = {"x": np.arange(-4, 4, dtype=np.float32).reshape(2, 4)}
    with backend.tap(proto, ["scaled", "cube"]) as tap:
        arrays = tap.infer(feed)
        assert [spec.shape for spec in tap.outputs] == [(2, 2, 2), (2, 2, 2)]
        np.testing.assert_array_equal(arrays["cube"], feed["x"].reshape(2, 2, 2))
        np.testing.assert_array_equal(arrays["scaled"], feed["x"].reshape(2, 2, 2) * np.arange(8).reshape(2, 2, 2))


def test_an_identity_is_tapped_under_both_names(backend, make_one_node):
    proto = make_one_node(helper.make_node("Relu", ["x"], ["y"]))
    proto.graph.node.append(helper.make_node("Identity", ["y"], ["z"]))
    proto.graph.node.append(helper.make_node("Identity", ["z"], ["w"]))
    with backend.tap(proto, ["y", "z"]) as tap:
        arrays = tap.infer({"x": np.full((2, 4), 3, np.float32)})
        np.testing.assert_array_equal(arrays["y"], np.full((2, 4), 3))
        np.testing.assert_array_equal(arrays["z"], arrays["y"])


def test_errors_name_the_cause():
    text = (
        "Exception from src/core.cpp:105:\nCheck 'false' failed at src/report.cpp:151:\n"
        "FrontEnd API failed with OpConversionFailure:\nModel wasn't fully converted. Failed operations detailed log:\n"
        "-- MatMul-17 with a message:\nWhile validating ONNX node '<Node(MatMul): y>': Check 'Dim' failed at x.hpp:6:\n"
        "Incompatible MatMul matrix dimension\n\nSummary:\n-- Conversion is failed for: MatMul-17\n"
    )
    error = runtime.failure("read the graph", RuntimeError(text))
    assert isinstance(error, BackendError)
    assert error.message == "OpenVINO could not read the graph: Incompatible MatMul matrix dimension."
    bare = runtime.failure("run the graph", RuntimeError("Exception from src/core.cpp:105:"))
    assert "could not run the graph" in bare.message

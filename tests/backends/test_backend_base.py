"""The registry, lazy imports, and how errors are shortened."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import onnx
import pytest

from quantkit.backends import BACKENDS, get_backend
from quantkit.backends.base import first_line, serialized, thread_count
from quantkit.backends.fake import FakeBackend
from quantkit.errors import BackendError, MissingDependencyError, UnknownNameError

PIP = {"openvino": "pip install openvino", "onnxruntime": "pip install 'quantkit[onnxruntime]'"}


def test_names():
    assert list(BACKENDS)[:2] == ["openvino", "onnxruntime"]
    assert "fake" not in BACKENDS
    assert isinstance(get_backend("fake"), FakeBackend)
    for name in BACKENDS:
        assert get_backend(name).name == name
    with pytest.raises(UnknownNameError, match="Did you mean openvino"):
        get_backend("openvno")


def test_asking_for_a_backend_loads_no_library():
    code = (
        "import sys; from quantkit.backends import BACKENDS, get_backend\n"
        "for name in [*BACKENDS, 'fake']:\n"
        "    backend = get_backend(name); backend.available(); backend.precisions()\n"
        "print(sorted({'onnx', 'openvino', 'onnxruntime'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", PIP)
def test_a_missing_library_is_a_pip_line(name, monkeypatch, make_transformer):
    found = importlib.util.find_spec
    runtime = importlib.import_module(f"quantkit.backends.{'ort' if name == 'onnxruntime' else name}.runtime")
    monkeypatch.setattr(runtime, "find_spec", lambda package: None if package == name else found(package))
    backend = get_backend(name)
    assert PIP[name] in backend.available()
    proto = make_transformer(4, 8).proto
    for use in (
        lambda: backend.compile(proto, "fp32"),
        lambda: backend.tap(proto, ["gelu"]),
        backend.describe,
    ):
        with pytest.raises(MissingDependencyError, match="pip install"):
            use()


def test_threads():
    assert thread_count(3) == 3
    assert thread_count(None) >= 1
    for wrong in (0, -1):
        with pytest.raises(BackendError, match="at least 1"):
            thread_count(wrong)


def test_a_graph_without_nodes():
    with pytest.raises(BackendError, match="no nodes"):
        serialized(onnx.ModelProto())


def test_a_graph_beyond_protobuf():
    class Huge:
        graph = onnx.GraphProto()

        def SerializeToString(self) -> bytes:  # noqa: N802
            raise ValueError("Message onnx.ModelProto exceeds maximum protobuf size of 2GB: 2500000000")

    with pytest.raises(BackendError, match="exceeds maximum protobuf size of 2GB") as caught:
        serialized(Huge())
    assert isinstance(caught.value.__cause__, ValueError)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("Exception from src/a.cpp:10:\nCheck 'x' failed at src/b.cpp:2:\nIt broke\nmore", "It broke."),
        ("two   spaces\tand a tab.", "two spaces and a tab."),
        ("", "RuntimeError."),
        ("Exception from src/a.cpp:10:", "Exception from src/a.cpp:10:."),
        ("x" * 500, "x" * 297 + "..."),
    ],
)
def test_first_line(text, line):
    assert first_line(RuntimeError(text)) == line

"""Engines: a graph compiled for a machine, and run.

`BACKENDS` maps the names that users may choose to backend classes; `get_backend` gives an instance. The name "fake"
(quantkit.backends.fake) is understood too but not listed: it computes nothing.
"""

from __future__ import annotations

from quantkit.backends.base import Backend
from quantkit.registry import Registry

BACKENDS: Registry[type[Backend]] = Registry(
    "backend",
    {
        "openvino": "quantkit.backends.openvino.backend:OpenVINOBackend",
        "onnxruntime": "quantkit.backends.ort.backend:OnnxRuntimeBackend",
        "tensorrt": "quantkit.backends.trt.backend:TensorRTBackend",
    },
)


def get_backend(name: str) -> Backend:
    """The backend of that name; importing it loads neither its library nor onnx.

    Raises:
        UnknownNameError: no such backend.
    """
    if name == "fake":
        from quantkit.backends.fake import FakeBackend

        return FakeBackend()
    return BACKENDS[name]()

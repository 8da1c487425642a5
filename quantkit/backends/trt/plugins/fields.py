"""A plugin in a network: made from named values through TensorRT's registry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from quantkit.backends.trt.plugins.library import NAMESPACE, VERSION
from quantkit.errors import BackendError


def add_plugin(
    trt: Any,
    network: Any,
    kind: str,
    name: str,
    inputs: Sequence[Any],
    values: Mapping[str, Any],
    *,
    version: str = VERSION,
    namespace: str = NAMESPACE,
) -> tuple[list[Any], list[Any]]:
    """Adds a plugin's layer.

    Args:
        trt: the tensorrt module.
        network: the INetworkDefinition.
        kind: the plugin's name in the registry.
        name: of the layer and of its first output.
        inputs: ITensors.
        values: its fields, numbers and arrays.
        version: of the plugin.
        namespace: of the plugin; ours if left out, TensorRT's own have "".

    Returns:
        The output tensors, and what must live until the engine is built.

    Raises:
        BackendError: the plugins are not registered, or refuse their values.
    """
    creator = trt.get_plugin_registry().get_plugin_creator(kind, version, namespace)
    if creator is None:
        hint = "Run quantkit plugins build." if namespace == NAMESPACE else "Use --network api."
        raise BackendError(f"TensorRT does not know the plugin {kind}.", hint)
    arrays = {key: array_of(value) for key, value in values.items()}
    fields = [trt.PluginField(key, array, field_type(trt, array)) for key, array in arrays.items()]
    made = creator.create_plugin(name, trt.PluginFieldCollection(fields))
    layer = None if made is None else network.add_plugin_v2(list(inputs), made)
    if layer is None:
        raise BackendError(f"The plugin {kind} refuses what {name!r} is to be.")
    layer.name = name
    outputs = [layer.get_output(i) for i in range(layer.num_outputs)]
    outputs[0].name = name
    return outputs, [made, fields, arrays]


def array_of(value: Any) -> np.ndarray[Any, Any]:
    """The value of a field: float32, int32, or 8 and 16 bits as they are; a number becomes an array of one."""
    array = np.atleast_1d(np.ascontiguousarray(value))
    if array.dtype.kind == "f":
        return array.astype(np.float32)
    return array if array.dtype in (np.int8, np.int16) else array.astype(np.int32)


def field_type(trt: Any, array: np.ndarray[Any, Any]) -> Any:
    """TensorRT's name for the type of a field."""
    types = trt.PluginFieldType
    if array.dtype == np.float32:
        return types.FLOAT32
    return {1: types.INT8, 2: types.INT16, 4: types.INT32}[array.dtype.itemsize]

"""Plugins: registry, fields, the layer, and our own plugins in NumPy, with the arithmetic of their kernels.

Which kinds the registry knows is what `known` holds: quantkit's, once a test or a stand-in library has registered them.
"""

import enum
from itertools import pairwise

import numpy as np

from tensorrt._enums import DataType, Strict
from tensorrt._network import ILayer, INetworkDefinition, ITensor

PluginFieldType = enum.IntEnum(
    "PluginFieldType", ["FLOAT16", "FLOAT32", "FLOAT64", "INT8", "INT16", "INT32", "CHAR", "DIMS", "UNKNOWN"], start=0
)
_KINDS = {"FLOAT32": np.float32, "INT8": np.int8, "INT16": np.int16, "INT32": np.int32}
_TYPES = [DataType.FLOAT, DataType.HALF, DataType.INT8]
_NUMPY = [np.float32, np.float16, np.int8]


class PluginField(Strict):
    def __init__(self, name, data, type):
        if not isinstance(data, np.ndarray) or not data.flags.c_contiguous or data.dtype != _KINDS[type.name]:
            raise TypeError(f"the field {name} is no contiguous array of {type.name}")
        self._name, self._data, self._type = name, data, type


class PluginFieldCollection(list):
    pass


class IPlugin(Strict):
    def __init__(self, kind, values):
        self._kind, self._values = kind, values

    plugin_type = property(lambda self: self._kind)


class IPluginCreator(Strict):
    def __init__(self, kind):
        self._kind = kind

    def create_plugin(self, name, field_collection):
        values = {f._name: f._data.copy() for f in field_collection}
        if self._kind == "QuantkitLinear" and int(values["n"][0]) % 32:
            return None
        return IPlugin(self._kind, values)


class IPluginRegistry(Strict):
    def get_plugin_creator(self, type, version, plugin_namespace=""):
        known = type in PLUGINS and (version, plugin_namespace) == ("1", "quantkit")
        return IPluginCreator(type) if known else None


def get_plugin_registry():
    return IPluginRegistry()


class IPluginV2Layer(ILayer):
    def __init__(self, inputs, plugin):
        values = plugin._values
        super().__init__("PLUGIN_V2", inputs, (), DataType.FLOAT, plugin=plugin._kind, **values)
        shapes, types = shapes_of(plugin._kind, [t.shape for t in inputs], values), types_of(plugin._kind, values)
        self._outputs = [ITensor(plugin._kind, shape, kind) for shape, kind in zip(shapes, types, strict=True)]

    num_outputs = property(lambda self: len(self._outputs))

    def get_output(self, index):
        return self._outputs[index]


def add_plugin_v2(self, inputs, plugin):
    return self._add(IPluginV2Layer(inputs, plugin))


INetworkDefinition.add_plugin_v2 = add_plugin_v2


def number(values, name):
    return values[name].reshape(-1)[0]


def shapes_of(kind, inputs, values):
    x = inputs[0]
    if kind == "QuantkitEmbedding":
        return [(*x, len(values["gamma"]))] * (1 + int(number(values, "quantize")))
    if kind == "QuantkitLinear":
        return [(*x[:-1], int(number(values, "n")))]
    if kind == "QuantkitAttention":
        return [(*x[:-1], x[-1] // 3)]
    if kind == "QuantkitNorm":
        return [x] * (1 + int(number(values, "quantize")))
    if kind == "QuantkitFirst":
        return [(x[0] if not number(values, "packed") else -1, x[-1])]
    return [(x[0], len(values["bias"]))]


def types_of(kind, values):
    if kind in ("QuantkitEmbedding", "QuantkitNorm"):
        return [DataType.HALF, DataType.INT8][: 1 + int(number(values, "quantize"))]
    if kind in ("QuantkitLinear", "QuantkitAttention"):
        return [_TYPES[int(number(values, "out_type"))]]
    return [DataType.HALF if kind == "QuantkitFirst" else DataType.FLOAT]


def coded(x, values):
    shift = number(values, "out_shift") if "out_shift" in values else 0
    return np.clip(np.rint(x / number(values, "out_scale") + shift), -127, 127).astype(np.int8)


def normalized(x, values):
    centred = x - x.mean(-1, keepdims=True)
    spread = np.sqrt((centred**2).mean(-1, keepdims=True) + number(values, "epsilon"))
    y = (centred / spread * values["gamma"] + values["beta"]).astype(np.float32)
    both = [y.astype(np.float16)]
    return [*both, coded(y, values)] if number(values, "quantize") else both


def embedding(given, values):
    tables = [values[n].view(np.float16).astype(np.float32) for n in ("word", "position", "segment")]
    width = len(values["gamma"])
    word, position, segment = (t.reshape(-1, width) for t in tables)
    if number(values, "packed"):
        starts = given[2]
        place = np.zeros(len(given[0]), int)
        for a, b in pairwise(starts):
            place[a:b] = np.arange(b - a)
    else:
        place = np.arange(given[0].shape[1])[None]
    return normalized(word[given[0]] + position[place] + segment[given[1]], values)


def linear(given, values):
    from scipy.special import erf

    n, k, half = int(number(values, "n")), int(number(values, "k")), number(values, "type") == 1
    weight = values["weight"].view(np.float16) if half else values["weight"]
    y = given[0].astype(np.float32) @ weight.reshape(n, k).astype(np.float32).T
    y = y * values["alpha"] + values["beta"]
    if number(values, "gelu"):
        y = np.float32(0.5) * y * (1 + erf(y / np.sqrt(np.float32(2))))
    if number(values, "out_type") == 2:
        return [coded(y, values)]
    return [y.astype(np.float16)]


def attention(given, values):
    qkv, lengths = given
    if number(values, "packed"):
        out = np.zeros((len(qkv), qkv.shape[1] // 3), _NUMPY[int(number(values, "out_type"))])
        for a, b in pairwise(lengths):
            out[a:b] = attended(qkv[None, a:b], np.ones((1, b - a)), values)[0]
        return [out]
    return [attended(qkv, lengths, values)]


def attended(qkv, mask, values):
    batch, length, width = qkv.shape
    heads, head = int(number(values, "heads")), int(number(values, "head"))
    parts = qkv.astype(np.float32).reshape(batch, length, 3, heads, head).transpose(2, 0, 3, 1, 4)
    scores = parts[0] @ parts[1].swapaxes(-1, -2) * number(values, "score_scale")
    scores = scores + ((mask - 1) * 10000.0).astype(np.float32)[:, None, None, :]
    e = np.exp(scores - scores.max(-1, keepdims=True))
    y = (e / e.sum(-1, keepdims=True)) @ parts[2] * number(values, "value_scale")
    y = y.transpose(0, 2, 1, 3).reshape(batch, length, width // 3).astype(np.float32)
    return coded(y, values) if number(values, "out_type") == 2 else y.astype(np.float16)


def norm(given, values):
    return normalized(sum(x.astype(np.float32) for x in given), values)


def first(given, values):
    return [given[0][given[1][:-1]] if number(values, "packed") else given[0][:, 0]]


def classifier(given, values):
    labels = len(values["bias"])
    return [np.tanh(given[0].astype(np.float32)) @ values["weight"].reshape(labels, -1).T + values["bias"]]


PLUGINS = {
    "QuantkitEmbedding": embedding,
    "QuantkitLinear": linear,
    "QuantkitAttention": attention,
    "QuantkitNorm": norm,
    "QuantkitFirst": first,
    "QuantkitClassifier": classifier,
}


__all__ = ["PluginField", "PluginFieldCollection", "PluginFieldType", "get_plugin_registry"]

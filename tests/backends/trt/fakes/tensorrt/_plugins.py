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
        if not self._kind.startswith("Quantkit"):
            return their_plugin(self._kind, {f._name: f._data.copy() for f in field_collection})
        values = {f._name: f._data.copy() for f in field_collection}
        if self._kind == "QuantkitLinear" and int(values["n"][0]) % 32:
            return None
        return IPlugin(self._kind, values)


class IPluginRegistry(Strict):
    def get_plugin_creator(self, type, version, plugin_namespace=""):
        if (type, version, plugin_namespace) in THEIRS and initialized:
            return IPluginCreator(f"{type}.{version}")
        known = type in PLUGINS and (version, plugin_namespace) == ("1", "quantkit")
        return IPluginCreator(type) if known else None


initialized = []


def init_libnvinfer_plugins(logger, namespace):
    initialized.append(namespace)
    return True


def their_plugin(kind, values):
    if missing := [name for name in THEIRS[(*kind.rsplit(".", 1), "")] if name not in values]:
        raise RuntimeError(f"required attribute {missing[0]} is missing")
    return IPlugin(kind, values)


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
    if kind == f"{EMBEDDING}.2":
        return [(*x, len(values["bert_embeddings_layernorm_beta"]), 1, 1), ()]
    if kind.startswith(SKIP):
        return [x]
    if kind.startswith(FUSED):
        return [(x[0], x[1] // 3, *x[2:])]
    if kind == "QuantkitEmbedding":
        ones = (1, 1) if "channels" in values else ()
        return [(*x, len(values["gamma"]), *ones)] * (1 + int(number(values, "quantize")))
    if kind == "QuantkitBiasGelu":
        return [x]
    if len(x) == 4 and kind != "QuantkitClassifier":
        flat = shapes_of(kind, [x[:2], *inputs[1:]], values)
        return [(*shape, 1, 1) for shape in flat]
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
    if kind == f"{EMBEDDING}.2":
        return [DataType.HALF, DataType.INT32]
    if kind in (f"{SKIP}.3", f"{FUSED}.3"):
        return [DataType.INT8]
    if not kind.startswith("Quantkit"):
        return [DataType.FLOAT]  # at first what the input is, which is not settled yet
    if kind in ("QuantkitEmbedding", "QuantkitNorm"):
        return [DataType.HALF, DataType.INT8][: 1 + int(number(values, "quantize"))]
    if kind in ("QuantkitLinear", "QuantkitAttention", "QuantkitBiasGelu"):
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
    x, residual = (array.astype(np.float32) for array in given)
    if given[0].dtype == np.int8:
        x = x * number(values, "x_scale")
    return normalized(x + residual, values)


def bias_gelu(given, values):
    from scipy.special import erf

    y = given[0].astype(np.float32)
    y = np.float32(0.5) * y * (1 + erf(y / np.sqrt(np.float32(2))))
    return [coded(y, values) if number(values, "out_type") == 2 else y.astype(np.float16)]


def first(given, values):
    return [given[0][given[1][:-1]] if number(values, "packed") else given[0][:, 0]]


def classifier(given, values):
    labels, x = len(values["bias"]), given[0].reshape(len(given[0]), -1)
    return [np.tanh(x.astype(np.float32)) @ values["weight"].reshape(labels, -1).T + values["bias"]]


def embedded(given, values):
    """TensorRT's embeddings: float weights, FP16 out; rows after the last sentence are not written."""
    ids, kinds, starts, extent = given
    if starts[-1] and max(np.diff(starts)) > min(len(extent), 384):
        raise RuntimeError("a sentence is longer than the extent")
    word, position, kind = (values[f"bert_embeddings_{n}_embeddings"] for n in ("word", "position", "token_type"))
    gamma, beta = (values[f"bert_embeddings_layernorm_{n}"] for n in ("gamma", "beta"))
    place = np.concatenate([np.arange(n) for n in np.diff(starts)])
    used = starts[-1]
    x = word.reshape(-1, len(beta))[ids[:used]] + position.reshape(-1, len(beta))[place]
    y = unwritten((len(ids), len(beta)))
    y[:used] = plainly_normalized(x + kind.reshape(-1, len(beta))[kinds[:used]], gamma, beta)
    return [y.astype(np.float16)[..., None, None], np.zeros((), np.int32)]


def unwritten(shape):
    return np.full(shape, np.nan, np.float32)


def plainly_normalized(x, gamma, beta):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True)) * gamma + beta


def numbers(x, amax):
    """What an INT8 tensor stands for, or a tensor that TensorRT makes INT8 for a plugin."""
    if x.dtype == np.int8:
        return x * np.float32(amax / 127)
    with np.errstate(invalid="ignore"):
        return np.clip(np.rint(x / np.float32(amax / 127)), -127, 127) * np.float32(amax / 127)


def codes(x, amax):
    """INT8 codes; rows that nobody wrote become zeros."""
    return np.nan_to_num(np.clip(np.rint(x / np.float32(amax / 127)), -127, 127)).astype(np.int8)


def skipped(given, values):
    """TensorRT's residual and LayerNorm: FP16, or INT8 with the tensors' ranges."""
    interleaved = "type_id" not in values
    ranges = values["ranges"]
    if int8 := interleaved or number(values, "type_id") == 2:
        given = [numbers(x, amax) for x, amax in zip(given, ranges, strict=False)]
        if given[0].shape[1] not in (768, 1024):
            raise RuntimeError("unsupported hidden layer size")
    x = np.moveaxis(sum(x.astype(np.float32) for x in given), 1, -1)
    y = np.moveaxis(plainly_normalized(x, values["gamma"], values["beta"]), -1, 1)
    return [codes(y, ranges[-1]) if int8 else y.astype(np.float16)]


def fused(given, values):
    """TensorRT's attention: only the kernels that compute capability 9.0 has."""
    interleaved = "type_id" not in values
    qkv, starts, extent = (given[0], given[1], given[2]) if interleaved else (given[0], given[2], given[3])
    ranges, int8 = values["ranges"], interleaved or number(values, "type_id") == 2
    heads, width = int(number(values, "num_heads")), int(number(values, "hidden_size"))
    lengths = (
        (128, 192, 256, 384) if interleaved else (128, 192, 256, 384, 512) if int8 else (64, 96, 128, 256, 384, 512)
    )
    if width // heads != 64 or len(extent) not in lengths or max(np.diff(starts)) > len(extent):
        raise RuntimeError("Could not find kernel")
    x = numbers(qkv, ranges[0]) if int8 else qkv.astype(np.float32)
    x = x[0, :, :, 0].T if interleaved else x[..., 0, 0]
    parts = (
        x.reshape(-1, 3, heads, 64).transpose(1, 2, 0, 3)
        if interleaved
        else x.reshape(-1, heads, 3, 64).transpose(2, 1, 0, 3)
    )
    y = unwritten((heads, len(x), 64))
    for a, b in pairwise(starts):
        query, key, value = parts[:, :, a:b]
        scores = query @ key.swapaxes(-1, -2) / np.float32(8)
        e = np.exp(scores - scores.max(-1, keepdims=True))
        probs = e / e.sum(-1, keepdims=True)
        if int8:
            step = number(values, "dq_probs")
            probs = np.clip(np.rint(probs / step), 0, 127) * step
        y[:, a:b] = probs @ value
    y = y.transpose(1, 0, 2).reshape(len(x), width)
    y = codes(y, ranges[-1]) if int8 else y.astype(np.float16)
    return [y.T[None, :, :, None] if interleaved else y[..., None, None]]


FIELDS = ("type", "residual_type")


def converted(given, values):
    """What TensorRT does to float tensors before a plugin of ours that wants other types."""
    made = []
    for i, x in enumerate(given):
        wanted = int(number(values, FIELDS[i])) if i < 2 and FIELDS[i] in values else 1
        if x.dtype in (np.int32, np.int8):
            made.append(x)
        else:
            made.append(codes(x, values["ranges"][i]) if wanted == 2 else x.astype(_NUMPY[wanted]))
    return made


def of_rows(work):
    """A plugin of ours on tensors of four dimensions: computed as (rows, width)."""

    def run(given, values):
        four = given[0].ndim == 4
        given = converted(given, values)
        results = work([x[..., 0, 0] if x.ndim == 4 else x for x in given], values)
        return [y[..., None, None] for y in results] if four or "channels" in values else results

    return run


EMBEDDING, SKIP, FUSED = (f"Custom{n}PluginDynamic" for n in ("EmbLayerNorm", "SkipLayerNorm", "QKVToContext"))
_TABLES = [f"bert_embeddings_{n}" for n in ("layernorm_beta", "layernorm_gamma")]
_TABLES += [f"bert_embeddings_{n}_embeddings" for n in ("word", "token_type", "position")]
THEIRS = {
    (EMBEDDING, "2", ""): _TABLES,
    (SKIP, "2", ""): ["type_id", "beta", "gamma"],
    (SKIP, "3", ""): ["beta", "gamma"],
    (FUSED, "2", ""): ["type_id", "hidden_size", "num_heads", "has_mask"],
    (FUSED, "3", ""): ["hidden_size", "num_heads"],
}
"""Kind, version and namespace -> fields that it must be given."""
PLUGINS = {
    f"{EMBEDDING}.2": embedded,
    f"{SKIP}.2": skipped,
    f"{SKIP}.3": skipped,
    f"{FUSED}.2": fused,
    f"{FUSED}.3": fused,
    "QuantkitBiasGelu": of_rows(bias_gelu),
    "QuantkitEmbedding": of_rows(embedding),
    "QuantkitLinear": of_rows(linear),
    "QuantkitAttention": of_rows(attention),
    "QuantkitNorm": of_rows(norm),
    "QuantkitFirst": of_rows(first),
    "QuantkitClassifier": classifier,
}


__all__ = ["PluginField", "PluginFieldCollection", "PluginFieldType", "get_plugin_registry", "init_libnvinfer_plugins"]

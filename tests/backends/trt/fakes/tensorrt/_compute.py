"""Computes a network: layer by layer in NumPy, or an ONNX graph with the reference evaluator."""

import base64

import numpy as np

_BINARY = {"SUM": np.add, "SUB": np.subtract, "PROD": np.multiply, "DIV": np.divide}


def freeze(network):
    """The network as JSON values."""
    io = {
        "inputs": [[t.name, list(t.shape), t.dtype.name] for t in network._inputs],
        "outputs": [[t.name, list(t.shape), t.dtype.name] for t in network._outputs],
    }
    if network._onnx is not None:
        return {**io, "onnx": base64.b64encode(network._onnx).decode()}
    order = {id(t): t.name for t in network._inputs}
    layers = []
    for number, layer in enumerate(network._layers):
        key = f"#{number}"
        for i in range(layer.num_outputs):
            order[id(layer.get_output(i))] = f"{key}.{i}" if i else key
        known = extras(layer)
        extra = {k: (v.tolist() if isinstance(v, np.ndarray) else v) for k, v in known.items()}
        kinds = {k: str(v.dtype) for k, v in known.items() if isinstance(v, np.ndarray)}
        inputs = [None if t is None else order[id(t)] for t in layer._inputs]
        name = layer.get_output(0).name
        names = [layer.get_output(i).name for i in range(1, layer.num_outputs)]
        layers.append([layer._kind, key, name, inputs, list(layer.get_output(0).shape), extra, kinds, names])
    return {**io, "layers": layers}


def extras(layer):
    """What a layer is made with; products and plugins also with their tensors' ranges and whether they are INT8."""
    extra = dict(layer._extra)
    if layer._kind in ("CONVOLUTION", "FULLY_CONNECTED", "MATRIX_MULTIPLY", "PLUGIN_V2"):
        outputs = [layer.get_output(i) for i in range(layer.num_outputs)]
        extra["ranges"] = [None if t is None or t._range is None else t._range[1] for t in (*layer._inputs, *outputs)]
        extra["int8"] = layer._precision is not None and layer._precision.name == "INT8"
    return extra


def results_of(kind, given, shape, extra):
    """Outputs of a layer."""
    if kind == "PLUGIN_V2":
        from tensorrt._plugins import PLUGINS

        return PLUGINS[extra["plugin"]](given, extra)
    return [_layer(kind, given, shape, extra)]


def compute(frozen, feed, names=()):
    """Outputs, and with `names` those intermediate tensors, for a feed."""
    if "onnx" in frozen:
        return _onnx(frozen, feed, names)
    found = dict(feed)
    byname = dict(feed)
    for (kind, key, name, inputs, shape, _, _, more), extra in zip(frozen["layers"], _extras(frozen), strict=True):
        given = [None if i is None else found[i] for i in inputs]
        results = results_of(kind, given, shape, extra)
        for i, (result, called) in enumerate(zip(results, (name, *more), strict=True)):
            found[f"{key}.{i}" if i else key] = byname[called] = result
    wanted = [*(n for n, _, _ in frozen["outputs"]), *names]
    return {n: byname[n] for n in wanted}


_arrays = {}


def _extras(frozen):
    """The layers' attributes with lists as arrays; made once, for they hold all weights."""
    layers = frozen["layers"]
    if id(layers) not in _arrays:
        made = [{k: np.array(v, lay[6][k]) if k in lay[6] else v for k, v in lay[5].items()} for lay in layers]
        _arrays[id(layers)] = layers, made  # the layers too: as long as they are kept, the number is theirs
    return _arrays[id(layers)][1]


_sessions = {}


def _onnx(frozen, feed, names):
    key = (hash(frozen["onnx"]), tuple(names))
    if key not in _sessions:
        _sessions[key] = _session(frozen, names)
    session, wanted = _sessions[key]
    kinds = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}
    typed = {i.name: feed[i.name].astype(kinds.get(i.type, np.float32)) for i in session.get_inputs()}
    return dict(zip(wanted, session.run(wanted, typed), strict=True))


def _session(frozen, names):
    import onnx
    import onnxruntime

    model = onnx.load_model_from_string(base64.b64decode(frozen["onnx"]))
    have = {v.name for v in model.graph.output}
    types = {v.name: v for v in onnx.shape_inference.infer_shapes(model).graph.value_info}
    for name in names:
        if name not in have:
            model.graph.output.append(types.get(name) or onnx.helper.make_tensor_value_info(name, 1, None))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session, [*(n for n, _, _ in frozen["outputs"]), *(n for n in names if n not in have)]


def _layer(kind, given, shape, extra):
    x = given[0] if given else None
    if kind == "CONSTANT":
        return extra["value"]
    if kind == "CAST":
        return x.astype(np.float32)
    if kind == "GATHER":
        return np.take(x, given[1], axis=extra["axis"])
    if kind == "SHAPE":
        return np.array(x.shape, np.int32)
    if kind == "CONCATENATION":
        return np.concatenate(given)
    if kind == "SLICE":
        sizes = [int(n) for n in given[2]] if len(given) > 2 else shape
        spans = zip(extra["start"], sizes, strict=True)
        return x[tuple(slice(s, s + n) for s, n in spans)]
    if kind in ("CONVOLUTION", "FULLY_CONNECTED", "MATRIX_MULTIPLY"):
        return _product(kind, given, extra)
    if kind == "ELEMENTWISE":
        return _BINARY[extra["op"]](x, given[1])
    if kind == "UNARY":
        from scipy.special import erf

        return {"ERF": erf, "SQRT": np.sqrt}[extra["op"]](x).astype(np.float32)
    if kind == "ACTIVATION":
        return np.tanh(x) if extra["op"] == "TANH" else np.maximum(x, 0)
    if kind in ("REDUCE", "SOFTMAX", "NORMALIZATION"):
        return _along(kind, given, extra, tuple(i for i in range(x.ndim) if extra["axes"] >> i & 1))
    if kind == "SHUFFLE":
        return _shuffle(x, extra)
    raise ValueError(kind)


def _product(kind, given, extra):
    """A product with a weight; in INT8 where the layer is told to be, with a scale for each output."""
    x, amax = given[0], extra["ranges"][0]
    weight = given[1].T if kind == "MATRIX_MULTIPLY" and extra["int8"] else extra.get("value")
    if x.dtype == np.int8:
        x = x * np.float32(amax / 127)
    x = x.astype(np.float32)
    if extra["int8"]:
        x = faked(x, amax)
        weight = np.stack([faked(row, np.abs(row).max() or 1.0) for row in weight])
    if kind == "MATRIX_MULTIPLY":
        return np.matmul(x, weight.T if weight is not None else given[1])
    if kind == "FULLY_CONNECTED":
        y = (x.reshape(*x.shape[:-3], -1) @ weight.T)[..., None, None]
    else:
        y = np.einsum("bchw,oc->bohw", x, weight)
    return y + extra["bias"].reshape(-1, 1, 1) if "bias" in extra else y


def faked(x, amax):
    """Quantized to INT8 and back."""
    scale = np.float32(amax / 127)
    return np.clip(np.rint(x / scale), -127, 127) * scale


def _along(kind, given, extra, axes):
    x = given[0]
    if kind == "REDUCE":
        return x.mean(axes, keepdims=True)
    if kind == "SOFTMAX":
        e = np.exp(x - x.max(axes, keepdims=True))
        return e / e.sum(axes, keepdims=True)
    centred = x - x.mean(axes, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axes, keepdims=True) + extra["epsilon"]) * given[1] + given[2]


def _shuffle(x, extra):
    if extra.get("first"):
        x = x.transpose(extra["first"])
    if extra.get("shape") is not None:
        x = x.reshape([x.shape[i] if n == 0 else n for i, n in enumerate(extra["shape"])])
    return x.transpose(extra["second"]) if extra.get("second") else x

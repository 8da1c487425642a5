"""INetworkDefinition, its layers, and the ONNX parser: enough to infer shapes and to compute."""

import numpy as np

from tensorrt._enums import (
    DataType,
    LayerType,
    MatrixOperation,
    Strict,
    Weights,
    float32,
    int32,
    of_numpy,
)


class ITensor(Strict):
    def __init__(self, name, shape, dtype):
        self._name, self._shape, self._dtype, self._range = name, tuple(shape), dtype, None
        self._shape_tensor = False

    name = property(lambda self: self._name, lambda self, value: setattr(self, "_name", value))
    shape = property(lambda self: self._shape)
    dtype = property(lambda self: self._dtype)
    is_shape_tensor = property(lambda self: self._shape_tensor)

    def set_dynamic_range(self, low, high):
        if not low < high:
            return False
        self._range = (low, high)
        return True


class ILayer(Strict):
    def __init__(self, kind, inputs, shape, dtype, **extra):
        self._kind, self._inputs, self._extra, self._name = kind, list(inputs), extra, f"(Unnamed Layer) [{kind}]"
        self._dtype, self._built, self._precision, self._types = dtype, shape, None, {}
        self._output = ITensor(f"{self._name}_output", shape(self) if callable(shape) else shape, dtype)

    name = property(lambda self: self._name, lambda self, value: setattr(self, "_name", value))
    type = property(lambda self: LayerType[self._kind])
    num_inputs = property(lambda self: len(self._inputs))
    num_outputs = property(lambda self: 1)

    precision = property(lambda self: self._precision, lambda self, value: setattr(self, "_precision", value))

    def get_input(self, index):
        return self._inputs[index]

    def get_output(self, index):
        if index:
            raise IndexError(index)
        return self._output

    def set_output_type(self, index, dtype):
        self._types[index] = dtype

    def set_input(self, index, tensor):
        while len(self._inputs) <= index:
            self._inputs.append(None)
        self._inputs[index] = tensor
        if self._kind == "SLICE" and index == 2:
            self._output._shape = tuple(-1 for _ in self._output.shape)

    def _refresh(self):
        self._output._shape = self._built(self)


class IShuffleLayer(ILayer):
    first_transpose = property(lambda self: self._extra.get("first"), lambda self, v: self._set("first", v))
    reshape_dims = property(lambda self: self._extra.get("shape"), lambda self, v: self._set("shape", v))
    second_transpose = property(lambda self: self._extra.get("second"), lambda self, v: self._set("second", v))

    def _set(self, key, value):
        self._extra[key] = tuple(value)
        self._refresh()


class ISoftMaxLayer(ILayer):
    axes = property(lambda self: self._extra["axes"], lambda self, v: self._extra.__setitem__("axes", v))


class INormalizationLayer(ILayer):
    epsilon = property(lambda self: self._extra["epsilon"], lambda self, v: self._extra.__setitem__("epsilon", v))


def broadcast(a, b):
    if len(a) != len(b):
        return None
    shape = []
    for m, n in zip(a, b, strict=True):
        if m != n and 1 not in (m, n) and -1 not in (m, n):
            return None
        shape.append(n if m == 1 else m if n == 1 else max(m, n) if m == n else -1)
    return tuple(shape)


def shuffled(layer):
    shape = layer._inputs[0].shape
    if layer._extra.get("first"):
        shape = tuple(shape[i] for i in layer._extra["first"])
    wanted = layer._extra.get("shape")
    if wanted is not None:
        kept = [shape[i] if n == 0 else n for i, n in enumerate(wanted)]
        if -1 in wanted and -1 not in shape:
            rest = int(np.prod(shape)) // int(np.prod([n for n in kept if n != -1]))
            kept = [rest if w == -1 else n for n, w in zip(kept, wanted, strict=True)]
        elif -1 in wanted:
            # The part that takes what is left: known when the changing dimensions are all kept by zeros.
            fixed = [shape[i] for i, n in enumerate(wanted) if n == 0]
            if sum(n == -1 for n in shape) == sum(n == -1 for n in fixed):
                have = int(np.prod([n for n in shape if n != -1]))
                need = int(np.prod([n for n, w in zip(kept, wanted, strict=True) if n != -1 and w != -1]))
                kept = [have // need if w == -1 else n for n, w in zip(kept, wanted, strict=True)]
        shape = tuple(kept)
    if layer._extra.get("second"):
        shape = tuple(shape[i] for i in layer._extra["second"])
    return tuple(shape)


class INetworkDefinition(Strict):
    def __init__(self, flags):
        self._flags, self._inputs, self._layers, self._outputs, self._onnx = flags, [], [], [], None

    num_inputs = property(lambda self: len(self._inputs))
    num_outputs = property(lambda self: len(self._outputs))
    num_layers = property(lambda self: len(self._layers))

    def get_input(self, index):
        return self._inputs[index]

    def get_output(self, index):
        return self._outputs[index]

    def get_layer(self, index):
        return self._layers[index]

    def add_input(self, name, dtype, shape):
        self._inputs.append(ITensor(name, shape, dtype))
        return self._inputs[-1]

    def mark_output(self, tensor):
        if not isinstance(tensor, ITensor):
            raise TypeError("mark_output takes an ITensor")
        self._outputs.append(tensor)

    def _add(self, layer):
        self._layers.append(layer)
        return layer

    def add_constant(self, shape, weights):
        if not isinstance(weights, Weights) or int(np.prod(shape)) != weights.size:
            return None
        value = weights.numpy().reshape(shape)
        return self._add(ILayer("CONSTANT", [], tuple(shape), of_numpy(value.dtype), value=value))

    def add_cast(self, tensor, to):
        return self._add(ILayer("CAST", [tensor], tensor.shape, to))

    def add_gather(self, table, indices, axis):
        shape = table.shape[:axis] + indices.shape + table.shape[axis + 1 :]
        return self._add(ILayer("GATHER", [table, indices], shape, table.dtype, axis=axis))

    def add_shape(self, tensor):
        return self._add(ILayer("SHAPE", [tensor], (len(tensor.shape),), int32))

    def add_concatenation(self, tensors):
        shape = (sum(t.shape[0] for t in tensors), *tensors[0].shape[1:])
        return self._add(ILayer("CONCATENATION", tensors, shape, tensors[0].dtype))

    def add_slice(self, tensor, start, shape, stride):
        return self._add(ILayer("SLICE", [tensor], tuple(shape), tensor.dtype, start=tuple(start)))

    def add_matrix_multiply(self, a, op_a, b, op_b):
        leading = broadcast(a.shape[:-2], b.shape[:-2])
        if leading is None or {op_a, op_b} != {MatrixOperation.NONE} or len({a.shape[-1], b.shape[-2]} - {-1}) > 1:
            return None
        shape = (*leading, a.shape[-2], b.shape[-1])
        return self._add(ILayer("MATRIX_MULTIPLY", [a, b], shape, float32))

    def add_elementwise(self, a, b, op):
        shape = broadcast(a.shape, b.shape)
        return None if shape is None else self._add(ILayer("ELEMENTWISE", [a, b], shape, a.dtype, op=op.name))

    def add_unary(self, tensor, op):
        return self._add(ILayer("UNARY", [tensor], tensor.shape, tensor.dtype, op=op.name))

    def add_activation(self, tensor, type):
        return self._add(ILayer("ACTIVATION", [tensor], tensor.shape, tensor.dtype, op=type.name))

    def add_reduce(self, tensor, op, axes, keep_dims):
        shape = tuple(1 if axes >> i & 1 else n for i, n in enumerate(tensor.shape))
        return self._add(ILayer("REDUCE", [tensor], shape, tensor.dtype, op=op.name, axes=axes))

    def add_softmax(self, tensor):
        return self._add(ISoftMaxLayer("SOFTMAX", [tensor], tensor.shape, tensor.dtype, axes=2))

    def add_normalization(self, tensor, scale, bias, axesMask):  # noqa: N803
        if len({len(t.shape) for t in (tensor, scale, bias)}) > 1:
            return None
        inputs = [tensor, scale, bias]
        return self._add(
            INormalizationLayer("NORMALIZATION", inputs, tensor.shape, tensor.dtype, axes=axesMask, epsilon=1e-5)
        )

    def add_shuffle(self, tensor):
        return self._add(IShuffleLayer("SHUFFLE", [tensor], shuffled, tensor.dtype))

    def add_fully_connected(self, tensor, num_outputs, kernel, bias=None):
        shape = (*tensor.shape[:-3], num_outputs, 1, 1)
        weight = kernel.numpy().reshape(num_outputs, -1)
        return self._add(ILayer("FULLY_CONNECTED", [tensor], shape, float32, value=weight, **biased(bias)))

    def add_convolution_nd(self, tensor, num_output_maps, kernel_shape, kernel, bias=None):
        shape = (tensor.shape[0], num_output_maps, *tensor.shape[2:])
        weight = kernel.numpy().reshape(num_output_maps, -1)
        return self._add(ILayer("CONVOLUTION", [tensor], shape, float32, value=weight, **biased(bias)))


def biased(bias):
    return {} if bias is None else {"bias": bias.numpy()}


class ParserError(Strict):
    def __init__(self, node, text):
        self._node, self._text = node, text

    def node(self):
        return self._node

    def desc(self):
        return self._text


class OnnxParser(Strict):
    def __init__(self, network, logger):
        self._network, self._errors = network, []

    num_errors = property(lambda self: len(self._errors))

    def get_error(self, index):
        return self._errors[index]

    def parse(self, data, path=None):
        import onnx
        from onnx import shape_inference

        try:
            model = onnx.load_model_from_string(data)
        except Exception as error:
            self._errors.append(ParserError(-1, f"Failed to parse ONNX model from file: {error}"))
            return False
        for i, node in enumerate(model.graph.node):
            if node.op_type == "Shape" and node.attribute:  # 8.6 reads past them and fails further on
                text = "Assertion failed: ends.size() == axes.size()"
                self._errors.append(ParserError(i + 1, text))
                return False
            if node.op_type == "Scan":
                self._errors.append(ParserError(i, "Unsupported operator Scan"))
                return False
        model = shape_inference.infer_shapes(model)
        network = self._network
        network._onnx = data
        known = {v.name: v for v in (*model.graph.value_info, *model.graph.output)}
        for value in model.graph.input:
            if value.name not in {t.name for t in model.graph.initializer}:
                network.add_input(value.name, int32, extents(value))
        for node in model.graph.node:
            for name in node.output:
                value = known.get(name)
                floats = value is not None and value.type.tensor_type.elem_type in (1, 10)
                layer = network._add(ILayer("IDENTITY", [], extents(value), float32 if floats else int32))
                layer.name, layer.get_output(0).name = node.name, name
        outputs = {v.name for v in model.graph.output}
        for layer in network._layers:
            if layer.get_output(0).name in outputs:
                network.mark_output(layer.get_output(0))
        return True


def extents(value):
    if value is None:
        return ()
    return tuple(d.dim_value if d.HasField("dim_value") else -1 for d in value.type.tensor_type.shape.dim)


__all__ = ["DataType", "INetworkDefinition", "ITensor", "OnnxParser", "ParserError"]

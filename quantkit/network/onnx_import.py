"""Any BERT-like model as an .onnx file: checked, its inputs and output under quantkit's names, its constants folded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped, unused-ignore]
from onnx import TensorProto, version_converter

from quantkit.errors import ModelError
from quantkit.network.external_data import MAX_BYTES, check_texts, check_types, read_external_data
from quantkit.network.graph import BATCH, SEQUENCE, Network
from quantkit.network.index import has_subgraph
from quantkit.network.shapes import fold_constants, infer_shapes, set_input_shapes
from quantkit.network.structure import find_encoder

INPUTS: Mapping[str, tuple[str, ...]] = {
    "input_ids": ("input_ids", "ids", "input_word_ids"),
    "attention_mask": ("attention_mask", "input_mask", "mask"),
    "token_type_ids": ("token_type_ids", "segment_ids", "input_type_ids"),
}
"""quantkit's name of an input -> names that exporters give it."""

OPTIONAL = ("token_type_ids",)
OUTPUT = "logits"
MIN_OPSET, CONVERTED, IR_VERSION = 13, 17, 8
QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "QLinearMatMul", "QGemm")


def load_onnx(path: str | Path) -> Network:
    """The network of an .onnx file.

    Inputs are renamed to input_ids, attention_mask and token_type_ids, the output to logits (what was renamed stands
    in `Network.notes`); all other names stay. Of several outputs the one called logits is taken, else the first of
    rank 2. Constants are folded, changing dimensions of the inputs become "batch" and "sequence".

    Raises:
        ModelError: the file is missing or damaged, keeps constants outside its folder, uses operators outside ONNX's
            own set, is quantized already or not float32, is no BERT-like model, or has no weight to quantize.
    """
    file = Path(path)
    model, notes = _read_modern(file)
    _switch_dropout_off(model.graph, notes)
    inputs = _match_inputs(model, file)
    _name_dims(model)
    _name_nodes(model.graph)
    infer_shapes(model)
    _rename(model, {**inputs, **_take_output(model, file)}, notes)
    fold_constants(model)
    network = Network(model, notes=tuple(notes))
    _check_network(network, file)
    return network


def _read_modern(file: Path) -> tuple[onnx.ModelProto, list[str]]:
    """A model of ONNX's own operators, opset 13 or later, whose constants are no inputs; and notes."""
    model, notes = read_model(file), list[str]()
    _check_operators(model, file)
    model = _modern(model, notes)
    _drop_listed_constants(model)
    return model, notes


def read_plain(path: str | Path) -> tuple[onnx.ModelProto, list[str]]:
    """An .onnx file of any kind as a float32 model to be quantized, every tensor under its own name; and notes.

    Checked, external constants read in, opset 13 or later, every node with a name of its own, constants folded.

    Raises:
        ModelError: as `load_onnx`, but any inputs and outputs will do.
    """
    file = Path(path)
    model, notes = _read_modern(file)
    _name_nodes(model.graph)
    fold_constants(model)
    return model, notes


def read_model(file: Path) -> onnx.ModelProto:
    """Reads and checks a model file and what it keeps beside it."""
    try:
        if file.stat().st_size > MAX_BYTES:
            raise ModelError(f"{file} is larger than {MAX_BYTES} bytes.", "Give a smaller model.")
        model = onnx.load_model_from_string(file.read_bytes())
    except FileNotFoundError as error:
        raise ModelError(f"There is no file {file}.", "Check the path.") from error
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error.strerror or error}.") from error
    except (DecodeError, RecursionError) as error:
        raise ModelError(f"{file} is not an ONNX model, or it is damaged.", "Fetch or export it again.") from error
    check_texts(model, file.name)
    read_external_data(model, file.parent)
    check_types(model, file.name)
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or ["no reason given"])[0].rstrip(".")
        raise ModelError(f"{file} is not a valid ONNX model: {reason}.", "Fetch or export it again.") from error
    return model


def _check_operators(model: onnx.ModelProto, file: Path) -> None:
    """Refuses operators outside ONNX's own set, local functions, and models that are quantized already."""
    foreign = Counter(f"{n.domain}.{n.op_type}" for n in model.graph.node if n.domain not in ("", "ai.onnx"))
    if model.functions or foreign:
        names = ", ".join(name for name, _ in foreign.most_common(5)) or "local functions"
        raise ModelError(
            f"{file.name} uses operators outside ONNX's own set ({names}).",
            "Export the model without fusing operators (no optimizer), functions inlined (onnx.inliner).",
        )
    quantized = sorted({n.op_type for n in model.graph.node} & set(QUANTIZED))
    if quantized:
        raise ModelError(f"{file.name} is quantized already ({', '.join(quantized)}).", "Give the float32 model.")
    if model.graph.sparse_initializer:
        raise ModelError(f"{file.name} holds sparse constants, which the runtimes do not take.", "Export it dense.")


def _modern(model: onnx.ModelProto, notes: list[str]) -> onnx.ModelProto:
    """The model in an opset that has quantization per channel; converted when its own is older."""
    opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)
    if opset >= MIN_OPSET:
        return model
    try:
        converted = version_converter.convert_version(model, CONVERTED)
    except (RuntimeError, ValueError, onnx.checker.ValidationError) as error:
        raise ModelError(
            f"The model uses opset {opset}; {MIN_OPSET} or later is needed, and it cannot be converted.",
            f"Export it with opset {CONVERTED}.",
        ) from error
    notes.append(f"The model was converted from opset {opset} to {CONVERTED}.")
    return converted


def _drop_listed_constants(model: onnx.ModelProto) -> None:
    """Takes constants out of the list of inputs, where IR versions before 4 listed them; raises the version."""
    constants = {tensor.name for tensor in model.graph.initializer}
    for i in reversed(range(len(model.graph.input))):
        if model.graph.input[i].name in constants:
            del model.graph.input[i]
    model.ir_version = max(model.ir_version, IR_VERSION)


def _switch_dropout_off(graph: onnx.GraphProto, notes: list[str]) -> None:
    """Makes every Dropout an Identity: at inference it is one, whatever mode the model was exported in."""
    trained = 0
    for node in graph.node:
        if node.op_type == "Dropout":
            trained += len(node.input) > 2 and bool(node.input[2])  # the third input switches training on
            source, result = node.input[0], node.output[0]
            del node.input[:], node.output[:], node.attribute[:]
            node.op_type = "Identity"
            node.input.append(source)
            node.output.append(result)
    if trained:
        notes.append(f"{trained} Dropout nodes that could train were switched off.")


def _match_inputs(model: onnx.ModelProto, file: Path) -> dict[str, str]:
    """The graph's name of each input -> quantkit's."""
    found: dict[str, str] = {}
    for info in model.graph.input:
        bare = info.name.split(":")[0]
        wanted = next((name for name, others in INPUTS.items() if bare in others), None)
        if wanted is not None and wanted not in found.values():
            found[info.name] = wanted
    listed = ", ".join(_described(info) for info in model.graph.input) or "none"
    missing = [name for name in INPUTS if name not in found.values() and name not in OPTIONAL]
    extra = [info.name for info in model.graph.input if info.name not in found]
    if missing or extra:
        problem = f"lacks the input {missing[0]}" if missing else f"has the unknown input {extra[0]}"
        raise ModelError(
            f"{file.name} {problem}; it has {listed}.",
            "Give a BERT-like classifier with inputs input_ids, attention_mask and, if it wants, token_type_ids.",
        )
    for info in model.graph.input:
        kind = info.type.tensor_type
        if kind.elem_type not in (TensorProto.INT32, TensorProto.INT64) or len(kind.shape.dim) != 2:
            raise ModelError(
                f"{file.name} takes {_described(info)}; expected int32 or int64 of shape (batch, sequence).",
                "Export the model with token numbers as inputs.",
            )
    return found


def _take_output(model: onnx.ModelProto, file: Path) -> dict[str, str]:
    """Leaves one output, the logits; its name -> quantkit's."""
    ranked = [info for info in model.graph.output if len(info.type.tensor_type.shape.dim) == 2]
    chosen = next((info for info in ranked if info.name.split(":")[0] == OUTPUT), ranked[0] if ranked else None)
    if chosen is None or chosen.type.tensor_type.elem_type != TensorProto.FLOAT:
        listed = ", ".join(_described(info) for info in model.graph.output) or "none"
        raise ModelError(
            f"{file.name} has no float32 output of shape (batch, labels); it has {listed}.",
            "Export the model for sequence classification, in float32.",
        )
    kept = onnx.ValueInfoProto()
    kept.CopyFrom(chosen)
    del model.graph.output[:]
    model.graph.output.append(kept)
    return {kept.name: OUTPUT}


def _rename(model: onnx.ModelProto, names: Mapping[str, str], notes: list[str]) -> None:
    """Gives inputs and output their names, in place; another tensor that has one of them gets a new name first."""
    graph = model.graph
    taken = {name for node in graph.node for name in (*node.input, *node.output)}
    changed = {old: new for old, new in names.items() if old != new}
    swapped = dict(changed)
    for new in changed.values():
        if new in taken and new not in names:
            fresh = next(f"{new}_{i}" for i in range(1, len(taken) + 2) if f"{new}_{i}" not in taken)
            taken.add(fresh)
            swapped[new] = fresh
    if not changed:
        return
    _rename_in(graph, swapped)
    notes.append("Renamed: " + ", ".join(f"{old} to {new}" for old, new in changed.items()) + ".")


def _rename_in(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Renames tensors wherever they occur, subgraphs included."""
    for node in graph.node:
        for part in (node.input, node.output):
            for i, name in enumerate(part):
                part[i] = names.get(name, name)
        if has_subgraph(node):
            for attr in node.attribute:
                for sub in (*attr.graphs, *([attr.g] if attr.HasField("g") else [])):
                    _rename_in(sub, names)
    for infos in (graph.input, graph.output, graph.value_info, graph.initializer):
        for info in infos:
            info.name = names.get(info.name, info.name)


def _name_nodes(graph: onnx.GraphProto) -> None:
    """Gives every node a name of its own: that of its first result where it has none or shares it."""
    taken: set[str] = set()
    for node in graph.node:
        name = node.name if node.name and node.name not in taken else f"{node.op_type}:{node.output[0]}"
        while name in taken:
            name += "_"
        node.name = name
        taken.add(name)


def _name_dims(model: onnx.ModelProto) -> None:
    """Calls the changing dimensions of all inputs "batch" and "sequence"; a fixed extent must be the same in all."""
    dims: list[int | str] = [BATCH, SEQUENCE]
    for info in model.graph.input:
        for axis, dim in enumerate(info.type.tensor_type.shape.dim):
            if dim.HasField("dim_value"):
                if isinstance(dims[axis], int) and dims[axis] != dim.dim_value:
                    raise ModelError(f"The model's inputs have different shapes: {_described(info)} and {dims[axis]}.")
                dims[axis] = int(dim.dim_value)
    set_input_shapes(model, (dims[0], dims[1]))


def _check_network(network: Network, file: Path) -> None:
    """Raises ModelError when there is nothing to quantize, or no encoder to quantize it in."""
    products, index = network.weight_matmuls(), network.index
    counts = Counter(node.op_type for node in network.proto.graph.node).most_common(6)
    found = ", ".join(f"{count} {kind}" for kind, count in counts) or "no nodes"
    if any(
        t.data_type in (TensorProto.FLOAT16, TensorProto.BFLOAT16) and len(t.dims) == 2
        for t in index.initializers.values()
    ):
        raise ModelError(f"{file.name} holds half-precision weights.", "Export the model in float32.")
    if not products:
        raise ModelError(
            f"{file.name} has no MatMul or Gemm with a constant float32 matrix; it has {found}.",
            "Export the model with its weights as constants.",
        )
    if not find_encoder(index).num_layers:
        raise ModelError(
            f"{file.name} has no attention layer (a Softmax between two products of activations); it has {found}.",
            "Give a BERT-like model, its attention exported as plain MatMul and Softmax.",
        )


def _described(info: onnx.ValueInfoProto) -> str:
    """Name, element type and shape of an input or output, for messages."""
    kind = info.type.tensor_type
    dims = ", ".join(str(d.dim_value) if d.HasField("dim_value") else d.dim_param or "?" for d in kind.shape.dim)
    return f"{info.name} ({TensorProto.DataType.Name(kind.elem_type).lower()}, ({dims}))"

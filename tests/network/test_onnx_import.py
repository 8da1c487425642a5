"""Foreign .onnx files: what is taken, renamed, folded and refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from network_helpers import Foreign, NumpyBert, feed, run, tiny_model
from onnx import TensorProto, helper, numpy_helper

from quantkit.errors import ModelError
from quantkit.network.config import BertConfig
from quantkit.network.model import load_model
from quantkit.network.onnx_import import load_onnx

MakeForeign = Callable[..., onnx.ModelProto]


@pytest.fixture()
def exported(tiny_bert_dir: Path) -> MakeForeign:
    """Makes a foreign export of the tiny model."""

    def make(opset: int = 14, names: bool = True, **how: object) -> onnx.ModelProto:
        foreign = Foreign(tiny_model(tiny_bert_dir), BertConfig.from_dir(tiny_bert_dir), opset, names=names)
        return foreign.model(**how)  # type: ignore[arg-type]

    return make


@pytest.fixture()
def expected(tiny_bert_dir: Path) -> np.ndarray:
    return NumpyBert(tiny_model(tiny_bert_dir), BertConfig.from_dir(tiny_bert_dir)).logits(feed(100))


def save(model: onnx.ModelProto, folder: Path) -> Path:
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"kind": TensorProto.INT32},
        {"names": False},
        {"inputs": ("input_ids:0", "input_mask", "segment_ids"), "output": "logits:0"},
        {"inputs": ("ids", "mask", "input_type_ids"), "output": "val_7x"},
        {"shape": (3, 11)},
        {"shape": (3, "tokens")},
        {"shape": (None, None)},
    ],
)
def test_foreign_exports_give_the_same_logits(
    exported: MakeForeign, expected: np.ndarray, tmp_path: Path, how: dict[str, object]
) -> None:
    network = load_onnx(save(exported(**how), tmp_path))
    assert network.input_names == ("input_ids", "attention_mask", "token_type_ids")
    assert (network.output_name, network.num_labels, network.max_positions) == ("logits", 2, None)
    onnx.checker.check_model(network.proto, full_check=True)
    for model in (network.proto, network.fixed(3, 11)):
        assert np.abs(run(model, feed(100))["logits"] - expected).max() < 1e-5


def test_our_own_graph_comes_back(tiny_bert_dir: Path, tmp_path: Path) -> None:
    ours = load_model(tiny_bert_dir)
    back = load_onnx(save(ours.proto, tmp_path))
    assert back.sha256 == ours.sha256
    assert back.notes == ()
    assert back.axes() == ours.axes()


def test_node_names_are_unique_and_tensor_names_stay(exported: MakeForeign, tmp_path: Path) -> None:
    model = exported(names=False)
    for node in model.graph.node[::3]:
        node.name = "same"
    network = load_onnx(save(model, tmp_path))
    names = [node.name for node in network.proto.graph.node]
    assert all(names)
    assert len(set(names)) == len(names)
    before = {name for node in model.graph.node for name in node.output}
    assert set(network.names) - {"logits"} <= before


def test_constants_are_folded(exported: MakeForeign, tmp_path: Path) -> None:
    network = load_onnx(save(exported(), tmp_path))
    kinds = {node.op_type for node in network.proto.graph.node}
    assert "Constant" not in kinds
    weights = {product.weight for product in network.weight_matmuls()}
    assert weights <= {tensor.name for tensor in network.proto.graph.initializer}
    assert len(weights) == 14  # the two behind a Transpose included


def test_what_was_renamed_is_said(exported: MakeForeign, tmp_path: Path) -> None:
    model = exported(inputs=("ids", "attention_mask", "token_type_ids"))
    inner = next(name for node in model.graph.node for name in node.output if node.op_type == "Softmax")
    for node in model.graph.node:  # a tensor that has the name the output is to have
        for part in (node.input, node.output):
            for i, name in enumerate(part):
                part[i] = "logits" if name == inner else name
    network = load_onnx(save(model, tmp_path))
    assert network.notes == ("Renamed: ids to input_ids, output_0 to logits.",)
    assert "logits_1" in network.activations()


def test_the_first_rank_two_output_or_the_one_called_logits(exported: MakeForeign, tmp_path: Path) -> None:
    model = exported()
    kinds = {node.op_type: node.output[0] for node in model.graph.node}
    others = [(kinds["Softmax"], ("b", 2, "s", "s")), (kinds["Tanh"], ("b", 32))]
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in others]
    model.graph.output.extend(infos)
    assert load_onnx(save(model, tmp_path)).num_labels == 2
    first = model.graph.output[0]
    reordered = [*infos, onnx.ValueInfoProto.FromString(first.SerializeToString())]
    del model.graph.output[:]
    model.graph.output.extend(reordered)
    assert load_onnx(save(model, tmp_path)).num_labels == 32
    model = exported(output="logits")
    model.graph.output.insert(0, infos[1])
    assert load_onnx(save(model, tmp_path)).num_labels == 2


def test_dropout_is_switched_off(exported: MakeForeign, expected: np.ndarray, tmp_path: Path) -> None:
    model = exported()
    softmax = next(node for node in model.graph.node if node.op_type == "Softmax")
    model.graph.initializer.extend(
        [numpy_helper.from_array(np.array(0.5, np.float32), "ratio"), numpy_helper.from_array(np.array(True), "train")]
    )
    position = list(model.graph.node).index(softmax) + 1
    dropout = helper.make_node("Dropout", [softmax.output[0], "ratio", "train"], ["dropped", "kept"], name="drop")
    model.graph.node[position].input[0] = "dropped"
    model.graph.node.insert(position, dropout)
    network = load_onnx(save(model, tmp_path))
    assert network.notes[0] == "1 Dropout nodes that could train were switched off."
    assert np.abs(run(network.proto, feed(100))["logits"] - expected).max() < 1e-5


def test_constants_listed_among_the_inputs(exported: MakeForeign, expected: np.ndarray, tmp_path: Path) -> None:
    model = exported()
    model.ir_version = 3
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    network = load_onnx(save(model, tmp_path))
    assert len(network.proto.graph.input) == 3
    assert np.abs(run(network.proto, feed(100))["logits"] - expected).max() < 1e-5


def test_old_opsets_are_converted(tiny_bert_dir: Path, tmp_path: Path) -> None:
    # Opset 12 gives Unsqueeze its axes as an attribute; the rest of what the export uses is the same in 12.
    foreign = Foreign(tiny_model(tiny_bert_dir), BertConfig.from_dir(tiny_bert_dir), 12)
    model = foreign.model()
    for node in model.graph.node:
        if node.op_type == "Unsqueeze":
            del node.input[1]
            node.attribute.append(helper.make_attribute("axes", [1, 2]))
    network = load_onnx(save(model, tmp_path))
    assert network.notes[0] == "The model was converted from opset 12 to 17."
    reference = NumpyBert(tiny_model(tiny_bert_dir), BertConfig.from_dir(tiny_bert_dir)).logits(feed(100))
    assert np.abs(run(network.proto, feed(100))["logits"] - reference).max() < 1e-5


def drop_input(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = "input_ids" if name == "attention_mask" else name
    del model.graph.input[1]


def rename_input(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("pixels", TensorProto.INT64, ["b", "s"]))


def wide_input(model: onnx.ModelProto) -> None:
    model.graph.input[1].type.tensor_type.shape.dim.add().dim_value = 4


def float_input(model: onnx.ModelProto) -> None:
    model.graph.input[1].type.tensor_type.elem_type = TensorProto.FLOAT


def no_logits(model: onnx.ModelProto) -> None:
    softmax = next(node for node in model.graph.node if node.op_type == "Softmax")
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info(softmax.output[0], TensorProto.FLOAT, ["b", 2, "s", "s"]))


def foreign_operator(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    node = next(node for node in model.graph.node if node.op_type == "Erf")
    node.domain, node.op_type = "com.microsoft", "FastGelu"


def quantized(model: onnx.ModelProto) -> None:
    softmax = next(node for node in model.graph.node if node.op_type == "Softmax")
    at = list(model.graph.node).index(softmax) + 1
    model.graph.initializer.append(numpy_helper.from_array(np.array(0.01, np.float32), "s"))
    model.graph.node[at].input[0] = "dq"
    model.graph.node.insert(at, helper.make_node("DequantizeLinear", ["q", "s"], ["dq"], name="dq"))
    model.graph.node.insert(at, helper.make_node("QuantizeLinear", [softmax.output[0], "s"], ["q"], name="q"))


def different_shapes(model: onnx.ModelProto) -> None:
    for info, extent in zip(model.graph.input, (4, 5, 4), strict=True):
        info.type.tensor_type.shape.dim[0].Clear()
        info.type.tensor_type.shape.dim[0].dim_value = extent


def no_attention(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if node.op_type == "Softmax":
            node.op_type = "Relu"
            del node.attribute[:]


def duplicate_result(model: onnx.ModelProto) -> None:
    model.graph.node[5].output[0] = model.graph.node[4].output[0]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (drop_input, r"lacks the input attention_mask; it has input_ids \(int64, \(batch_size, seq\)\)"),
        (rename_input, "unknown input pixels"),
        (wide_input, r"attention_mask \(int64, \(batch_size, seq, 4\)\); expected"),
        (float_input, r"attention_mask \(float,"),
        (no_logits, r"no float32 output of shape \(batch, labels\)"),
        (foreign_operator, r"com\.microsoft\.FastGelu"),
        (quantized, r"quantized already \(DequantizeLinear, QuantizeLinear\)"),
        (different_shapes, "inputs have different shapes"),
        (no_attention, "no attention layer"),
        (duplicate_result, "not a valid ONNX model"),
    ],
)
def test_what_cannot_be_used_is_refused(
    exported: MakeForeign, tmp_path: Path, spoil: Callable[[onnx.ModelProto], None], words: str
) -> None:
    model = exported()
    spoil(model)
    with pytest.raises(ModelError, match=words):
        load_onnx(save(model, tmp_path))


def test_a_graph_without_constant_matrices(tmp_path: Path) -> None:
    inputs = [helper.make_tensor_value_info(n, TensorProto.INT64, ["b", "s"]) for n in ("input_ids", "attention_mask")]
    nodes = [
        helper.make_node("Mul", ["input_ids", "attention_mask"], ["product"]),
        helper.make_node("Cast", ["product"], ["logits"], to=TensorProto.FLOAT),
    ]
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", "s"])
    graph = helper.make_graph(nodes, "g", inputs, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(ModelError, match="no MatMul or Gemm with a constant float32 matrix; it has 1 Mul, 1 Cast"):
        load_onnx(save(model, tmp_path))


def test_half_precision_is_refused(exported: MakeForeign, tmp_path: Path) -> None:
    model = exported()
    node = next(node for node in model.graph.node if node.op_type == "Gemm")
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[1])
    half = numpy_helper.from_array(numpy_helper.to_array(weight).astype(np.float16), "half")
    model.graph.initializer.append(half)
    model.graph.node.insert(0, helper.make_node("Cast", ["half"], ["whole"], name="cast", to=TensorProto.FLOAT))
    node = next(node for node in model.graph.node if node.op_type == "Gemm")
    node.input[1] = "whole"
    assert len(load_onnx(save(model, tmp_path)).weight_matmuls()) == 14  # a cast constant is folded to float32
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    with pytest.raises(ModelError):
        load_onnx(save(model, tmp_path))


def test_damaged_files(exported: MakeForeign, tmp_path: Path) -> None:
    whole = exported().SerializeToString()
    file = tmp_path / "model.onnx"
    with pytest.raises(ModelError, match="There is no file"):
        load_onnx(file)
    for content in (b"", b"not a model at all", whole[: len(whole) // 2], b"\xff" * 300, whole[100:]):
        file.write_bytes(content)
        with pytest.raises(ModelError):
            load_onnx(file)
    with pytest.raises(ModelError, match="cannot be read"):
        load_onnx(tmp_path)

"""Network: activations, aliases, axes, hash, static copies."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from network_helpers import Foreign, copy_model, feed, run, tiny_model

from quantkit.errors import ModelError
from quantkit.network.config import BertConfig
from quantkit.network.graph import Network
from quantkit.network.model import load_model
from quantkit.network.onnx_builder import build_bert_onnx
from quantkit.network.onnx_import import load_onnx
from quantkit.network.weights import load_weights


@pytest.fixture(scope="module")
def network(tiny_bert_dir: Path) -> Network:
    return load_model(tiny_bert_dir)


@pytest.fixture(scope="module")
def foreign(tiny_bert_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Network:
    file = tmp_path_factory.mktemp("foreign") / "model.onnx"
    onnx.save(Foreign(tiny_model(tiny_bert_dir), BertConfig.from_dir(tiny_bert_dir)).model(), file)
    return load_onnx(file)


def test_activations_are_the_float_tensors_computed_from_data(network: Network) -> None:
    names = network.activations()
    assert names == [n for n in network.names if n not in ("embeddings.position.extent", "embeddings.position")]
    assert names.index("layer0.attention.norm") < names.index("layer0.ffn.intermediate") < names.index("logits")
    values = run(network.proto, feed(100), names)
    assert all(values[name].dtype == np.float32 for name in names)


def test_foreign_activations_leave_shapes_masks_and_constants_out(foreign: Network) -> None:
    kinds = {n: node.op_type for node in foreign.proto.graph.node for n in node.output}
    left_out = {kinds[n] for n in foreign.names} - {kinds[n] for n in foreign.activations()}
    # Cast of the mask is floating point and computed from data; Equal is boolean, the rest computes shapes.
    assert left_out == {"Shape", "Concat", "Equal", "Unsqueeze", "Slice"}
    assert "Cast" in {kinds[n] for n in foreign.activations()}


def test_every_activation_is_there_in_the_static_copy(network: Network, foreign: Network) -> None:
    for net in (network, foreign):
        assert Network(net.fixed(3, 11)).activations() == net.activations()


def test_aliases_hold_the_same_values(network: Network, foreign: Network) -> None:
    for net in (network, foreign):
        values = run(net.proto, feed(100), net.activations())
        aliases = net.aliases()
        assert aliases
        for alias, source in aliases.items():
            assert source not in aliases
            assert np.array_equal(np.sort(values[alias], None), np.sort(values[source], None)), alias
    assert network.aliases()["layer0.attention.query_heads"] == "layer0.attention.query_scaled"
    assert network.aliases()["layer1.attention.context"] == "layer1.attention.context_heads"
    assert network.aliases()["mask.flat"] == "mask.shifted"
    assert len(network.aliases()) == 1 + 8 * 2


AXES = {
    "embeddings.norm": ("batch", "sequence", None),
    "mask.additive": ("batch", None, None, "sequence"),
    "layer0.attention.key_heads": ("batch", None, None, "sequence"),
    "layer0.attention.probs": ("batch", None, "sequence", "sequence"),
    "layer1.ffn.gelu": ("batch", "sequence", None),
    "pooler.tanh": ("batch", None),
    "logits": ("batch", None),
}


@pytest.mark.parametrize("shape", [(None, None), (3, None), (None, 11), (3, 11), (1, 11), (11, 11), (32, 11)])
def test_axes_of_our_graph(tiny_bert_dir: Path, shape: tuple[int | None, int | None]) -> None:
    config = BertConfig.from_dir(tiny_bert_dir)
    net = Network(build_bert_onnx(config, load_weights(tiny_bert_dir, None, config), *shape))
    axes = net.axes()
    assert axes.keys() == set(net.activations())
    for name, expected in AXES.items():
        assert axes[name] == expected, name


@pytest.mark.parametrize("length", [2, 16, 32, 64])
def test_a_length_that_is_also_a_width_has_no_axis(tiny_bert_dir: Path, length: int) -> None:
    # 2 heads of 16, hidden 32, inner 64: with fixed shapes such a length cannot be told from the width.
    config = BertConfig.from_dir(tiny_bert_dir)
    net = Network(build_bert_onnx(config, load_weights(tiny_bert_dir, None, config), 3, length))
    assert all("sequence" not in axes for axes in net.axes().values())


def test_axes_of_a_foreign_graph_are_those_of_the_values(foreign: Network) -> None:
    axes = foreign.axes()
    assert axes.keys() == set(foreign.activations())
    for batch, length in ((3, 9), (5, 13)):
        for name, value in run(foreign.proto, feed(100, batch, length), foreign.activations()).items():
            marked = dict(zip(("batch", "sequence"), (batch, length), strict=True))
            expected = tuple(dim for dim in value.shape if dim in (batch, length))
            assert tuple(marked[axis] for axis in axes[name] if axis) == expected, name


def test_hash_is_the_same_in_another_process(network: Network, tiny_bert_dir: Path) -> None:
    code = f"from quantkit.network.model import load_model; print(load_model({str(tiny_bert_dir)!r}).sha256)"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert other == network.sha256
    assert len(other) == 64


def test_hash_knows_weights_and_graph_but_not_storage(network: Network, tiny_bert_dir: Path, tmp_path: Path) -> None:
    changed = tiny_model(tiny_bert_dir)
    changed["classifier.bias"] = np.nextafter(changed["classifier.bias"], np.float32(9))
    other = load_model(copy_model(tiny_bert_dir, tmp_path / "other", changed))
    renamed = onnx.ModelProto()
    renamed.CopyFrom(network.proto)
    renamed.graph.node[-1].op_type = "Sub"
    stored = onnx.ModelProto()
    stored.CopyFrom(network.proto)
    stored.producer_version, stored.graph.doc_string = "x", "y"
    tensor = next(t for t in stored.graph.initializer if t.name == "logits.bias")
    values = onnx.numpy_helper.to_array(tensor)
    tensor.ClearField("raw_data")
    tensor.float_data.extend(values.tolist())
    assert len({network.sha256, other.sha256, Network(renamed).sha256}) == 3
    assert Network(stored).sha256 == network.sha256


def test_static_copy_gives_the_same_and_has_no_shape_arithmetic(network: Network, foreign: Network) -> None:
    tokens = feed(100)
    for net in (network, foreign):
        static = net.fixed(3, 11)
        onnx.checker.check_model(static, full_check=True)
        assert np.array_equal(run(static, tokens)["logits"], run(net.proto, tokens)["logits"])
        assert not {"Shape", "Concat", "Constant", "ConstantOfShape"} & {node.op_type for node in static.graph.node}
        dims = [d for info in (*static.graph.value_info, *static.graph.output) for d in info.type.tensor_type.shape.dim]
        assert all(d.HasField("dim_value") for d in dims)
    assert "embeddings.position" in {t.name for t in network.fixed(3, 11).graph.initializer}


def test_static_copy_leaves_the_original(network: Network) -> None:
    before = network.proto.SerializeToString(deterministic=True)
    network.fixed(2, 7)
    assert network.proto.SerializeToString(deterministic=True) == before


def test_extents_that_do_not_fit(network: Network, foreign: Network, tiny_bert_dir: Path) -> None:
    with pytest.raises(ModelError, match="64 positions"):
        network.fixed(2, 65)
    with pytest.raises(ModelError, match="shapes do not fit"):
        foreign.fixed(2, 65)
    static = Network(network.fixed(2, 7))
    assert static.fixed(2, 7).graph.node == static.proto.graph.node
    with pytest.raises(ModelError, match="fixed sequence length 7; 8 was"):
        static.fixed(2, 8)
    with pytest.raises(ModelError, match="fixed batch 2; 1 was"):
        static.fixed(1, 7)


def test_weight_matmuls(network: Network, foreign: Network) -> None:
    products = network.weight_matmuls()
    assert len(products) == 2 * 6 + 2
    first = products[0]
    assert first.node == first.output == "layer0.attention.query.matmul"
    assert (first.activation, first.weight) == ("embeddings.norm", "layer0.attention.query.weight")
    assert [p.node for p in products[-2:]] == ["pooler.dense.matmul", "logits.matmul"]
    assert len(foreign.weight_matmuls()) == 14


def test_what_a_network_says_of_itself(network: Network) -> None:
    assert network.num_labels == 2
    assert network.id2label == {0: "negative", 1: "positive"}
    assert network.input_names == ("input_ids", "attention_mask", "token_type_ids")
    assert (network.output_name, network.max_positions, network.notes) == ("logits", 64, ())


def test_load_model_refuses_what_it_cannot_load(tiny_bert_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model"):
        load_model(tmp_path / "nothing")
    with pytest.raises(ModelError, match="2 outputs; the task needs 3"):
        load_model(tiny_bert_dir, num_labels=3)
    file = tmp_path / "m.onnx"
    onnx.save(load_model(tiny_bert_dir).proto, file)
    assert load_model(file, num_labels=2).num_labels == 2
    with pytest.raises(ModelError, match="adapter cannot be merged"):
        load_model(file, tmp_path)
    with pytest.raises(ModelError, match="2 outputs; the task needs 1"):
        load_model(file, num_labels=1)

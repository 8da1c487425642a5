"""Layers found by what nodes do: in our graph, in a foreign one, and not where there are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from network_helpers import Foreign, tiny_model
from onnx import TensorProto, helper

from quantkit.network.config import BertConfig
from quantkit.network.index import GraphIndex
from quantkit.network.model import load_model
from quantkit.network.onnx_builder import build_bert_onnx
from quantkit.network.onnx_import import load_onnx
from quantkit.network.structure import find_encoder
from quantkit.network.weights import expected_shapes


def test_our_layers(tiny_bert_dir: Path) -> None:
    encoder = find_encoder(load_model(tiny_bert_dir).index)
    found = [(site.layer, site.role, site.product.node) for site in encoder.sites]
    assert found == [
        (layer, role, f"layer{layer}.{name}.matmul")
        for layer in range(2)
        for role, name in (
            ("attention", "attention.query"),
            ("attention", "attention.key"),
            ("attention", "attention.value"),
            ("attention.output", "attention.output"),
            ("ffn", "ffn.intermediate"),
            ("ffn", "ffn.output"),
        )
    ]
    assert [p.node for p in encoder.others] == ["pooler.dense.matmul", "logits.matmul"]
    pair = encoder.products[1]
    assert (pair.layer, pair.scores_node, pair.context_node) == (
        1,
        "layer1.attention.scores",
        "layer1.attention.context_heads",
    )
    assert (pair.query, pair.key, pair.probs, pair.value) == tuple(
        f"layer1.attention.{name}" for name in ("query_heads", "key_heads", "probs", "value_heads")
    )


def test_masked_lm_head_is_no_layer(tiny_bert_dir: Path) -> None:
    for act in ("gelu", "gelu_new", "relu"):
        config = BertConfig.from_dict(
            {
                "hidden_size": 8,
                "num_hidden_layers": 3,
                "num_attention_heads": 2,
                "intermediate_size": 12,
                "vocab_size": 20,
                "max_position_embeddings": 9,
                "hidden_act": act,
            }
        )
        weights = {n: np.ones(s, np.float32) for n, s in expected_shapes(config, "masked-lm", 0).items()}
        encoder = find_encoder(GraphIndex(build_bert_onnx(config, weights, head="masked-lm").graph))
        assert (encoder.num_layers, len(encoder.sites)) == (3, 18)
        assert [p.node for p in encoder.others] == ["transform.dense.matmul", "logits.matmul"]


@pytest.mark.parametrize("opset", [14, 17])
def test_foreign_layers(tiny_bert_dir: Path, tmp_path: Path, opset: int) -> None:
    foreign = Foreign(tiny_model(tiny_bert_dir), BertConfig.from_dir(tiny_bert_dir), 14)
    model = foreign.model()
    if opset == 17:
        model.opset_import[0].version = 17
    file = tmp_path / "m.onnx"
    onnx.save(model, file)
    encoder = find_encoder(load_onnx(file).index)
    assert [(site.layer, site.role) for site in encoder.sites] == [
        (layer, role) for layer in range(2) for role in (*["attention"] * 3, "attention.output", "ffn", "ffn")
    ]
    assert len(encoder.others) == 2


def test_a_softmax_that_is_no_attention() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"], name="dense"),
        helper.make_node("Softmax", ["y"], ["logits"], name="softmax"),
    ]
    weight = helper.make_tensor("w", TensorProto.FLOAT, [4, 2], [0.0] * 8)
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [3, d]) for n, d in (("x", 4), ("logits", 2))]
    encoder = find_encoder(GraphIndex(helper.make_graph(nodes, "g", info[:1], info[1:], [weight])))
    assert encoder.num_layers == 0
    assert [p.node for p in encoder.others] == ["dense"]

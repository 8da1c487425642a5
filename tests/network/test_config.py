"""config.json: read, defaulted, refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quantkit.errors import ModelError
from quantkit.network.config import BertConfig

GOOD = {
    "model_type": "bert",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 100,
    "max_position_embeddings": 64,
}


def test_reads_a_folder(tiny_bert_dir: Path) -> None:
    config = BertConfig.from_dir(tiny_bert_dir)
    assert (config.hidden_size, config.num_layers, config.num_heads, config.head_size) == (32, 2, 2, 16)
    assert (config.intermediate_size, config.max_positions, config.type_vocab_size) == (64, 64, 2)
    assert config.id2label == {0: "negative", 1: "positive"}
    assert config.hidden_act == "gelu"


def test_defaults_are_hugging_faces() -> None:
    config = BertConfig.from_dict(GOOD)
    assert (config.type_vocab_size, config.layer_norm_eps, config.num_labels) == (2, 1e-12, 2)
    assert config.id2label == {}


def test_labels_are_ordered_by_number() -> None:
    labels = {str(i): f"L{i}" for i in reversed(range(12))}
    config = BertConfig.from_dict({**GOOD, "id2label": labels})
    assert list(config.id2label) == list(range(12))
    assert config.num_labels == 12


@pytest.mark.parametrize(
    ("given", "meant"), [("gelu_pytorch_tanh", "gelu_new"), ("gelu_python", "gelu"), ("relu", "relu")]
)
def test_activations_under_their_other_names(given: str, meant: str) -> None:
    assert BertConfig.from_dict({**GOOD, "hidden_act": given}).hidden_act == meant


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "roberta"}, "type 'roberta'"),
        ({"position_embedding_type": "relative_key"}, "'relative_key' position"),
        ({"is_decoder": True}, "decoder"),
        ({"hidden_size": None}, "lacks 'hidden_size'"),
        ({"hidden_size": 30}, "cannot be cut into 4"),
        ({"num_hidden_layers": 0}, "num_hidden_layers as 0"),
        ({"num_hidden_layers": 65535}, "num_hidden_layers as 65535"),
        ({"num_hidden_layers": True}, "num_hidden_layers as True"),
        ({"vocab_size": "100"}, "vocab_size as '100'"),
        ({"vocab_size": 1 << 40}, "vocab_size as"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps"),
        ({"layer_norm_eps": 0}, "layer_norm_eps"),
        ({"hidden_act": "swish"}, "activation 'swish'"),
        ({"hidden_act": ["gelu"]}, "activation"),
        ({"id2label": {"0": "a", "2": "b"}}, "numbers its classes"),
        ({"id2label": ["a", "b"]}, "id2label"),
    ],
)
def test_what_cannot_be_built_is_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        BertConfig.from_dict({**GOOD, **change})


def test_other_architectures_are_sent_to_onnx() -> None:
    with pytest.raises(ModelError) as caught:
        BertConfig.from_dict({**GOOD, "model_type": "distilbert"})
    assert ".onnx" in caught.value.hint


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff\xfe", b"[" * 100_000])
def test_damaged_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"config\.json"):
        BertConfig.from_dir(tmp_path)


def test_a_folder_without_config_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        BertConfig.from_dir(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(GOOD))
    assert BertConfig.from_dir(tmp_path).num_heads == 4

"""Weights: names, shapes, formats, shards, and what is said when they do not fit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from network_helpers import copy_model, tiny_model
from safetensors.numpy import save_file

from quantkit.errors import ModelError
from quantkit.network.config import BertConfig
from quantkit.network.weights import expected_shapes, load_weights, read_weights


@pytest.fixture()
def config(tiny_bert_dir: Path) -> BertConfig:
    return BertConfig.from_dir(tiny_bert_dir)


def test_canonical_names_in_the_networks_order(tiny_bert_dir: Path, config: BertConfig) -> None:
    weights = load_weights(tiny_bert_dir, None, config)
    assert list(weights) == list(expected_shapes(config, "classifier", 2))
    assert {value.dtype for value in weights.values()} == {np.dtype(np.float32)}
    stored = tiny_model(tiny_bert_dir)
    name = "encoder.layer.1.attention.self.value.weight"
    assert np.array_equal(weights[name], stored[f"bert.{name}"])


def test_prefix_old_norm_names_buffers_and_pretraining_heads(
    tiny_bert_dir: Path, config: BertConfig, tmp_path: Path
) -> None:
    stored = tiny_model(tiny_bert_dir)
    old = {
        name.removeprefix("bert.")
        .replace("LayerNorm.weight", "LayerNorm.gamma")
        .replace("LayerNorm.bias", "LayerNorm.beta"): v
        for name, v in stored.items()
    }
    old["embeddings.position_ids"] = np.arange(64)[None]
    old["cls.predictions.bias"] = np.zeros(config.vocab_size, np.float32)
    loaded = read_weights(copy_model(tiny_bert_dir, tmp_path / "old", old), None, config)
    assert loaded.unused == ("cls.predictions.bias",)
    for name, value in load_weights(tiny_bert_dir, None, config).items():
        assert np.array_equal(value, loaded.weights[name])


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float64"])
def test_other_floats_become_float32(tiny_bert_dir: Path, config: BertConfig, tmp_path: Path, kind: str) -> None:
    dtype = np.dtype(pytest.importorskip("ml_dtypes").bfloat16) if kind == "bfloat16" else np.dtype(kind)
    stored = {name: value.astype(dtype) for name, value in tiny_model(tiny_bert_dir).items()}
    weights = load_weights(copy_model(tiny_bert_dir, tmp_path / kind, stored), None, config)
    for name, value in stored.items():
        assert np.array_equal(weights[name.removeprefix("bert.")], value.astype(np.float32))


def test_shards(tiny_bert_dir: Path, config: BertConfig, tmp_path: Path) -> None:
    stored, where = tiny_model(tiny_bert_dir), {}
    for i in range(3):
        part = dict(list(stored.items())[i::3])
        save_file(part, tmp_path / f"model-{i}.safetensors")
        where |= dict.fromkeys(part, f"model-{i}.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    whole = load_weights(tiny_bert_dir, None, config)
    for name, value in load_weights(tmp_path, None, config).items():
        assert np.array_equal(value, whole[name])
    for bad in ("../model-0.safetensors", "/etc/passwd", "a\\b", ".."):
        index.write_text(json.dumps({"weight_map": {"x": bad}}))
        with pytest.raises(ModelError, match="not a file of its own folder"):
            load_weights(tmp_path, None, config)
    for bad_index in ("{}", "[]", '{"weight_map": {"x": 3}}', "{"):
        index.write_text(bad_index)
        with pytest.raises(ModelError, match="not an index"):
            load_weights(tmp_path, None, config)


def test_missing_and_unexpected_stand_in_one_message(tiny_bert_dir: Path, config: BertConfig, tmp_path: Path) -> None:
    stored = tiny_model(tiny_bert_dir)
    del stored["bert.encoder.layer.1.output.dense.bias"], stored["bert.embeddings.LayerNorm.weight"]
    stored["bert.encoder.layer.7.output.dense.bias"] = np.zeros(32, np.float32)
    with pytest.raises(ModelError) as caught:
        load_weights(copy_model(tiny_bert_dir, tmp_path / "m", stored), None, config)
    message = caught.value.message
    assert "2 missing: embeddings.LayerNorm.weight, encoder.layer.1.output.dense.bias" in message
    assert "1 unexpected: encoder.layer.7.output.dense.bias" in message
    assert "--adapter" not in caught.value.hint


def test_a_bare_encoder_asks_for_an_adapter(tiny_bert_dir: Path, config: BertConfig, tmp_path: Path) -> None:
    bare = {n: v for n, v in tiny_model(tiny_bert_dir).items() if not n.startswith("classifier")}
    with pytest.raises(ModelError, match=r"2 missing: classifier\.weight, classifier\.bias") as caught:
        load_weights(copy_model(tiny_bert_dir, tmp_path / "bare", bare), None, config)
    assert "--adapter" in caught.value.hint


def test_labels_come_from_the_classifier(tiny_bert_dir: Path, config: BertConfig, tmp_path: Path) -> None:
    stored = tiny_model(tiny_bert_dir)
    stored |= {"classifier.weight": np.zeros((5, 32), np.float32), "classifier.bias": np.zeros(5, np.float32)}
    folder = copy_model(tiny_bert_dir, tmp_path / "five", stored)
    assert read_weights(folder, None, config).num_labels == 5
    assert read_weights(folder, None, config, num_labels=5).num_labels == 5
    with pytest.raises(ModelError, match="5 outputs; 3 are wanted"):
        read_weights(folder, None, config, num_labels=3)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("classifier.bias", np.array([1, np.nan], np.float32), "classifier.bias holds 1 values that are NaN"),
        ("bert.pooler.dense.bias", np.full(32, np.inf, np.float32), "pooler.dense.bias holds 32"),
        ("bert.pooler.dense.bias", np.full(32, 1e300), "pooler.dense.bias holds 32"),
        ("bert.pooler.dense.weight", np.zeros((32, 32), np.int8), "holds int8"),
        ("bert.pooler.dense.weight", np.zeros((32, 16), np.float32), r"pooler.dense.weight is \(32, 16\)"),
        ("classifier.bias", np.zeros(3, np.float32), r"classifier.bias is \(3,\), expected \(2,\)"),
    ],
)
def test_bad_values_are_named(
    tiny_bert_dir: Path, config: BertConfig, tmp_path: Path, name: str, value: np.ndarray, words: str
) -> None:
    folder = copy_model(tiny_bert_dir, tmp_path / "bad", {**tiny_model(tiny_bert_dir), name: value})
    with pytest.raises(ModelError, match=words):
        load_weights(folder, None, config)


def test_a_weight_under_two_names(tiny_bert_dir: Path, config: BertConfig, tmp_path: Path) -> None:
    stored = tiny_model(tiny_bert_dir)
    stored["pooler.dense.bias"] = stored["bert.pooler.dense.bias"]
    with pytest.raises(ModelError, match="twice"):
        load_weights(copy_model(tiny_bert_dir, tmp_path / "two", stored), None, config)


def test_files_that_are_no_safetensors(tiny_bert_dir: Path, config: BertConfig, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no model\.safetensors"):
        load_weights(tmp_path, None, config)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin, which quantkit does not unpickle"):
        load_weights(tmp_path, None, config)
    whole = (tiny_bert_dir / "model.safetensors").read_bytes()
    for content in (b"", b"garbage " * 20, whole[:200], whole[:-10], b"\xff" * 8 + whole[8:]):
        (tmp_path / "model.safetensors").write_bytes(content)
        with pytest.raises(ModelError, match="not a readable safetensors file"):
            load_weights(tmp_path, None, config)

"""LoRA adapters: the merge against the formula, PEFT's settings, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from network_helpers import copy_model, tiny_model
from safetensors.numpy import save_file

from quantkit.errors import ModelError
from quantkit.network.config import BertConfig
from quantkit.network.weights import load_weights, read_weights

QUERY = "encoder.layer.0.attention.self.query"
INNER = "encoder.layer.1.intermediate.dense"
DRAW = np.random.default_rng(5)


def some(*shape: int) -> np.ndarray:
    return DRAW.standard_normal(shape).astype(np.float16)


def pair(module: str, outputs: int, inputs: int, rank: int = 4) -> dict[str, np.ndarray]:
    name = f"base_model.model.bert.{module}"
    return {f"{name}.lora_A.weight": some(rank, inputs), f"{name}.lora_B.weight": some(outputs, rank)}


def write_adapter(folder: Path, tensors: dict[str, np.ndarray], **settings: Any) -> Path:
    folder.mkdir(exist_ok=True)
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", **settings}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def by_hand(weight: np.ndarray, tensors: dict[str, np.ndarray], module: str, factor: float) -> np.ndarray:
    name = f"base_model.model.bert.{module}"
    a, b = (tensors[f"{name}.lora_{side}.weight"].astype(np.float64) for side in "AB")
    update = np.zeros(weight.shape)
    for k in range(a.shape[0]):
        update += np.outer(b[:, k], a[k])
    return weight + factor * update


@pytest.mark.parametrize(
    ("settings", "query_factor", "inner_factor"),
    [
        ({}, 2.0, 2.0),
        ({"use_rslora": True}, 4.0, 4.0),
        ({"alpha_pattern": {"attention.self.query": 1}}, 0.25, 2.0),
        ({"alpha_pattern": {r"layer\.\d+\.intermediate\.dense": 12}}, 2.0, 3.0),
        ({"alpha_pattern": {"self.quer": 1, "query2": 1}}, 2.0, 2.0),
        ({"use_rslora": True, "alpha_pattern": {"query": 6}}, 3.0, 4.0),
    ],
)
def test_merge_is_the_formula(
    tiny_bert_dir: Path, tmp_path: Path, settings: dict[str, Any], query_factor: float, inner_factor: float
) -> None:
    config, base = BertConfig.from_dir(tiny_bert_dir), tiny_model(tiny_bert_dir)
    tensors = pair(QUERY, 32, 32) | pair(INNER, 64, 32)
    loaded = read_weights(tiny_bert_dir, write_adapter(tmp_path / "a", tensors, **settings), config)
    assert loaded.merged == (f"{QUERY}.weight", f"{INNER}.weight")
    for module, factor in ((QUERY, query_factor), (INNER, inner_factor)):
        expected = by_hand(base[f"bert.{module}.weight"], tensors, module, factor)
        np.testing.assert_allclose(loaded.weights[f"{module}.weight"], expected, rtol=2e-7)
    untouched = "encoder.layer.1.attention.self.query.weight"
    assert np.array_equal(loaded.weights[untouched], base[f"bert.{untouched}"])


def test_ranks_by_pattern(tiny_bert_dir: Path, tmp_path: Path) -> None:
    config, base = BertConfig.from_dir(tiny_bert_dir), tiny_model(tiny_bert_dir)
    tensors = pair(QUERY, 32, 32, rank=2) | pair(INNER, 64, 32)
    folder = write_adapter(tmp_path / "a", tensors, rank_pattern={"query": 2})
    weights = load_weights(tiny_bert_dir, folder, config)
    expected = by_hand(base[f"bert.{QUERY}.weight"], tensors, QUERY, 8 / 2)
    np.testing.assert_allclose(weights[f"{QUERY}.weight"], expected, rtol=2e-7)
    with pytest.raises(ModelError, match=r"rank 2; adapter_config\.json says 4"):
        load_weights(tiny_bert_dir, write_adapter(tmp_path / "b", tensors), config)


def test_embedding_update_is_transposed(tiny_bert_dir: Path, tmp_path: Path) -> None:
    config, base = BertConfig.from_dir(tiny_bert_dir), tiny_model(tiny_bert_dir)
    name = "base_model.model.bert.embeddings.word_embeddings"
    a, b = some(4, config.vocab_size), some(32, 4)
    folder = write_adapter(tmp_path / "a", {f"{name}.lora_embedding_A": a, f"{name}.lora_embedding_B": b})
    merged = load_weights(tiny_bert_dir, folder, config)["embeddings.word_embeddings.weight"]
    expected = base["bert.embeddings.word_embeddings.weight"] + 2.0 * (b.astype(float) @ a.astype(float)).T
    np.testing.assert_allclose(merged, expected, rtol=2e-7)


def test_modules_to_save_replace_and_complete(tiny_bert_dir: Path, tmp_path: Path) -> None:
    config = BertConfig.from_dir(tiny_bert_dir)
    bare = {n: v for n, v in tiny_model(tiny_bert_dir).items() if not n.startswith(("classifier", "bert.pooler"))}
    model = copy_model(tiny_bert_dir, tmp_path / "bare", bare)
    tensors = {
        "base_model.model.classifier.weight": some(3, 32),
        "base_model.model.classifier.modules_to_save.default.bias": some(3),
        "base_model.model.classifier.original_module.bias": some(2),
        "base_model.model.bert.pooler.dense.weight": some(32, 32),
        "base_model.model.bert.pooler.dense.bias": some(32),
        f"base_model.model.bert.{QUERY}.base_layer.bias": some(32),
    }
    loaded = read_weights(model, write_adapter(tmp_path / "a", tensors, bias="all"), config)
    assert loaded.num_labels == 3
    for ours, theirs in {
        "classifier.bias": "base_model.model.classifier.modules_to_save.default.bias",
        "pooler.dense.weight": "base_model.model.bert.pooler.dense.weight",
        f"{QUERY}.bias": f"base_model.model.bert.{QUERY}.base_layer.bias",
    }.items():
        assert np.array_equal(loaded.weights[ours], tensors[theirs].astype(np.float32))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"peft_type": "IA3"}, "type 'IA3'"),
        ({"use_dora": True}, "use_dora"),
        ({"lora_bias": True}, "lora_bias"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"r": "many"}, "not a readable adapter configuration"),
        ({"rank_pattern": [1]}, "not a readable adapter configuration"),
        ({"alpha_pattern": {"(": 1}}, "not a valid pattern"),
    ],
)
def test_other_variants_are_refused(tiny_bert_dir: Path, tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    config = BertConfig.from_dir(tiny_bert_dir)
    folder = write_adapter(tmp_path / "a", pair(QUERY, 32, 32), **settings)
    with pytest.raises(ModelError, match=words):
        load_weights(tiny_bert_dir, folder, config)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({f"base_model.model.bert.{QUERY}.lora_A.weight": np.zeros((4, 32))}, "only one of the two"),
        ({f"base_model.model.bert.{QUERY}.lora_magnitude_vector": np.zeros(4)}, "no part of plain LoRA"),
        (pair("encoder.layer.9.attention.self.query", 32, 32), "does not have: bert.encoder.layer.9"),
        (pair(QUERY, 32, 16), r"shape \(32, 16\); the model's is \(32, 32\)"),
        (pair(QUERY, 32, 32, rank=0), "expected"),
        ({f"base_model.model.bert.{QUERY}.lora_{s}.weight": np.full((4, 4), np.nan) for s in "AB"}, "NaN"),
        ({"base_model.model.bert.encoder.other.weight": np.zeros(4)}, "1 unexpected: encoder.other.weight"),
    ],
)
def test_adapters_that_do_not_fit(
    tiny_bert_dir: Path, tmp_path: Path, tensors: dict[str, np.ndarray], words: str
) -> None:
    config = BertConfig.from_dir(tiny_bert_dir)
    with pytest.raises(ModelError, match=words):
        load_weights(tiny_bert_dir, write_adapter(tmp_path / "a", tensors), config)


def test_folders_that_are_no_adapter(tiny_bert_dir: Path, tmp_path: Path) -> None:
    config = BertConfig.from_dir(tiny_bert_dir)
    with pytest.raises(ModelError, match=r"no adapter_config\.json"):
        load_weights(tiny_bert_dir, tmp_path, config)
    write_adapter(tmp_path, {})
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match="There is no file"):
        load_weights(tiny_bert_dir, tmp_path, config)

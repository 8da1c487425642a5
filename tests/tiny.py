"""A tiny BERT and a small task, made where a test wants them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

WORDS = """
the a an of and in to it is was film movie story actor plot good bad great dull funny sad long short very not never
always with without for from this that these those he she they we you i one two three red blue green old new slow fast
bright dark quiet loud simple clever empty full heart mind eye hand day night year time end start scene music camera
script voice line love hate joke drama comedy horror ending cast lead role child man woman world dream city
""".split()  # noqa: SIM905 - a list of a hundred strings reads worse


def tiny_weights(
    hidden: int, layers: int, inner: int, vocab: int, positions: int, labels: int
) -> dict[str, np.ndarray]:
    """Seeded random weights under the names of a Hugging Face BertForSequenceClassification."""
    draw = np.random.default_rng(7)

    def matrix(*shape: int) -> np.ndarray:
        return (draw.standard_normal(shape) * 0.2).astype(np.float32)

    weights: dict[str, np.ndarray] = {}

    def norm(name: str) -> None:
        weights[f"{name}.weight"] = (1 + 0.1 * draw.standard_normal(hidden)).astype(np.float32)
        weights[f"{name}.bias"] = matrix(hidden)

    def dense(name: str, outputs: int, inputs: int) -> None:
        weights[f"{name}.weight"], weights[f"{name}.bias"] = matrix(outputs, inputs), matrix(outputs)

    weights["bert.embeddings.word_embeddings.weight"] = matrix(vocab, hidden)
    weights["bert.embeddings.position_embeddings.weight"] = matrix(positions, hidden)
    weights["bert.embeddings.token_type_embeddings.weight"] = matrix(2, hidden)
    norm("bert.embeddings.LayerNorm")
    for i in range(layers):
        layer = f"bert.encoder.layer.{i}"
        for part in ("query", "key", "value"):
            dense(f"{layer}.attention.self.{part}", hidden, hidden)
        dense(f"{layer}.attention.output.dense", hidden, hidden)
        norm(f"{layer}.attention.output.LayerNorm")
        dense(f"{layer}.intermediate.dense", inner, hidden)
        dense(f"{layer}.output.dense", hidden, inner)
        norm(f"{layer}.output.LayerNorm")
    dense("bert.pooler.dense", hidden, hidden)
    dense("classifier", labels, hidden)
    return weights


def make_bert(folder: Path, heads: int = 2, positions: int = 64) -> Path:
    """A BERT of 2 layers and hidden size 32 with random weights, in Hugging Face layout, tokenizer included."""
    from safetensors.numpy import save_file

    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(set(WORDS)), *"abcdefghijklmnopqrstuvwxyz.,!?'"]
    vocab = list(dict.fromkeys(vocab))
    config = {
        "model_type": "bert",
        "architectures": ["BertForSequenceClassification"],
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": heads,
        "intermediate_size": 64,
        "vocab_size": len(vocab),
        "max_position_embeddings": positions,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
        "pad_token_id": 0,
        "id2label": {"0": "negative", "1": "positive"},
        "label2id": {"negative": 0, "positive": 1},
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tiny_weights(32, 2, 64, len(vocab), positions, 2), folder / "model.safetensors")
    (folder / "vocab.txt").write_text("\n".join(vocab) + "\n")
    write_tokenizer(folder, vocab, positions)
    return folder


def write_tokenizer(folder: Path, vocab: list[str], positions: int = 64) -> None:
    """A lower-casing WordPiece tokenizer over `vocab`, as tokenizer.json and tokenizer_config.json."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(vocab)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocab.index("[CLS]")), ("[SEP]", vocab.index("[SEP]"))],
    )
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": positions}
    settings |= {f"{key}_token": value for key, value in names.items()}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def made_sentences(count: int, seed: int, longest: int = 20) -> list[str]:
    """Seeded word salad over the tiny tokenizer's vocabulary; no two alike."""
    draw = np.random.default_rng(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        found[" ".join(draw.choice(WORDS, draw.integers(3, longest)))] = None
    return list(found)


def make_glue(folder: Path, train: int = 120) -> Path:
    """A folder in GLUE's TSV layout with a small SST-2 of made sentences: 120 train rows, 50 dev rows."""
    (folder / "SST-2").mkdir()
    sentences = made_sentences(train + 50, seed=3)
    for name, rows in (("train", sentences[:train]), ("dev", sentences[train:])):
        lines = ["sentence\tlabel", *(f"{text}\t{len(text) % 2}" for text in rows)]
        (folder / "SST-2" / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    return folder

"""A model of BERT-base's shape with random weights, for measuring speed: bert_base.py FOLDER [--positions N] [--table].

Weights are normal with the deviation that training starts from, so that activations are of a trained model's kind of
size. `--table` also writes FOLDER/table.json: min-max ranges of random tokens, by onnxruntime on the CPU.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

HIDDEN, LAYERS, INNER, WORDS = 768, 12, 3072, 30522


def make(folder: Path, positions: int = 512) -> Path:
    """Writes config.json and model.safetensors."""
    from safetensors.numpy import save_file

    draw = np.random.default_rng(0)
    weights: dict[str, np.ndarray] = {}

    def dense(name: str, outputs: int, inputs: int) -> None:
        weights[f"{name}.weight"] = draw.standard_normal((outputs, inputs), np.float32) * np.float32(0.04)
        weights[f"{name}.bias"] = draw.standard_normal(outputs, np.float32) * np.float32(0.02)

    def norm(name: str) -> None:
        weights[f"{name}.weight"], weights[f"{name}.bias"] = np.ones(HIDDEN, np.float32), np.zeros(HIDDEN, np.float32)

    for table, rows in (("word", WORDS), ("position", positions), ("token_type", 2)):
        name = f"bert.embeddings.{table}_embeddings.weight"
        weights[name] = draw.standard_normal((rows, HIDDEN), np.float32) * np.float32(0.04)
    norm("bert.embeddings.LayerNorm")
    for i in range(LAYERS):
        layer = f"bert.encoder.layer.{i}"
        for part in ("query", "key", "value"):
            dense(f"{layer}.attention.self.{part}", HIDDEN, HIDDEN)
        dense(f"{layer}.attention.output.dense", HIDDEN, HIDDEN)
        norm(f"{layer}.attention.output.LayerNorm")
        dense(f"{layer}.intermediate.dense", INNER, HIDDEN)
        dense(f"{layer}.output.dense", HIDDEN, INNER)
        norm(f"{layer}.output.LayerNorm")
    dense("bert.pooler.dense", HIDDEN, HIDDEN)
    dense("classifier", 2, HIDDEN)
    config = {
        "model_type": "bert",
        "architectures": ["BertForSequenceClassification"],
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 12,
        "intermediate_size": INNER,
        "vocab_size": WORDS,
        "max_position_embeddings": positions,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
        "id2label": {"0": "0", "1": "1"},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors")
    return folder


def tokens(batch: int, seq_len: int, seed: int = 1) -> dict[str, np.ndarray]:
    """A batch of random tokens without padding."""
    ids = np.random.default_rng(seed).integers(1000, WORDS, (batch, seq_len))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


def write_table(folder: Path, out: Path) -> None:
    """Min-max ranges of the tensors that become INT8, from two batches."""
    import quantkit
    from quantkit.backends import get_backend
    from quantkit.network.model import load_model

    network = load_model(folder)
    wanted = ("query", "key", "value", "context", "norm", "gelu", "embeddings")
    names = [n for n in network.activations() if n.rpartition(".")[2] in wanted]
    with get_backend("onnxruntime").tap(network.fixed(2, 64), names) as tap:
        batches = [{n: a.copy() for n, a in tap.infer(tokens(2, 64, seed)).items()} for seed in (1, 2)]
    quantkit.calibrate_arrays(batches, method="minmax").save(out)


def main() -> None:
    """Makes what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--positions", type=int, default=512)
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    make(given.folder, given.positions)
    if given.table:
        write_table(given.folder, given.folder / "table.json")


if __name__ == "__main__":
    main()

"""The numbers that fix a BERT's shape, read from a Hugging Face config.json and checked."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quantkit.errors import ModelError

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
    "relu": "relu",
}
"""config.json's name of the feed-forward activation -> the activation it is."""

MOST_LAYERS = 1 << 10  # every layer asks for sixteen weights by name
LARGEST = 1 << 24  # nothing in a BERT is this large; a damaged config must not ask for terabytes


@dataclass(frozen=True)
class BertConfig:
    """Shape and constants of a BERT encoder with a head.

    Raises:
        ModelError: the heads do not divide the hidden size, or a number is not positive.
    """

    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    vocab_size: int
    max_positions: int
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    num_labels: int = 2
    id2label: Mapping[int, str] = field(default_factory=dict)
    hidden_act: str = "gelu"

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads:
            raise ModelError(
                f"hidden_size {self.hidden_size} cannot be cut into {self.num_heads} attention heads.",
                "Check hidden_size and num_attention_heads in config.json.",
            )

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_heads

    @classmethod
    def from_dir(cls, path: str | Path) -> BertConfig:
        """The configuration of a model folder in Hugging Face layout.

        Raises:
            ModelError: no config.json, not JSON, not a BERT, or a number in it is missing or impossible.
        """
        file = Path(path) / "config.json"
        try:
            raw = json.loads(file.read_bytes())
        except FileNotFoundError as error:
            raise ModelError(
                f"{Path(path)} is not a model folder: it holds no config.json.",
                "Give a folder in Hugging Face layout (config.json, model.safetensors), or an .onnx file.",
            ) from error
        except (OSError, ValueError, RecursionError) as error:
            raise ModelError(f"{file} cannot be read as JSON: {error}.", "Fetch the model again.") from error
        if not isinstance(raw, dict):
            raise ModelError(f"{file} holds a {type(raw).__name__}, not an object of settings.", "Fetch it again.")
        return cls.from_dict(raw, str(file))

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], source: str = "config.json") -> BertConfig:
        """The configuration that the settings of a config.json describe; `source` names them in messages."""
        _refuse_variants(raw, source)
        id2label = _id2label(raw.get("id2label"), source)
        return cls(
            hidden_size=_count(raw, "hidden_size", source),
            num_layers=_count(raw, "num_hidden_layers", source, largest=MOST_LAYERS),
            num_heads=_count(raw, "num_attention_heads", source),
            intermediate_size=_count(raw, "intermediate_size", source),
            vocab_size=_count(raw, "vocab_size", source),
            max_positions=_count(raw, "max_position_embeddings", source),
            type_vocab_size=_count(raw, "type_vocab_size", source, 2),
            layer_norm_eps=_epsilon(raw, source),
            num_labels=len(id2label) or _count(raw, "num_labels", source, 2),
            id2label=id2label,
            hidden_act=_activation(raw, source),
        )


def _refuse_variants(raw: Mapping[str, Any], source: str) -> None:
    """Raises ModelError for architectures that carry BERT's fields but compute something else."""
    kind = raw.get("model_type", "bert")
    if kind != "bert":
        raise ModelError(
            f"{source} describes a model of type {kind!r}; quantkit builds only 'bert' from weights.",
            "Export it to ONNX (for example with optimum-cli export onnx) and give the .onnx file.",
        )
    position = raw.get("position_embedding_type") or "absolute"
    if position != "absolute":
        raise ModelError(
            f"{source} asks for {position!r} position embeddings; quantkit builds only absolute ones.",
            "Export the model to ONNX and give the .onnx file.",
        )
    if raw.get("is_decoder") or raw.get("add_cross_attention"):
        raise ModelError(f"{source} describes a decoder; quantkit builds encoders.", "Give an encoder model.")


def _count(raw: Mapping[str, Any], key: str, source: str, default: int | None = None, *, largest: int = LARGEST) -> int:
    """A positive whole number of the settings, below `largest`."""
    value = raw.get(key, default)
    if value is None:
        raise ModelError(f"{source} lacks {key!r}.", "Is it the config.json of a BERT? Fetch the model again.")
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < largest:
        raise ModelError(f"{source} gives {key} as {value!r}; expected a positive whole number.", "Correct the file.")
    return value


def _epsilon(raw: Mapping[str, Any], source: str) -> float:
    """layer_norm_eps, a small positive number."""
    value = raw.get("layer_norm_eps", 1e-12)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not (math.isfinite(value) and 0 < value < 1):
        raise ModelError(f"{source} gives layer_norm_eps as {value!r}; expected a small positive number.")
    return float(value)


def _activation(raw: Mapping[str, Any], source: str) -> str:
    """hidden_act under its common name."""
    value = raw.get("hidden_act", "gelu")
    if not isinstance(value, str) or value not in ACTIVATIONS:
        raise ModelError(
            f"{source} asks for the activation {value!r}; known: {', '.join(sorted(ACTIVATIONS))}.",
            "Export the model to ONNX and give the .onnx file.",
        )
    return ACTIVATIONS[value]


def _id2label(raw: Any, source: str) -> dict[int, str]:
    """Class number -> its name, in order of the numbers; empty when the settings name no classes."""
    if raw is None:
        return {}
    try:
        labels = {int(key): str(name) for key, name in raw.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise ModelError(f"{source} gives id2label as {raw!r}; expected class numbers with names.") from error
    if sorted(labels) != list(range(len(labels))):
        raise ModelError(f"{source} numbers its classes {sorted(labels)}; expected 0 to {len(labels) - 1}.")
    return dict(sorted(labels.items()))

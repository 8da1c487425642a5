"""A BERT's weights under canonical names, from a model folder and, if wanted, a LoRA adapter merged into it.

Canonical names are those of Hugging Face's BertForSequenceClassification and BertForMaskedLM without the leading
"bert.": "embeddings.word_embeddings.weight", "encoder.layer.0.attention.self.query.weight", "pooler.dense.weight",
"classifier.weight". Matrices stand as (outputs, inputs), as the checkpoint holds them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy.typing as npt

from quantkit.errors import ModelError
from quantkit.network.checkpoint import Weights, as_float32, read_checkpoint
from quantkit.network.config import BertConfig
from quantkit.network.lora import Adapter

Head = Literal["classifier", "masked-lm"]

BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")
OURS = ("embeddings.", "encoder.", "pooler.", "classifier.")
DECODER, TIED = "cls.predictions.decoder.weight", "embeddings.word_embeddings.weight"
SHOWN = 12  # names listed in a message before it says how many more there are


@dataclass(frozen=True)
class LoadedWeights:
    """Weights that fit a configuration.

    Attributes:
        weights: canonical name -> float32 array, in the order of the network.
        unused: weights of the checkpoint that the network has no place for (heads of pretraining).
        merged: matrices that an adapter changed.
    """

    weights: Weights
    unused: tuple[str, ...] = ()
    merged: tuple[str, ...] = ()

    @property
    def num_labels(self) -> int:
        """Rows of the classifier; 0 without one."""
        return int(self.weights["classifier.bias"].shape[0]) if "classifier.bias" in self.weights else 0


def load_weights(
    model_dir: str | Path,
    adapter_dir: str | Path | None,
    config: BertConfig,
    *,
    num_labels: int | None = None,
    head: Head = "classifier",
) -> Weights:
    """Canonical name -> float32 array; see `read_weights`, which also says what was left unused."""
    return read_weights(model_dir, adapter_dir, config, num_labels=num_labels, head=head).weights


def read_weights(
    model_dir: str | Path,
    adapter_dir: str | Path | None,
    config: BertConfig,
    *,
    num_labels: int | None = None,
    head: Head = "classifier",
) -> LoadedWeights:
    """Reads, merges and checks the weights of a network.

    Args:
        model_dir: folder with model.safetensors (or its shards), names with or without "bert.".
        adapter_dir: PEFT LoRA folder, or None.
        config: the shape that the weights must have.
        num_labels: number of classes that the classifier must have; None takes what it has.
        head: "classifier" (pooler and classifier) or "masked-lm" (transform and decoder, tied to the word embeddings
            when the checkpoint holds no decoder of its own).

    Raises:
        ModelError: weights are missing, unexpected, of another shape than `config` says, not finite or not float; or
            the adapter does not fit. All missing and unexpected names stand in one message.
    """
    tensors = _canonical(read_checkpoint(Path(model_dir)), "The model")
    if adapter_dir is None:
        merged: tuple[str, ...] = ()
    else:
        tensors, merged = _apply(Adapter.from_dir(Path(adapter_dir)), tensors)
    if head == "masked-lm":
        _tie_decoder(tensors)
    expected = expected_shapes(config, head, _rows(tensors, config))
    stray = sorted(name for name in tensors if name not in expected and name not in BUFFERS)
    other_head = ("pooler.", "classifier.") if head == "masked-lm" else ()
    unexpected = [name for name in stray if name.startswith(OURS) and not name.startswith(other_head or ("\0",))]
    _check_names([name for name in expected if name not in tensors], unexpected, adapter_dir is not None)
    weights = {name: as_float32(name, tensors[name]) for name in expected}
    _check_shapes(weights, expected)
    loaded = LoadedWeights(weights, tuple(name for name in stray if name not in unexpected), merged)
    if num_labels is not None and loaded.num_labels and loaded.num_labels != num_labels:
        raise ModelError(
            f"The classifier has {loaded.num_labels} outputs; {num_labels} are wanted.",
            "Give a model or an adapter that was trained for this task.",
        )
    return loaded


def expected_shapes(config: BertConfig, head: Head, num_labels: int) -> dict[str, tuple[int, ...]]:
    """Canonical name -> shape of every weight of the network, in the network's order."""
    hidden, inner, vocab = config.hidden_size, config.intermediate_size, config.vocab_size
    shapes: dict[str, tuple[int, ...]] = {}

    def dense(name: str, outputs: int, inputs: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (outputs, inputs), (outputs,)

    def norm(name: str) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (hidden,), (hidden,)

    shapes[TIED] = (vocab, hidden)
    shapes["embeddings.position_embeddings.weight"] = (config.max_positions, hidden)
    shapes["embeddings.token_type_embeddings.weight"] = (config.type_vocab_size, hidden)
    norm("embeddings.LayerNorm")
    for i in range(config.num_layers):
        layer = f"encoder.layer.{i}"
        for part in ("query", "key", "value"):
            dense(f"{layer}.attention.self.{part}", hidden, hidden)
        dense(f"{layer}.attention.output.dense", hidden, hidden)
        norm(f"{layer}.attention.output.LayerNorm")
        dense(f"{layer}.intermediate.dense", inner, hidden)
        dense(f"{layer}.output.dense", hidden, inner)
        norm(f"{layer}.output.LayerNorm")
    if head == "classifier":
        dense("pooler.dense", hidden, hidden)
        dense("classifier", num_labels, hidden)
    else:
        dense("cls.predictions.transform.dense", hidden, hidden)
        norm("cls.predictions.transform.LayerNorm")
        shapes[DECODER], shapes["cls.predictions.bias"] = (vocab, hidden), (vocab,)
    return shapes


def _canonical(tensors: Mapping[str, npt.NDArray[Any]], what: str) -> dict[str, npt.NDArray[Any]]:
    """The same tensors under canonical names ("bert." removed; LayerNorm's old gamma and beta renamed)."""
    renamed: dict[str, npt.NDArray[Any]] = {}
    for key, value in tensors.items():
        name = key.removeprefix("bert.")
        name = re.sub(r"\.LayerNorm\.gamma$", ".LayerNorm.weight", name)
        name = re.sub(r"\.LayerNorm\.beta$", ".LayerNorm.bias", name)
        if name in renamed:
            raise ModelError(f"{what} holds the weight {name} twice, with and without its prefix.")
        renamed[name] = value
    return renamed


def _apply(
    adapter: Adapter, tensors: dict[str, npt.NDArray[Any]]
) -> tuple[dict[str, npt.NDArray[Any]], tuple[str, ...]]:
    """The tensors with an adapter's whole weights put in and its updates merged; and the names of those merged."""
    result = tensors | _canonical(adapter.replaced, "The adapter")
    homeless = sorted(name for name in adapter.pairs if name.removeprefix("bert.") not in result)
    if homeless:
        raise ModelError(
            f"The adapter changes weights that the model does not have: {_listed(homeless)}.",
            "The adapter was trained on another model.",
        )
    merged = []
    for name in adapter.pairs:
        canonical = name.removeprefix("bert.")
        result[canonical] = adapter.merged(name, as_float32(canonical, result[canonical]))
        merged.append(canonical)
    return result, tuple(sorted(merged))


def _tie_decoder(tensors: dict[str, npt.NDArray[Any]]) -> None:
    """Gives the masked-LM head the word embeddings as decoder when it has none, and drops the bias's second name."""
    if TIED in tensors:
        tensors.setdefault(DECODER, tensors[TIED])
    bias = tensors.pop("cls.predictions.decoder.bias", None)
    if bias is not None:
        tensors.setdefault("cls.predictions.bias", bias)


def _rows(tensors: Mapping[str, npt.NDArray[Any]], config: BertConfig) -> int:
    """How many labels the classifier has by its own shape."""
    classifier = tensors.get("classifier.weight")
    return int(classifier.shape[0]) if classifier is not None and classifier.ndim == 2 else config.num_labels


def _check_names(missing: list[str], unexpected: list[str], adapted: bool) -> None:
    """Raises ModelError with all names when any is missing or unexpected."""
    if not missing and not unexpected:
        return
    parts = [f"{len(missing)} missing: {_listed(missing)}"] if missing else []
    parts += [f"{len(unexpected)} unexpected: {_listed(unexpected)}"] if unexpected else []
    if missing and not adapted and all(name.startswith(("pooler.", "classifier.")) for name in missing):
        hint = "The model is a bare encoder: give a fine-tuned model, or an adapter that carries the head (--adapter)."
    else:
        hint = "Check that config.json, model.safetensors and the adapter belong together."
    raise ModelError(f"The weights are not those of the network that config.json describes ({'; '.join(parts)}).", hint)


def _check_shapes(weights: Weights, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raises ModelError when a weight has another shape than the configuration gives it."""
    wrong = [
        f"{name} is {weights[name].shape}, expected {shape}"
        for name, shape in expected.items()
        if weights[name].shape != shape
    ]
    if wrong:
        raise ModelError(
            f"The weights do not have the shapes that config.json gives: {_listed(wrong)}.",
            "Check that config.json and model.safetensors belong together.",
        )


def _listed(names: Iterable[str]) -> str:
    """The first few of many names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more

"""From what a user names, a folder or an .onnx file, to a `Network`."""

from __future__ import annotations

from pathlib import Path

from quantkit.errors import ModelError
from quantkit.network.config import BertConfig
from quantkit.network.graph import Network
from quantkit.network.weights import Head, read_weights


def load_model(
    model: str | Path,
    adapter: str | Path | None = None,
    num_labels: int | None = None,
    *,
    head: Head = "classifier",
) -> Network:
    """The network of a model folder in Hugging Face layout, with an adapter merged, or of an .onnx file.

    Args:
        model: folder with config.json and model.safetensors, or an .onnx file.
        adapter: PEFT LoRA folder; only with a model folder.
        num_labels: number of outputs that the classifier must have; None takes what it has.
        head: "classifier" or "masked-lm"; only for a model folder.

    Raises:
        ModelError: there is nothing of that name, or it cannot be used; see `read_weights` and `load_onnx`.
    """
    path = Path(model)
    if path.is_file():
        if adapter is not None:
            raise ModelError(
                f"An adapter cannot be merged into {path.name}: an ONNX graph does not say which weight is which.",
                "Give the model folder it was exported from, or export the model with the adapter merged.",
            )
        from quantkit.network.onnx_import import load_onnx

        network = load_onnx(path)
    elif path.is_dir():
        network = _from_folder(path, None if adapter is None else Path(adapter), head)
    else:
        raise ModelError(f"There is no model {path}.", "Give a model folder in Hugging Face layout, or an .onnx file.")
    if num_labels is not None and network.num_labels not in (0, num_labels):
        raise ModelError(
            f"The model has {network.num_labels} outputs; the task needs {num_labels}.",
            "Give a model or an adapter (--adapter) that was trained for this task.",
        )
    return network


def _from_folder(path: Path, adapter: Path | None, head: Head) -> Network:
    """BERT with dynamic batch and sequence, built from its weights."""
    from quantkit.network.onnx_builder import build_bert_onnx

    config = BertConfig.from_dir(path)
    loaded = read_weights(path, adapter, config, head=head)
    notes = (f"Weights that the network does not use: {', '.join(loaded.unused)}.",) if loaded.unused else ()
    labels = config.id2label if len(config.id2label) == loaded.num_labels else {}
    proto = build_bert_onnx(config, loaded.weights, head=head)
    return Network(proto, labels, config.max_positions, notes)

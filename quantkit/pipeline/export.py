"""Any sequence classifier of transformers as an ONNX file that quantkit reads; the one place that uses torch."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from quantkit.errors import MissingDependencyError, ModelError
from quantkit.files import write_bytes

OPSET = 17
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def export_onnx(model: str, out: Path) -> dict[str, Any]:
    """Writes `model` as ONNX with free batch and sequence, plain attention and no boolean mask where it can be avoided.

    Args:
        model: folder in Hugging Face layout, or a hub id; its weights must be safetensors.
        out: the .onnx file.

    Returns:
        JSON value with the file, its inputs and the number of labels.

    Raises:
        MissingDependencyError: torch is not installed.
        ModelError: transformers cannot load the model as a sequence classifier, or torch cannot export it.
    """
    try:
        import torch
        from transformers import AutoModelForSequenceClassification
    except ImportError as error:
        raise MissingDependencyError(
            "Exporting a model needs torch, which is not installed.", "Run: pip install 'quantkit[export]'"
        ) from error
    try:
        # "eager" attention is made of MatMul and Softmax, which can be calibrated; fused attention cannot.
        network = AutoModelForSequenceClassification.from_pretrained(
            model, use_safetensors=True, trust_remote_code=False, attn_implementation="eager", dtype=torch.float32
        ).eval()
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(
            f"{model} cannot be loaded: {reason}", "Give a sequence classifier with safetensors."
        ) from error
    names = INPUTS[: 3 if getattr(network.config, "type_vocab_size", 0) > 1 else 2]
    example = torch.ones((2, 8), dtype=torch.int64)
    axes = {name: {0: "batch", 1: "sequence"} for name in names} | {"logits": {0: "batch"}}
    buffer = io.BytesIO()
    try:
        torch.onnx.export(
            only_logits(network, names),
            tuple(torch.zeros_like(example) if name == "token_type_ids" else example for name in names),
            buffer,
            input_names=list(names),
            output_names=["logits"],
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
        )
    except (RuntimeError, TypeError, ValueError) as error:
        raise ModelError(f"torch cannot export {model}: {str(error).splitlines()[0]}") from error
    path = write_bytes(out, buffer.getvalue())
    return {"file": str(path), "inputs": list(names), "labels": int(network.config.num_labels)}


def only_logits(network: Any, names: tuple[str, ...]) -> Any:
    """A torch module that takes the inputs by position and gives the logits alone."""
    import torch

    class Wrapped(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, *inputs: Any) -> Any:
            return self.network(**dict(zip(names, inputs, strict=True))).logits

    return Wrapped()

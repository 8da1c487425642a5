"""The README.md of an output folder: what lies there, how to run it elsewhere, what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantkit.files import write_text

INT8_FILE = "int8.onnx"
TENSORRT_FILE = "int8-tensorrt.onnx"
FLOAT_FILE = "fp32.onnx"

_FILES = {
    INT8_FILE: "the quantized model: float weights replaced by int8 codes, QuantizeLinear/DequantizeLinear pairs, "
    "free batch and sequence length",
    TENSORRT_FILE: "the same plan for TensorRT's parser: int8 activations around zero, weights in float behind a "
    "QuantizeLinear",
    FLOAT_FILE: "the model in float32, adapter merged, free batch and sequence length; half precision runs it too",
    "plan.json": "the precision plan, for `--plan`",
    "record.json": "everything that was measured, with settings, versions and hashes",
    "sensitivity.json": "what each part costs and wins in INT8",
    "histograms.npz": "histograms of every activation, for `quantkit calibrate --from`",
}

_OPENVINO = """```python
import openvino

core = openvino.Core()
model = core.compile_model("{file}", "CPU", {{"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}})
logits = model({feed})["{output}"]
```"""

_ONNXRUNTIME = """```python
import onnxruntime

# With MatMulAddFusion the products become Gemm before the pairs are looked at, and run in float.
session = onnxruntime.InferenceSession(
    "{file}", providers=["CPUExecutionProvider"], disabled_optimizers=["MatMulAddFusion"]
)
[logits] = session.run(["{output}"], {feed})
```"""


MARK = "Made by quantkit"


def write_readme(record: Mapping[str, Any], folder: Path) -> Path | None:
    """Writes README.md into the folder and returns its path; one that is not quantkit's is left alone (None)."""
    path = folder / "README.md"
    if path.exists() and MARK not in path.read_text(encoding="utf-8", errors="replace"):
        return None
    return write_text(path, readme_of(record, folder))


def readme_of(record: Mapping[str, Any], folder: Path) -> str:
    """The text for a record's folder.

    Args:
        record: JSON value of the record.
        folder: where the files lie; those that are there are listed.
    """
    parts = [_title(record), _files(record, folder)]
    if (folder / INT8_FILE).is_file():
        parts += [_usage(record, folder), _ranges(record)]
    parts += [_measured(record), _again(record)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _title(record: Mapping[str, Any]) -> str:
    task, model = record["task"], record["model"]
    adapter = f" with the adapter {model['adapter']}" if model.get("adapter") else ""
    head = f"# {task['name']}: {Path(model['name']).name} in INT8"
    return f"{head}\n\n{MARK} {record['context']['versions'].get('quantkit', '')} from {model['name']}{adapter}."


def _files(record: Mapping[str, Any], folder: Path) -> str:
    known = dict(_FILES)
    if record.get("calibration"):
        method = record["calibration"]["method"]
        known |= {f"{method}.json": "calibration table with its provenance", f"{method}.cache": "TensorRT cache text"}
    rows = [f"| `{name}` | {what} |" for name, what in known.items() if (folder / name).is_file()]
    return "\n".join(["## Files", "", "| file | what it is |", "| --- | --- |", *rows])


def _usage(record: Mapping[str, Any], folder: Path) -> str:
    """How to run the quantized model with each library."""
    interface = record.get("interface") or {}
    inputs, output = interface.get("inputs", ["input_ids", "attention_mask"]), interface.get("output", "logits")
    feed = "{" + ", ".join(f'"{name}": {name}' for name in inputs) + "}"
    words = {"feed": feed, "output": output, "file": INT8_FILE}
    names = ", ".join(f"`{name}`" for name in inputs)
    lines = [
        "## Running the model",
        "",
        f"Inputs {names}: int64, (batch, sequence), 1 in the mask for tokens and 0 for padding. Output `{output}`: "
        "float32, (batch, outputs). The file is plain ONNX; quantkit is not needed.",
        "",
        "OpenVINO computes the pairs in INT8, and everything else in float32 as asked here:",
        "",
        _OPENVINO.format(**words),
        "",
        "onnxruntime:",
        "",
        _ONNXRUNTIME.format(**words),
        "",
        *_tensorrt(record, folder),
    ]
    return "\n".join(lines)


def _tensorrt(record: Mapping[str, Any], folder: Path) -> list[str]:
    """What TensorRT takes of this folder."""
    if (folder / TENSORRT_FILE).is_file():
        shapes = ",".join(f"{name}:16x64" for name in (record.get("interface") or {}).get("inputs", []))
        return [
            f"TensorRT 8.6 to 10 reads `{TENSORRT_FILE}` (its graph was checked against the parser's rules; TensorRT "
            "itself did not run here):",
            "",
            f"```\ntrtexec --onnx={TENSORRT_FILE} --int8 --fp16 --shapes={shapes}\n```",
            "",
            "Its activations are symmetric, so its accuracy is not the one below: evaluate it with "
            "`quantkit run --symmetric --plan plan.json`, or on the GPU."
            if not _symmetric(record)
            else "",
        ]
    why = "" if _int8_alone(record) else f"`{INT8_FILE}` has uint8 activations, and cannot run there. "
    return [f"TensorRT: {why}`--tensorrt-model` writes `{TENSORRT_FILE}` beside it, for its ONNX parser."]


def _symmetric(record: Mapping[str, Any]) -> bool:
    return bool((record.get("plan") or {}).get("symmetric"))


def _quantizes_products(record: Mapping[str, Any]) -> bool:
    """Whether the attention's products are among what the plan covers."""
    return "mha" in str((record.get("plan") or {}).get("mode", ""))


def _int8_alone(record: Mapping[str, Any]) -> bool:
    """Whether no code is uint8, as TensorRT needs it."""
    plan = record.get("plan") or {}
    return bool(plan.get("int8_only")) or (_symmetric(record) and not _quantizes_products(record))


def _ranges(record: Mapping[str, Any]) -> str:
    """Where scales come from, and what stayed in float."""
    calibration, plan = record.get("calibration"), record.get("plan") or {}
    if not calibration:
        return ""
    grid = "int8 around zero" if plan.get("symmetric") else "uint8 with a zero point (attention products: int8)"
    if _quantizes_products(record) and not plan.get("int8_only"):
        grid += ", probabilities uint8 from 0"
    samples = f" over {calibration['samples']} train sentences" if calibration.get("samples") else ""
    lines = [
        "## Ranges",
        "",
        f"Activations: {grid}, one scale a tensor, method `{calibration['method']}`{samples}. Weights: int8, one scale "
        "an output channel. Biases, embeddings, LayerNorm, softmax, GELU, pooler and "
        f"classifier are float32. Placement: `{plan.get('mode', '')}`.",
    ]
    steps = (calibration.get("refinement") or {}).get("steps")
    if steps:
        lines += ["", f"Ranges and weights were refined: {', '.join(steps)} (record.json, `calibration.refinement`)."]
    if plan.get("skip"):
        lines += ["", f"Left in float32 as well: {', '.join(f'`{name}`' for name in plan['skip'])}."]
    lines += [f"- {part}: {why}." for part, why in (plan.get("reasons") or {}).items()]
    return "\n".join(lines)


def _measured(record: Mapping[str, Any]) -> str:
    """The engines of the record."""
    task, machine = record["task"], record["context"]["machine"]
    lines = [
        "## Measured",
        "",
        f"{task['examples']} rows of {task['name']} ({task['split']}), batches of {task['batch']} x {task['seq_len']} "
        f"tokens, {machine['cores']} cores of {machine['cpu']}, {record['context']['time']}.",
        "",
        "| engine | computes | metrics | ms a batch | speed |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in record["engines"]:
        if row["status"] != "ok":
            lines.append(f"| {row['precision']} | failed: {row.get('reason', '')} | | | |")
            continue
        metrics = ", ".join(f"{n} {s['value']:.4f} ± {s['stderr']:.4f}" for n, s in row["metrics"].items())
        median = row["latency_ms"].get("median")
        speed = f"{row['speedup']:.2f}x" if row.get("speedup") else ""
        time = f"{median:.2f}" if median else ""
        lines.append(f"| {row['precision']} | {row['compute']} | {metrics} | {time} | {speed} |")
    return "\n".join([*lines, "", *(f"- {line}" for line in record.get("verdict", ()))])


def _again(record: Mapping[str, Any]) -> str:
    return f"## Again\n\n```\n{record['context']['command']}\n```"

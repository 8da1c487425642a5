"""Around a build: what goes into a job, what is kept of one, and what an engine is said to be."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quantkit.backends.base import EngineInfo
from quantkit.backends.feeds import FLOAT
from quantkit.backends.trt import plans
from quantkit.backends.trt.audit import Audit
from quantkit.backends.trt.build import CACHE
from quantkit.backends.trt.child import read_json
from quantkit.backends.trt.options import BuildOptions, Outcome
from quantkit.errors import BackendError, CalibrationError
from quantkit.files import cache_dir, sha256_array, write_bytes

if TYPE_CHECKING:
    from onnx import ModelProto

    from quantkit.backends.trt.inspection import Inspection
    from quantkit.types import Array, BatchSource


def engine_info(asked: BuildOptions | None, audit: Audit, size: int, outcome: Outcome) -> EngineInfo:
    """The common fields of an engine."""
    precision = asked.precision if asked else "fp32"
    float_name = {"fp32": "f32", "tf32": "tf32", "fp16": "f16", "int8+fp32": "f32"}.get(precision, "f16")
    compute = f"int8+{float_name}" if audit.int8_gemms else float_name
    return EngineInfo(
        precision=precision,  # type: ignore[arg-type]
        compute=compute,
        size_bytes=size,
        int8_ops=audit.int8_gemms,
        float_ops=audit.float_gemms,
        notes=(*audit.verdict, *outcome.notes),
    )


def with_outputs(proto: ModelProto, names: tuple[str, ...]) -> ModelProto:
    """The graph with exactly the named tensors as outputs."""
    import onnx

    known = {value.name: value for value in (*proto.graph.value_info, *proto.graph.output)}
    for name in names:
        if name in known and known[name].type.tensor_type.elem_type not in (0, FLOAT):
            raise BackendError(f"The tensor {name!r} is not float32 and cannot be tapped.")
    tapped = onnx.ModelProto()
    tapped.CopyFrom(proto)
    del tapped.graph.output[:]
    for name in names:
        value = known.get(name) or onnx.helper.make_tensor_value_info(name, FLOAT, None)
        tapped.graph.output.append(value)
    return tapped


def store_batches(path: Path, batches: BatchSource, names: list[str]) -> int:
    """Writes calibration batches as one .npz file of arrays (batches, ...); their number.

    Raises:
        CalibrationError: no batches, or one that lacks an input or has another shape than the first.
    """
    from quantkit.backends.trt.calibrators import checked

    stacks: dict[str, list[Array]] = {name: [] for name in names}
    for number, feed in enumerate(batches):
        for name, stack in stacks.items():
            first = stack[0] if stack else np.asarray(feed.get(name, np.zeros(0)))
            stack.append(np.array(checked(feed, name, first.shape, first.dtype, number)))
    if not stacks or not all(stacks.values()):
        raise CalibrationError("There are no calibration batches.", "Give at least one full batch.")
    with path.open("wb") as file:
        arrays: dict[str, Any] = {name: np.stack(stack) for name, stack in stacks.items()}
        np.savez(file, **arrays)
    return len(stacks[names[0]])


def folder_hash(model: Path, adapter: str) -> str:
    """SHA-256 over the weights and settings of a model folder and its adapter."""
    digest = hashlib.sha256()
    for folder in (model, *([Path(adapter)] if adapter else [])):
        for file in sorted(folder.iterdir()):
            if file.suffix in (".safetensors", ".json") and not file.name.startswith("tokenizer"):
                digest.update(file.name.encode())
                sha256_array(digest, np.frombuffer(file.read_bytes(), np.uint8))
    return digest.hexdigest()


def inspection_of(path: Path) -> Inspection | None:
    """What was found out about a plan when it was built; None when nothing was."""
    from quantkit.backends.trt.inspection import Inspection

    value = read_json(plans.inspection_file(path))
    return None if value is None else Inspection.from_json(value)


def rescue(folder: Path) -> Path | None:
    """Moves the calibration cache of a failed job to where it can be found; None when there is none."""
    if not (folder / CACHE).is_file():
        return None
    data = (folder / CACHE).read_bytes()
    kept = cache_dir() / "tables" / f"tensorrt-{hashlib.sha256(data).hexdigest()[:16]}.cache"
    return write_bytes(kept, data)

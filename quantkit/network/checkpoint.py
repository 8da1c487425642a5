"""Weights out of safetensors files, whole or in shards, as float32 arrays. Nothing is unpickled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from quantkit.errors import ModelError

Weights = dict[str, npt.NDArray[np.float32]]
"""Name -> float32 array."""

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def read_checkpoint(folder: Path) -> dict[str, npt.NDArray[Any]]:
    """All tensors of a model folder: model.safetensors, or the shards that model.safetensors.index.json lists.

    Raises:
        ModelError: neither is there, a file is damaged, or a shard's name leads out of the folder.
    """
    if (folder / WHOLE).is_file():
        return read_safetensors(folder / WHOLE)
    if (folder / INDEX).is_file():
        tensors: dict[str, npt.NDArray[Any]] = {}
        for shard in _shards(folder / INDEX):
            tensors.update(read_safetensors(folder / shard))
        return tensors
    found = sorted(file.name for file in folder.glob("*.bin")) if folder.is_dir() else []
    raise ModelError(
        f"{folder} holds no {WHOLE}"
        + (f" (only {', '.join(found)}, which quantkit does not unpickle)." if found else "."),
        "Save the model with save_pretrained(..., safe_serialization=True).",
    )


def _shards(index: Path) -> list[str]:
    """The file names that an index lists, each a plain name of the same folder."""
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        if not all(isinstance(name, str) for name in names):
            raise TypeError("a shard's name is not a string")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(
            f"{index} is not an index of safetensors shards: {error}.", "Fetch the model again."
        ) from error
    for name in names:
        if name != Path(name).name or name == ".." or "\\" in name:
            raise ModelError(f"{index} names the shard {name!r}, which is not a file of its own folder.")
    return names


def read_safetensors(file: Path) -> dict[str, npt.NDArray[Any]]:
    """All tensors of one safetensors file.

    Raises:
        ModelError: there is no such file, it is damaged, or an element type has no NumPy counterpart.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), framework="numpy") as tensors:
            return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 - not a mapping
    except FileNotFoundError as error:
        raise ModelError(f"There is no file {file}.", "Check the path.") from error
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise ModelError(f"{file} is not a readable safetensors file: {error}.", "Fetch it again.") from error


def as_float32(name: str, array: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """A weight as float32 (from float16, bfloat16, float32 or float64).

    Raises:
        ModelError: the weight is not floating point (quantized already?), or holds NaN or infinity.
    """
    # bfloat16 is no NumPy type of its own: ml_dtypes registers it with kind "V".
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        raise ModelError(
            f"The weight {name} holds {array.dtype.name}; expected floating point.",
            "Give the model before it was quantized.",
        )
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(array, np.float32)
    if not np.isfinite(values).all():
        bad = int(np.count_nonzero(~np.isfinite(values)))
        raise ModelError(
            f"The weight {name} holds {bad} values that are NaN or infinite.",
            "The file is damaged or training diverged; use another checkpoint.",
        )
    return values

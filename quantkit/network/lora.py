"""LoRA adapters in PEFT's format, merged into the weights they were trained on.

The update of a matrix is W + (alpha / r) * B @ A (Hu et al. 2021, arXiv:2106.09685), with alpha / sqrt(r) for
rank-stabilized LoRA (Kalajdzievski 2023, arXiv:2312.03732). An adapter may also carry whole weights
(`modules_to_save`), which replace the base's. The product is taken in float64 and rounded once, so that the merged
weights, and with them the hash of the model, do not depend on the matrix library of the machine.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from quantkit.errors import ModelError
from quantkit.network.checkpoint import Weights, as_float32, read_safetensors

PREFIX = "base_model.model."
PAIR = re.compile(r"^(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(?:\.default)?(?:\.weight)?$")
REFUSED = (
    "use_dora",
    "lora_bias",
    "use_qalora",
    "use_bdlora",
    "alora_invocation_tokens",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
)
"""Settings of adapter_config.json that change the arithmetic; an adapter that uses one is refused."""

LONGEST_PATTERN, MOST_ENDLESS = 1000, 3
ENDLESS = re.compile(r"[*+{]")
NESTED = re.compile(r"\)[*+{]|\\[1-9]|\(\?[^:]")
"""Patterns are regular expressions of a stranger. Without repeated groups, references back and more than three
repetitions their time is bounded by a low power of the name's length."""


@dataclass(frozen=True)
class LoraConfig:
    """The settings of an adapter that its merge depends on."""

    rank: int
    alpha: float
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    rank_stabilized: bool

    @classmethod
    def from_dir(cls, folder: Path) -> LoraConfig:
        """Reads adapter_config.json.

        Raises:
            ModelError: the file is missing, damaged, not LoRA, or asks for a variant that is not plain LoRA.
        """
        file = folder / "adapter_config.json"
        try:
            raw = json.loads(file.read_bytes())
            kind = raw.get("peft_type")
            used = [key for key in REFUSED if raw.get(key)]
            config = cls(
                rank=int(raw.get("r", 8)),
                alpha=float(raw.get("lora_alpha", 8)),
                rank_pattern={str(k): int(v) for k, v in (raw.get("rank_pattern") or {}).items()},
                alpha_pattern={str(k): float(v) for k, v in (raw.get("alpha_pattern") or {}).items()},
                rank_stabilized=bool(raw.get("use_rslora")),
            )
        except FileNotFoundError as error:
            raise ModelError(
                f"{folder} is not an adapter folder: it holds no adapter_config.json.",
                "Give a PEFT folder (adapter_config.json, adapter_model.safetensors).",
            ) from error
        except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise ModelError(f"{file} is not a readable adapter configuration: {error}.") from error
        if kind != "LORA":
            raise ModelError(f"{file} describes an adapter of type {kind!r}; quantkit merges only LORA.")
        if used:
            raise ModelError(
                f"{file} uses {', '.join(used)}, which plain LoRA does not have; merging it would give other weights.",
                "Merge it with PEFT (merge_and_unload), save the model, and give that folder without --adapter.",
            )
        return config

    def scaling(self, module: str, rank: int) -> float:
        """Factor of B @ A for a module whose matrices have this rank.

        Raises:
            ModelError: the rank is not the one the settings give.
        """
        expected = int(_by_pattern(self.rank_pattern, module, self.rank))
        if rank != expected:
            raise ModelError(
                f"The adapter's matrices for {module} have rank {rank}; adapter_config.json says {expected}."
            )
        alpha = float(_by_pattern(self.alpha_pattern, module, self.alpha))
        return alpha / (math.sqrt(rank) if self.rank_stabilized else rank)


def _by_pattern(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """The value of the first pattern that is the module's name or the end of it, at a dot (PEFT's rule)."""
    for pattern, value in patterns.items():
        if len(pattern) > LONGEST_PATTERN or len(ENDLESS.findall(pattern)) > MOST_ENDLESS or NESTED.search(pattern):
            raise ModelError(
                f"adapter_config.json holds the pattern {pattern[:60]!r}, which may take forever to match.",
                "Write the names of the modules instead.",
            )
        try:
            if re.match(rf"(?:.*\.)?(?:{pattern})$", module):
                return value
        except re.error as error:
            raise ModelError(f"adapter_config.json holds {pattern!r}, not a valid pattern: {error}.") from error
    return default


@dataclass(frozen=True)
class Adapter:
    """What an adapter folder holds, by the names of the model it was trained on (its own prefix removed).

    Attributes:
        pairs: weight name -> (A, B) as stored, and whether they belong to an embedding.
        replaced: weight name -> whole weight that takes the base's place.
    """

    config: LoraConfig
    pairs: Mapping[str, tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], bool]]
    replaced: Weights

    @classmethod
    def from_dir(cls, folder: Path) -> Adapter:
        """Reads adapter_config.json and adapter_model.safetensors.

        Raises:
            ModelError: a file is missing or damaged, a matrix lacks its partner, or the variant is refused.
        """
        config = LoraConfig.from_dir(folder)
        halves: dict[tuple[str, bool], dict[str, npt.NDArray[np.float32]]] = {}
        replaced: Weights = {}
        for key, array in read_safetensors(folder / "adapter_model.safetensors").items():
            name, value = key.removeprefix(PREFIX), as_float32(key, array)
            if pair := PAIR.match(name):
                halves.setdefault((pair["module"], bool(pair["embedding"])), {})[pair["side"]] = value
            elif "lora_" in name:
                raise ModelError(
                    f"The adapter holds {key}, which is no part of plain LoRA.", "Merge it with PEFT first."
                )
            elif ".original_module." not in name:
                # A weight inside a wrapped module: a saved module, or a base layer's bias that was trained as well.
                replaced[re.sub(r"\.(modules_to_save(\.default)?|base_layer)\.", ".", name)] = value
        incomplete = sorted(module for (module, _), sides in halves.items() if len(sides) != 2)
        if incomplete:
            raise ModelError(f"The adapter holds only one of the two LoRA matrices of {', '.join(incomplete)}.")
        pairs = {f"{module}.weight": (s["A"], s["B"], embedding) for (module, embedding), s in halves.items()}
        return cls(config, pairs, replaced)

    def merged(self, name: str, weight: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The base's `weight` with the update that the adapter holds under `name`.

        Raises:
            ModelError: the update's shape is not the weight's.
        """
        a, b, embedding = self.pairs[name]
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or not a.shape[0]:
            raise ModelError(
                f"The adapter's matrices for {name} have shapes {a.shape} and {b.shape}; expected (r, n), (m, r)."
            )
        # PEFT keeps an embedding's update as (width, rows). Two thin matrices may have a product that fills any memory.
        shape = (a.shape[1], b.shape[0]) if embedding else (b.shape[0], a.shape[1])
        if shape != weight.shape:
            raise ModelError(
                f"The adapter changes {name} by a matrix of shape {shape}; the model's is {weight.shape}.",
                "The adapter was trained on another model.",
            )
        update = b.astype(np.float64) @ a.astype(np.float64)
        update = update.T if embedding else update
        scaling = self.config.scaling(name.removesuffix(".weight"), a.shape[0])
        with np.errstate(over="ignore", invalid="ignore"):
            return as_float32(name, weight.astype(np.float64) + scaling * update)

"""Sentences packed without padding: token arrays of one dimension, and where each sentence starts.

A packed engine takes the same feeds as any other, (batch, sequence) with a mask, and packs them itself; so accuracy and
latency are measured over the same batches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from quantkit.backends.trt.engine import ContextRunner, TrtEngine
from quantkit.backends.trt.execution import Phases
from quantkit.backends.trt.plugins.definition import STARTS
from quantkit.backends.trt.rules import Rules
from quantkit.errors import BackendError
from quantkit.network.bert import INPUTS
from quantkit.types import Array, TensorSpec

MULTIPLE = 64
"""Tokens in all are filled up to a multiple of this: few shapes, so that layouts and CUDA graphs are met again."""
SYMBOLS = ("batch", "sequence")


def is_packed(names: Any) -> bool:
    """Whether an engine with inputs of these names takes packed sentences."""
    return STARTS in names


def pack(feed: Mapping[str, Array], most: int = 0) -> dict[str, Array]:
    """The feed of a packed engine.

    Args:
        feed: input_ids, attention_mask and token_type_ids, (batch, sequence); tokens stand before padding.
        most: the most tokens that the engine takes; 0 for no limit.

    Returns:
        input_ids and token_type_ids (tokens,), filled up with zeros to a multiple of `MULTIPLE` where that fits, and
        starts (batch + 1,) int32.

    Raises:
        BackendError: padding before a token, or a row without tokens.
    """
    mask = np.asarray(feed["attention_mask"]) != 0
    lengths = mask.sum(axis=1)
    if not lengths.all():
        raise BackendError(f"Row {int(np.argmin(lengths))} has no tokens, which cannot be packed.")
    wrong = (mask != (np.arange(mask.shape[1]) < lengths[:, None])).any(axis=1)
    if wrong.any():
        raise BackendError(
            f"In row {int(np.argmax(wrong))} padding stands before a token; packing wants it behind.",
            "Pad on the right, or build without packing.",
        )
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    tokens = int(starts[-1])
    filled = -(-tokens // MULTIPLE) * MULTIPLE
    room = filled if not most or filled <= most else max(tokens, min(filled, most))
    packed: dict[str, Array] = {STARTS: starts}
    for name in ("input_ids", "token_type_ids"):
        flat: npt.NDArray[Any] = np.zeros(room, np.asarray(feed[name]).dtype)
        flat[:tokens] = np.asarray(feed[name])[mask]
        packed[name] = flat
    return packed


class _Packing:
    """What a packed engine and its runners have in common."""

    most: int
    _plan_types: dict[str, np.dtype[Any]]

    def packed(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """The engine's own feed."""
        return {name: array.astype(self._plan_types[name]) for name, array in pack(feed, self.most).items()}


def padded_specs(plan: Any) -> tuple[TensorSpec, ...]:
    """The inputs as they are fed: int32 (batch, sequence), both free."""
    kind = next(t.dtype for t in plan.inputs if t.name == "input_ids")
    return tuple(TensorSpec(name, kind, (-1, -1)) for name in INPUTS)


def padded_rules(rules: Rules) -> Rules:
    """The rules of the inputs as they are fed."""
    return replace(rules, symbols=dict.fromkeys(INPUTS, SYMBOLS))


class PackedRunner(ContextRunner, _Packing):
    """A context of its own on a packed engine."""

    def __init__(self, plan: Any, owner: Any, rules: Rules, *, graphs: bool) -> None:
        super().__init__(plan, owner, padded_rules(rules), graphs=graphs)
        self._inputs = padded_specs(plan)
        self._plan_types, self.most = types_of(plan), most_tokens(plan)

    def _run(self, feed: dict[str, Array]) -> dict[str, Array]:
        return self.execution.run(self.packed(feed))


class PackedEngine(TrtEngine, _Packing):
    """An engine of packed sentences; feeds and answers are those of any other engine."""

    def __init__(self, info: Any, plan: Any, owner: Any, rules: Rules, **options: Any) -> None:
        super().__init__(info, plan, owner, padded_rules(rules), **options)
        self._inputs = padded_specs(plan)
        self._plan_types, self.most = types_of(plan), most_tokens(plan)

    def _new_runner(self) -> ContextRunner:
        return PackedRunner(self.plan, self._owner, self._rules, graphs=self._graphs)

    def _run(self, feed: dict[str, Array]) -> dict[str, Array]:
        return self._execution.run(self.packed(feed))

    def _measure(self, feed: dict[str, Array]) -> Phases:
        return self._execution.measure(self.packed(feed))


def types_of(plan: Any) -> dict[str, np.dtype[Any]]:
    """Input name -> NumPy type."""
    return {tensor.name: tensor.dtype for tensor in plan.inputs}


def most_tokens(plan: Any) -> int:
    """The most tokens that any profile takes."""
    return max(int(profile["input_ids"][2][0]) for profile in plan.profiles)

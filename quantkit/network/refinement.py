"""What refinement found for a network: constants that change nothing in FP32, and better INT8 weights and ranges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import onnx

from quantkit.network.edges import Vector, with_constants
from quantkit.network.precision import QuantizedWeight

if TYPE_CHECKING:
    from quantkit.tables.table import CalibrationTable, Entry


@dataclass(frozen=True, eq=False)
class Refinement:
    """Changes to a network and its table; independent of which products a plan quantizes.

    Attributes:
        constants: initializer -> float32 values to take instead. Together they leave the network's function as it is,
            whatever is quantized; ranges of tensors that they change stand in `entries`.
        weights: weight of a product -> its INT8 form (of the weight in `constants`, where it stands there). Used where
            the product is quantized.
        biases: bias behind a product -> what to add to it where the product is quantized, float32 (outputs,).
        entries: activation -> its range in the network with `constants`.
        steps: names of the steps, in the order in which they were made.
        notes: what was found and decided on the way, as JSON values for the record.
    """

    constants: Mapping[str, Vector] = field(default_factory=dict)
    weights: Mapping[str, QuantizedWeight] = field(default_factory=dict)
    biases: Mapping[str, Vector] = field(default_factory=dict)
    entries: Mapping[str, Entry] = field(default_factory=dict)
    steps: tuple[str, ...] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)

    def model(self, proto: onnx.ModelProto) -> onnx.ModelProto:
        """The FP32 network with the changed constants: another network with the same function."""
        return with_constants(proto, self.constants) if self.constants else proto

    def table(self, table: CalibrationTable) -> CalibrationTable:
        """The table of the changed network, from that of the network as it was."""
        return replace(table, entries={**table.entries, **self.entries})

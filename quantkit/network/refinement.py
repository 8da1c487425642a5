"""What refinement found for a network: constants that change nothing in FP32, and better INT8 weights and ranges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx

from quantkit.network.edges import Vector, with_constants
from quantkit.network.precision import QuantizedWeight

if TYPE_CHECKING:
    from quantkit.tables.table import CalibrationTable, Entry


@dataclass(frozen=True, eq=False)
class Refinement:
    """Changes to a network and its table; made by `quantkit.network.refine.refine`.

    Attributes:
        constants: initializer -> float32 values to take instead. Together they leave the network's function as it is,
            whatever is quantized.
        weights: weight of a product -> its INT8 form, of the weight in `constants` times the smoothing's factors.
            Used where the product is quantized.
        biases: bias behind a product -> what to add to it where the product is quantized, float32 (outputs,).
        factors: activation -> float32 (C,), what it is multiplied by in front of its quantizer.
        summands: activation -> float32 (C,), what is added after that; made up for in `biases`.
        channels: activation -> int32 (C + added,), the channel that each channel of what is quantized copies
            (`quantkit.network.splitting`); factors and summands are of this width, and so are the inputs of the weights
            that read it.
        entries: activation -> the range of what is quantized: after `constants`, `factors` and `summands`.
        steps: names of the steps that were made.
        edges: what was decided for each activation, as JSON values for the record.
    """

    constants: Mapping[str, Vector] = field(default_factory=dict)
    weights: Mapping[str, QuantizedWeight] = field(default_factory=dict)
    biases: Mapping[str, Vector] = field(default_factory=dict)
    factors: Mapping[str, Vector] = field(default_factory=dict)
    summands: Mapping[str, Vector] = field(default_factory=dict)
    channels: Mapping[str, npt.NDArray[np.int32]] = field(default_factory=dict)
    entries: Mapping[str, Entry] = field(default_factory=dict)
    steps: tuple[str, ...] = ()
    edges: tuple[Mapping[str, Any], ...] = ()

    @property
    def changed(self) -> frozenset[str]:
        """Activations whose pairs hold something else than their values; only products refined for it can read them."""
        return frozenset(self.factors.keys() | self.summands.keys() | self.channels.keys())

    def model(self, proto: onnx.ModelProto) -> onnx.ModelProto:
        """The FP32 network with the changed constants: another network with the same function."""
        return with_constants(proto, self.constants) if self.constants else proto

    def table(self, table: CalibrationTable, aliases: Mapping[str, str]) -> CalibrationTable:
        """The ranges that `insert_qdq` uses, from the table of the network as it was.

        They are good for the refined INT8 graph only: as a table of the network as it was they would be wrong.

        Args:
            table: of the network as it was.
            aliases: tensor that only reorders another -> that other; what the table has under such a name would win
                over the refined range of the other, and is left out.
        """
        kept = {name: entry for name, entry in table.entries.items() if aliases.get(name) not in self.entries}
        return replace(table, entries={**kept, **self.entries})

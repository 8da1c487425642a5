"""A calibration table in a build: as a cache that a calibrator reads, or as dynamic ranges."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from quantkit.backends.trt.options import CALIBRATORS
from quantkit.backends.trt.versions import Version
from quantkit.errors import TableError
from quantkit.tables.table import CalibrationTable, Entry

CACHE_READER = "entropy2"
"""The calibrator that reads tables: TensorRT takes a cache whose header names its reader, whatever made the scales."""


@dataclass(frozen=True)
class Fit:
    """How a table fits a network.

    Attributes:
        used: tensors that both have, in network order.
        missing: float tensors of the network that the table lacks.
        unused: entries of the table that the network has no tensor for (constants and inputs among them).
    """

    used: tuple[str, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]


def fit(table: CalibrationTable, tensors: Iterable[str]) -> Fit:
    """Compares names.

    Raises:
        TableError: not one name is common: the table is another model's.
    """
    names = list(tensors)
    known = set(names)
    used = tuple(name for name in names if name in table)
    if not used:
        raise TableError(
            f"The table is another model's: none of its {len(table)} tensors is among the network's {len(names)}.",
            "Calibrate this model, or give the model that the table belongs to.",
        )
    missing = tuple(name for name in names if name not in table)
    return Fit(used, missing, tuple(name for name in table.names if name not in known))


def with_derived(table: CalibrationTable, derived: Mapping[str, tuple[str, ...]]) -> CalibrationTable:
    """The table with entries for tensors that hold the values of others: the widest of their scales."""
    added: dict[str, Entry] = {}
    for name, sources in derived.items():
        scales = [table[source].scale for source in sources if source in table]
        if scales and name not in table:
            added[name] = Entry(max(scales), method="derived")
    return CalibrationTable({**table.entries, **added}, table.algorithm, table.parameters, table.provenance)


def cache_text(table: CalibrationTable, version: Version, algorithm: str = CACHE_READER) -> str:
    """The table as the cache that this version's calibrator of that name accepts."""
    return table.dumps("tensorrt", algorithm=CALIBRATORS[algorithm], version=version.number)


def set_dynamic_ranges(trt: Any, network: Any, table: CalibrationTable) -> list[str]:
    """Gives every tensor of the network its range [-amax, amax]; the names of those that got one.

    A tensor that was zero throughout has no range that TensorRT takes, and stays without.
    """
    ranged = []
    for tensor in _tensors(network):
        name = str(tensor.name)
        if name not in table or tensor.dtype not in (trt.float32, trt.float16) or table[name].scale == 0:
            continue
        amax = table[name].amax
        if not tensor.set_dynamic_range(-amax, amax):
            raise TableError(f"TensorRT refuses the range [-{amax:g}, {amax:g}] of {name!r}.")
        ranged.append(name)
    return ranged


def _tensors(network: Any) -> Iterable[Any]:
    """Every tensor: inputs, then what the layers give."""
    yield from (network.get_input(i) for i in range(network.num_inputs))
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        yield from (layer.get_output(j) for j in range(layer.num_outputs))

"""The parts of an encoder that a search switches between INT8 and float, and plans made of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import onnx

from quantkit.network.index import GraphIndex
from quantkit.network.precision import PrecisionPlan
from quantkit.network.structure import Encoder, find_encoder

GROUPS = ("qkv", "products", "output", "ffn1", "ffn2")
"""Projections of query, key and value; the two attention products; the attention's output; the two feed-forward
products. What shares a quantized input is one group: quantizing a part of it alone would save nothing."""


@dataclass(frozen=True)
class Unit:
    """One tensor group of one layer.

    Attributes:
        layer: number of the encoder layer.
        group: one of `GROUPS`.
        names: what a plan's skip list has to name to leave it in float: the nodes of weight products; of attention
            products their first inputs, because in quantkit's own graphs a node is called like its output, and that
            name would take out the readers of the output too.
    """

    layer: int
    group: str
    names: tuple[str, ...]

    @property
    def name(self) -> str:
        """For example "layer3.ffn2"."""
        return f"layer{self.layer}.{self.group}"


def units_of(proto: onnx.ModelProto, plan: PrecisionPlan) -> list[Unit]:
    """The units that `plan` covers and does not skip, by layer and group; [] when no encoder was recognised."""
    return units_in(find_encoder(GraphIndex(proto.graph)), plan)


def units_in(encoder: Encoder, plan: PrecisionPlan) -> list[Unit]:
    """See `units_of`."""
    names: dict[tuple[int, str], list[str]] = {}
    for site in encoder.sites:
        if not (plan.places.ffn if site.role == "ffn" else plan.places.attention):
            continue
        group = {"attention": "qkv", "attention.output": "output"}.get(site.role, "ffn")
        if group == "ffn":
            # The last of a layer's feed-forward products is the one whose result meets the residual.
            last = [other for other in encoder.sites if (other.layer, other.role) == (site.layer, "ffn")][-1]
            group = "ffn2" if site is last else "ffn1"
        names.setdefault((site.layer, group), []).append(site.product.node)
    if plan.places.products:
        for pair in encoder.products:
            names[(pair.layer, "products")] = [pair.query, pair.probs]
    units = [
        Unit(layer, group, tuple(found))
        for (layer, group), found in sorted(names.items(), key=lambda item: (item[0][0], GROUPS.index(item[0][1])))
    ]
    return [u for u in units if not all(plan.skipped_by(name, layer=u.layer) for name in u.names)]


def without(plan: PrecisionPlan, units: Collection[Unit]) -> PrecisionPlan:
    """The plan with some units left in float."""
    return replace(plan, skip=plan.skip | {name for unit in units for name in unit.names})


def only(plan: PrecisionPlan, unit: Unit, units: Sequence[Unit]) -> PrecisionPlan:
    """The plan with one unit in INT8 and all others in float."""
    return without(plan, [other for other in units if other != unit])

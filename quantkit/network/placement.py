"""Decides which tensors of a graph get a Q/DQ pair, and which nodes read it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from quantkit.errors import ModelError, TableError
from quantkit.network.index import GraphIndex, WeightMatMul
from quantkit.network.precision import Grid, PrecisionPlan
from quantkit.network.structure import Encoder, find_encoder

if TYPE_CHECKING:
    from quantkit.tables.table import CalibrationTable, Entry


NO_ENTRY = "the calibration table has no entry for it"


@dataclass
class Placement:
    """Where Q/DQ goes.

    Attributes:
        grids: tensor -> grid of its pair.
        readers: tensor -> (node name, number of the input) that shall read the pair.
        dense: weight products whose weight is quantized too.
        quantized: names of the nodes whose both inputs are quantized.
        skipped: name of a node or tensor that the mode covers but that stays FP32 -> why.
    """

    grids: dict[str, Grid] = field(default_factory=dict)
    readers: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    dense: list[WeightMatMul] = field(default_factory=list)
    quantized: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def read(self, tensor: str, grid: Grid, node: str, position: int) -> None:
        """Lets an input of a node read the pair of a tensor."""
        self.grids[tensor] = grid
        self.readers.setdefault(tensor, []).append((node, position))


def place(index: GraphIndex, table: CalibrationTable, plan: PrecisionPlan, changed: Collection[str] = ()) -> Placement:
    """What `plan` quantizes in a graph with the ranges of `table`.

    Args:
        index: of the graph.
        table: its ranges.
        plan: what is to be quantized.
        changed: tensors whose pair holds them with other channels; residual connections cannot read it.

    Raises:
        ModelError: no encoder layer was recognised in the graph.
        TableError: the table has not one of the tensors that are needed.
    """
    return _EncoderPlacer(index, table.entries, plan, changed).run()


def requirements(index: GraphIndex, plan: PrecisionPlan) -> list[str]:
    """The tensors whose ranges `place` looks up.

    Raises:
        ModelError: no encoder layer was recognised in the graph.
    """
    placer = _EncoderPlacer(index, {}, plan)
    placer.place_all()
    return list(placer.asked)


def _recognised(index: GraphIndex) -> Encoder:
    """The encoder of a graph; ModelError when there is none."""
    encoder = find_encoder(index)
    if not encoder.num_layers or not encoder.sites:
        raise ModelError(
            "No encoder layer was found in the graph: no softmax between two products of activations, "
            "with dense layers around it.",
            "Give a BERT-like model whose attention is exported as plain MatMul and Softmax.",
        )
    return encoder


class Placer(ABC):
    """One decision: the ranges asked for so far, and what became of them. What is placed, subclasses say."""

    def __init__(self, index: GraphIndex, entries: Mapping[str, Entry], plan: PrecisionPlan) -> None:
        self.index, self.entries, self.plan = index, entries, plan
        self.placement = Placement()
        self.asked: dict[str, Entry | None] = {}

    @abstractmethod
    def place_all(self) -> None:
        """Fills the placement."""

    def run(self) -> Placement:
        """The whole placement.

        Raises:
            TableError: the table has not one of the tensors that are needed.
        """
        self.place_all()
        if self.asked and all(entry is None for entry in self.asked.values()):
            raise TableError(
                f"The table has none of the {len(self.asked)} tensors to quantize, such as {next(iter(self.asked))}.",
                "It is the table of another model or export: calibrate this one, or see quantkit table rename.",
            )
        order = {node.name: i for i, node in enumerate(self.index.graph.node)}
        self.placement.quantized.sort(key=order.__getitem__)
        return self.placement

    def place_product(self, product: WeightMatMul, layer: int | None = None) -> None:
        """Input and weight of a product with a constant."""
        names = (product.node, product.weight, product.output, *self.names(product.activation))
        if self.taken_out(product.node, names, layer):
            return
        grid = self.grid(product.activation)
        if grid is None:
            self.placement.skipped[product.node] = f"its input {product.activation} is not quantized"
            return
        self.placement.read(product.activation, grid, product.node, 0)
        self.placement.dense.append(product)
        self.placement.quantized.append(product.node)

    def taken_out(self, node: str, names: list[str] | tuple[str, ...], layer: int | None) -> bool:
        """Whether a pattern of the plan leaves a node in FP32; notes it."""
        pattern = self.plan.skipped_by(node, *names, layer=layer)
        if pattern is not None:
            self.placement.skipped[node] = f"left in FP32 by the pattern {pattern!r}"
        return pattern is not None

    def grid(self, tensor: str, symmetric: bool = False) -> Grid | None:
        """The grid of a tensor by the table and the plan; None, with a note why, when there is none."""
        if tensor not in self.asked:
            self.asked[tensor] = next((self.entries[n] for n in self.names(tensor) if n in self.entries), None)
        entry = self.asked[tensor]
        if entry is None:
            self.placement.skipped[tensor] = NO_ENTRY
            return None
        grid = Grid.of(entry, symmetric or self.plan.symmetric)
        if not grid.usable:
            self.placement.skipped[tensor] = f"its scale is {float(grid.scale):g}"
            return None
        return grid

    def names(self, tensor: str) -> tuple[str, ...]:
        """The names under which a table may hold a tensor's values: its own, then that of what it reorders."""
        return (tensor, self.index.aliases[tensor]) if tensor in self.index.aliases else (tensor,)


class _EncoderPlacer(Placer):
    """The placement of a plan's mode in the encoder layers; residuals do not read the pairs of `changed` tensors."""

    def __init__(
        self, index: GraphIndex, entries: Mapping[str, Entry], plan: PrecisionPlan, changed: Collection[str] = ()
    ) -> None:
        super().__init__(index, entries, plan)
        self.encoder, self.changed = _recognised(index), changed

    def place_all(self) -> None:
        """Everything the plan's mode covers."""
        self.place_dense()
        if self.plan.places.products:
            self.place_products()
        if self.plan.places.residual:
            self.place_residuals()

    def place_dense(self) -> None:
        """Inputs and weights of the layers' weight products."""
        for site in self.encoder.sites:
            product = site.product
            if not (self.plan.places.ffn if site.role == "ffn" else self.plan.places.attention):
                continue
            self.place_product(product, layer=site.layer)

    def place_products(self) -> None:
        """Inputs of the attention products; both of a product, or none.

        Query, key and value are always int8 around zero: OpenVINO computes a product of two activations in INT8 only
        when the zero points are 0 (otherwise it dequantizes and multiplies in FP32).
        """
        for pair in self.encoder.products:
            for node, inputs in (
                (pair.scores_node, (pair.query, pair.key)),
                (pair.context_node, (pair.probs, pair.value)),
            ):
                if self.taken_out(node, [name for tensor in inputs for name in self.names(tensor)], pair.layer):
                    continue
                grids = [Grid.unit(self.plan.int8_only) if t == pair.probs else self.grid(t, True) for t in inputs]
                for position, (tensor, grid) in enumerate(zip(inputs, grids, strict=True)):
                    if grid is None:
                        self.placement.skipped[node] = f"its input {tensor} is not quantized"
                    elif None not in grids:
                        self.placement.read(tensor, grid, node, position)
                if None not in grids:
                    self.placement.quantized.append(node)

    def place_residuals(self) -> None:
        """Residual Adds read the pair of their identity branch where it has one."""
        for tensor, grid in list(self.placement.grids.items()):
            for node in self.index.consumers.get(tensor, ()):
                if node.op_type != "Add" or not all(name in self.index.data for name in node.input):
                    continue
                if self.taken_out(node.name, [node.name, node.output[0]], None):
                    continue
                if tensor in self.changed:
                    self.placement.skipped[node.name] = f"the pair of {tensor} holds changed channels"
                else:
                    self.placement.read(tensor, grid, node.name, list(node.input).index(tensor))

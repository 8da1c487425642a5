"""Placement of Q/DQ in a graph of any kind: the inputs and weights of every MatMul, Gemm and Conv.

The rule, in graph order:

- MatMul or Gemm of an activation with a constant float32 matrix on its right, and Conv with a constant float32 kernel:
  the activation gets a pair with the table's scale, the constant is quantized per output channel. Biases stay float32.
- MatMul of two activations: both inputs get pairs, or none does.
- One pair a tensor, shared by every product that reads it; all its other readers (residual Adds, LayerNorm, softmax,
  pooling) read the float tensor.
- A product stays FP32 when the table has no scale, or the scale 0, for an input; other operators with weights
  (ConvTranspose, LSTM, GRU, RNN, products whose constant stands on the left) stay FP32 too. Each is listed with why.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from quantkit.errors import ModelError
from quantkit.network.index import GraphIndex, reads
from quantkit.network.placement import Placement, Placer
from quantkit.network.precision import PrecisionPlan

if TYPE_CHECKING:
    from quantkit.tables.table import CalibrationTable

COVERED = ("MatMul", "Gemm", "Conv")
NOT_COVERED = (*COVERED, "ConvTranspose", "LSTM", "GRU", "RNN", "Einsum", "DeformConv")
"""Operators that multiply, of which something stays FP32 by this rule; the first three in forms it does not know."""


def place_everywhere(index: GraphIndex, table: CalibrationTable, plan: PrecisionPlan) -> Placement:
    """What the general rule quantizes in a graph with the ranges of `table`; of `plan`, mode does not matter.

    Raises:
        ModelError: the graph has nothing that the rule covers.
        TableError: the table has not one of the tensors that are needed.
    """
    placer = _GeneralPlacer(index, table.entries, plan)
    placement = placer.run()
    if not placer.asked:
        raise ModelError(
            "The graph has no MatMul, Gemm or Conv with a constant float32 weight.",
            "Export the model in float32, with its weights as constants.",
        )
    return placement


def requirements_everywhere(index: GraphIndex) -> list[str]:
    """The tensors whose ranges `place_everywhere` looks up; none where it covers nothing."""
    placer = _GeneralPlacer(index, {}, PrecisionPlan())
    placer.place_all()
    return list(placer.asked)


class _GeneralPlacer(Placer):
    """The rule above."""

    def place_all(self) -> None:
        """Every product of the graph."""
        weighted = {product.node: product for product in (*self.index.weight_matmuls, *self.index.convolutions)}
        pairs = {node.name for node in self.index.data_matmuls}
        for node in self.index.graph.node:
            if node.name in weighted:
                self.place_product(weighted[node.name])
            elif node.name in pairs:
                self.place_pair(node.name, list(node.input))
            elif node.op_type in NOT_COVERED and any(name in self.index.data for name in reads(node)):
                self.placement.skipped[node.name] = f"{node.op_type} of this form is not covered by the general rule"

    def place_pair(self, node: str, inputs: list[str]) -> None:
        """Both inputs of a product of two activations, or none."""
        if self.taken_out(node, [node, *(name for tensor in inputs for name in self.names(tensor))], None):
            return
        grids = [self.grid(tensor, True) for tensor in inputs]
        if bad := [tensor for tensor, grid in zip(inputs, grids, strict=True) if grid is None]:
            self.placement.skipped[node] = f"its input {bad[0]} is not quantized"
            return
        for position, (tensor, grid) in enumerate(zip(inputs, grids, strict=True)):
            if grid is not None:
                self.placement.read(tensor, grid, node, position)
        self.placement.quantized.append(node)

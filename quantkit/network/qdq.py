"""Puts QuantizeLinear/DequantizeLinear pairs into a graph, where runtimes turn them into INT8 products.

Placement per encoder layer (tensor names of quantkit's own graph): the input of the layer feeds the query, key and
value products through one shared pair; attention.context feeds the output projection; attention.norm and ffn.gelu the
two feed-forward products. With residuals, the two Adds read the pair of their identity branch; the branch of the
product stays float, because its dequantization is the product's own epilogue. With attention products, query, key and
value are quantized as well, and the probabilities with the fixed range [0, 1]: it is known, and a calibrated one would
only clip the few values that matter.

The form was checked in the kernels that OpenVINO 2026.4 executes on a CPU, and loads in onnxruntime: an int8 constant
with a DequantizeLinear along the outputs at a MatMul's second input, a pair at its first, makes an INT8 FullyConnected
with the bias, the factor on the query, the GELU and the next tensor's QuantizeLinear fused into it. Activations may be
uint8 with a zero point there (it is folded into the output), but not in a product of two activations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from quantkit.errors import ModelError
from quantkit.network.attention import drop_scaling, late_scales
from quantkit.network.index import GraphIndex, WeightMatMul, attribute
from quantkit.network.placement import Placement, place, requirements
from quantkit.network.precision import Grid, PrecisionPlan, QuantizedWeight
from quantkit.network.refinement import Refinement
from quantkit.network.rewriting import drop_unread_constants, fresh_name, replace_nodes, replace_values
from quantkit.network.splitting import widen
from quantkit.qparams import quantize, weight_scales

if TYPE_CHECKING:
    from quantkit.tables.table import CalibrationTable

Rule = Callable[[GraphIndex, "CalibrationTable", PrecisionPlan], Placement]
"""What decides a placement by its own rules."""
Multipliers = dict[str, tuple[str, npt.NDArray[np.float32]]]
"""Activation -> how its product with the second is called, and what it is multiplied by in front of its pair."""
MIN_OPSET = 13  # the first whose DequantizeLinear has an axis


@dataclass(frozen=True)
class QdqResult:
    """A quantized model and what was done to it.

    Attributes:
        proto: the model with Q/DQ pairs.
        quantized: names of the nodes whose both inputs are quantized, in graph order.
        skipped: name of a node or tensor that the mode covers but that stays FP32 -> why.
        grids: quantized activation -> its grid.
        weight_scales: quantized weight -> its scales, one per output channel.
    """

    proto: onnx.ModelProto
    quantized: list[str]
    skipped: dict[str, str]
    grids: dict[str, Grid] = field(default_factory=dict)
    weight_scales: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)


def insert_qdq(
    proto: onnx.ModelProto,
    table: CalibrationTable,
    plan: PrecisionPlan,
    refinement: Refinement | None = None,
    *,
    rule: Rule | None = None,
    early_factor: bool = True,
) -> QdqResult:
    """A copy of a float32 model in which the products that `plan` covers read quantized activations and weights.

    Names of tensors stay; new ones are derived: <tensor>.quantized, <tensor>.dequantized, <tensor>.scale,
    <tensor>.zero_point, and <tensor>.smoothed, .scaled or .shifted where a Mul or an Add stands in front. A factor
    behind the first attention product, where that is quantized, goes to the query, and the unscaled scores are gone
    with it, unless `early_factor` is off. A tensor that the table lacks, or whose scale is 0 or not finite, and the
    products that read it, stay FP32 and are listed with the reason.

    Args:
        proto: the network, with free or fixed shapes; names must be those that `table` and `refinement` know.
        table: ranges of the network as it is.
        plan: what becomes INT8; any plan goes with any refinement.
        refinement: changed constants with the ranges that go with them, weights rounded with care, corrected biases.
        rule: decides where pairs go; None is the encoder layers' placement of the plan's mode.
        early_factor: see above; off, every quantized tensor keeps the table's own scale.

    Raises:
        ModelError: the opset is older than 13, or no encoder layer was recognised in the graph.
        TableError: the table has not one of the tensors that are needed.
    """
    opset = max((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), default=0)
    if opset < MIN_OPSET:
        raise ModelError(
            f"The model uses opset {opset}; quantization per channel needs {MIN_OPSET} or later.",
            "Export the model with a newer opset.",
        )
    refined = refinement or Refinement()
    index = GraphIndex(proto.graph)
    ranges = refined.table(table, index.aliases)
    placement = place(index, ranges, plan, refined.changed) if rule is None else rule(index, ranges, plan)
    model = onnx.ModelProto()
    model.CopyFrom(refined.model(proto))
    multipliers: Multipliers = {tensor: ("smoothed", factors) for tensor, factors in refined.factors.items()}
    for late in late_scales(index) if plan.places.products and early_factor else ():
        if late.product in placement.quantized:
            grid = placement.grids[late.query]
            placement.grids[late.query] = replace(grid, scale=np.float32(grid.scale * late.factor))
            multipliers[late.query] = ("scaled", np.array(late.factor, np.float32))
            drop_scaling(model, late)
    refined = widen(model, refined, placement.grids)
    scales = _Rewriter(model, placement, refined, multipliers).run()
    return QdqResult(model, placement.quantized, placement.skipped, placement.grids, scales)


def required_tensors(proto: onnx.ModelProto, plan: PrecisionPlan) -> list[str]:
    """The tensors whose ranges `insert_qdq` asks a table for, in graph order; no other needs to be calibrated for it.

    A tensor that only reorders another is given under that other's name.

    Raises:
        ModelError: no encoder layer was recognised in the graph.
    """
    index = GraphIndex(proto.graph)
    needed = {index.aliases.get(tensor, tensor) for tensor in requirements(index, plan)}
    return [name for name in index.activations if name in needed]


def output_axis(node: onnx.NodeProto) -> int:
    """The dimension of a product's weight that counts outputs, along which it is quantized."""
    return 0 if node.op_type == "Conv" or attribute(node, "transB", 0) else 1


class _Rewriter:
    """Puts a placement into a model, in place."""

    def __init__(
        self, model: onnx.ModelProto, placement: Placement, refinement: Refinement, multipliers: Multipliers
    ) -> None:
        self.graph, self.placement, self.refinement = model.graph, placement, refinement
        self.multipliers = multipliers
        self.index = GraphIndex(model.graph)
        self.nodes = {node.name: node for node in model.graph.node}
        self.taken = {*self.nodes, *self.index.initializers, *self.index.info, *self.index.producer}
        self.scales: dict[str, npt.NDArray[np.float32]] = {}

    def run(self) -> dict[str, npt.NDArray[np.float32]]:
        """Rewires the graph; gives the scales of the quantized weights."""
        before: list[onnx.NodeProto] = []
        dequantized: dict[tuple[str, int], str] = {}
        for product in self.placement.dense:
            key = (product.weight, output_axis(self.nodes[product.node]))
            if key not in dequantized:
                dequantized[key] = self._weight(product, before)
                self._correct_bias(product)
            self.nodes[product.node].input[1] = dequantized[key]
        pairs = {tensor: self._pair(tensor, grid) for tensor, grid in self.placement.grids.items()}
        for tensor, readers in self.placement.readers.items():
            for node, position in readers:
                self.nodes[node].input[position] = pairs[tensor][-1].output[0]
        ordered = before + [node for info in self.index.inputs for node in pairs.get(info.name, ())]
        for node in self.graph.node:
            ordered.append(node)
            ordered.extend(new for name in node.output for new in pairs.get(name, ()))
        replace_nodes(self.graph, ordered)
        drop_unread_constants(self.graph, {weight for weight, _ in dequantized})
        return self.scales

    def _pair(self, tensor: str, grid: Grid) -> list[onnx.NodeProto]:
        """QuantizeLinear and DequantizeLinear of an activation, behind a Mul where there is a multiplier."""
        codes, values = self._fresh(f"{tensor}.quantized"), self._fresh(f"{tensor}.dequantized")
        scale = self._constant(f"{tensor}.scale", np.array(grid.scale, np.float32))
        zero_point = self._constant(f"{tensor}.zero_point", grid.zero_point_array)
        self._describe(tensor, codes, TensorProto.INT8 if grid.signed else TensorProto.UINT8)
        self._describe(tensor, values, TensorProto.FLOAT)
        nodes = []
        source = tensor
        if tensor in self.multipliers:
            what, factors = self.multipliers[tensor]
            source = self._fresh(f"{tensor}.{what}")
            self._describe(tensor, source, TensorProto.FLOAT)
            multiplier = self._constant(f"{tensor}.{what}.by", factors)
            nodes.append(helper.make_node("Mul", [tensor, multiplier], [source], name=source))
        if tensor in self.refinement.summands:
            shifted = self._fresh(f"{tensor}.shifted")
            self._describe(tensor, shifted, TensorProto.FLOAT)
            summand = self._constant(f"{tensor}.shifted.by", self.refinement.summands[tensor])
            nodes.append(helper.make_node("Add", [source, summand], [shifted], name=shifted))
            source = shifted
        return [
            *nodes,
            helper.make_node("QuantizeLinear", [source, scale, zero_point], [codes], name=codes),
            helper.make_node("DequantizeLinear", [codes, scale, zero_point], [values], name=values),
        ]

    def _weight(self, product: WeightMatMul, nodes: list[onnx.NodeProto]) -> str:
        """Replaces a weight by int8 codes behind a DequantizeLinear; gives the name of the dequantized weight."""
        name, axis = product.weight, output_axis(self.nodes[product.node])
        weight = self.refinement.weights.get(name) or self._nearest(name, axis)
        scales = self.scales[name] = weight.scales
        codes = self._constant(f"{name}.quantized", weight.codes)
        scale = self._constant(f"{name}.scale", scales)
        # onnxruntime wants the zero points written out, and of the codes' type, to merge the node into its kernel.
        zero_point = self._constant(f"{name}.zero_point", np.zeros(scales.shape, np.int8))
        values = self._fresh(f"{name}.dequantized")
        nodes.append(helper.make_node("DequantizeLinear", [codes, scale, zero_point], [values], name=values, axis=axis))
        self._describe(name, values, TensorProto.FLOAT)
        return values

    def _nearest(self, name: str, axis: int) -> QuantizedWeight:
        """A weight rounded to the nearest codes, with scales along `axis`."""
        weight = numpy_helper.to_array(self.index.initializers[name])
        scales = weight_scales(weight, axis)
        along = [-1 if dim == axis else 1 for dim in range(weight.ndim)]
        return QuantizedWeight(quantize(weight, scales.reshape(along)), scales)

    def _correct_bias(self, product: WeightMatMul) -> None:
        """Adds the refinement's correction to the bias behind a product, if there is one."""
        for node in self.index.consumers.get(product.output, ()):
            for name in node.input:
                if name in self.refinement.biases:
                    tensor = self.index.initializers[name]
                    corrected = numpy_helper.to_array(tensor) + self.refinement.biases[name]
                    replace_values(tensor, corrected.astype(np.float32))

    def _constant(self, name: str, value: npt.NDArray[Any]) -> str:
        """Adds an initializer under a name not taken yet; gives that name."""
        fresh = self._fresh(name)
        self.graph.initializer.append(numpy_helper.from_array(value, fresh))
        return fresh

    def _fresh(self, name: str) -> str:
        """The name itself, or with a number where an imported graph uses it already."""
        return fresh_name(name, self.taken)

    def _describe(self, like: str, name: str, dtype: int) -> None:
        """Writes down type and shape of a new tensor, where that of the old one is known."""
        shape = self.index.shape(like)
        if shape is not None:
            self.graph.value_info.append(helper.make_tensor_value_info(name, dtype, [d or None for d in shape]))

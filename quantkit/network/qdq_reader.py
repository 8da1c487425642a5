"""The scales in a quantized ONNX model, read out of its QuantizeLinear and DequantizeLinear nodes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, numpy_helper

from quantkit.errors import ModelError, TableError
from quantkit.network.index import GraphIndex, attribute
from quantkit.network.onnx_import import read_model
from quantkit.qparams import INT8_MAX
from quantkit.tables.table import CalibrationTable, Entry

LIMITS = {TensorProto.INT8: (-128, 127), TensorProto.UINT8: (0, 255)}
"""Types of the codes that a table can speak of, and their range."""
SUFFIXES = (".quantized", "_quantized", "_q", "_dequantized", ".dequantized")


@dataclass(frozen=True)
class ActivationScale:
    """A pair on an activation: value = (code - zero_point) * scale.

    Attributes:
        tensor: name of the float tensor that is quantized.
        scale: float32 step.
        zero_point: code of the value 0.
        dtype: "int8" or "uint8".
    """

    tensor: str
    scale: np.float32
    zero_point: int
    dtype: str

    @property
    def symmetric(self) -> bool:
        """Whether the grid is TensorRT's: int8 around zero."""
        return self.dtype == "int8" and self.zero_point == 0

    @property
    def limits(self) -> tuple[float, float]:
        """Lowest and highest value that a code stands for."""
        low, high = (-128, 127) if self.dtype == "int8" else (0, 255)
        return ((low - self.zero_point) * float(self.scale), (high - self.zero_point) * float(self.scale))


@dataclass(frozen=True, eq=False)
class WeightScale:
    """A constant behind a DequantizeLinear.

    Attributes:
        tensor: name of the constant, without the suffix that exporters add.
        scales: float32, one a channel (a single one where it is quantized as a whole).
        zero_points: as many, 0 where the file has none.
        axis: the dimension of the channels; None where it is quantized as a whole.
        dtype: type of the codes.
    """

    tensor: str
    scales: npt.NDArray[np.float32]
    zero_points: npt.NDArray[np.int64]
    axis: int | None
    dtype: str


@dataclass(frozen=True)
class QdqScales:
    """What was found in a model; `notes` says what could not be read, a sentence each."""

    activations: tuple[ActivationScale, ...]
    weights: tuple[WeightScale, ...]
    notes: tuple[str, ...] = field(default=())

    def table(self) -> tuple[CalibrationTable, list[str]]:
        """The activations as a table, and what it cannot hold.

        A grid of int8 around zero is the table's own: its scale is kept bit for bit. Any other becomes the symmetric
        range that covers it, with its limits as extremes.

        Raises:
            TableError: the scale of a tensor is none that a build can use.
        """
        entries = {found.tensor: _entry(found) for found in self.activations}
        notes = list(self.notes)
        if odd := sum(not found.symmetric for found in self.activations):
            notes.append(
                f"{odd} tensors have a grid that is not int8 around zero: their range is kept as extremes, scale and "
                "zero point are not."
            )
        if self.weights:
            notes.append(f"The scales of {len(self.weights)} weights are no part of a table of activations.")
        return CalibrationTable(entries), notes


def _entry(found: ActivationScale) -> Entry:
    """The table's entry of a pair."""
    try:
        if found.symmetric:
            return Entry(found.scale)
        low, high = found.limits
        return Entry(np.float32(max(abs(low), abs(high)) / INT8_MAX), low, high)
    except TableError as error:
        raise TableError(f"tensor {found.tensor!r}: {error.message}") from error


def read_qdq(path: str | Path) -> QdqScales:
    """The scales in an .onnx file; see `find_scales`."""
    return find_scales(read_model(Path(path)), str(path))


def find_scales(model: onnx.ModelProto, label: str = "the model") -> QdqScales:
    """Every quantized activation and weight of a model, in graph order; subgraphs are not looked into.

    Raises:
        ModelError: there is no QuantizeLinear and no DequantizeLinear in it.
    """
    reader = _Reader(model.graph)
    reader.run()
    if not reader.pairs:
        raise ModelError(
            f"{label} has no QuantizeLinear or DequantizeLinear node, so there are no scales in it.",
            "Give a model with Q/DQ nodes; integer operators (QLinearConv, MatMulInteger) are not read.",
        )
    return QdqScales(tuple(reader.activations.values()), tuple(reader.weights.values()), tuple(reader.notes))


def verify_scales(model: onnx.ModelProto, scales: Mapping[str, np.float32]) -> None:
    """Makes sure that a quantized model is valid and that these scales are read back from it, bit for bit.

    Args:
        model: the model.
        scales: quantized activation -> its scale.

    Raises:
        ModelError: it is not valid, or the scale of a tensor does not come back.
    """
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError) as error:
        raise ModelError(f"The quantized model is not valid: {str(error).splitlines()[0]}") from error
    back = {found.tensor: found.scale for found in find_scales(model).activations}
    if wrong := [name for name, scale in scales.items() if name not in back or back[name].tobytes() != scale.tobytes()]:
        raise ModelError(f"The scale of {wrong[0]!r} does not come back from the quantized model.")


class _Reader:
    """One walk over a graph."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.index = GraphIndex(graph)
        self.constants: dict[str, onnx.TensorProto] = dict(self.index.initializers)
        for node in graph.node:
            if node.op_type == "Constant" and len(node.attribute) == 1 and node.attribute[0].HasField("t"):
                self.constants[node.output[0]] = node.attribute[0].t
        self.activations: dict[str, ActivationScale] = {}
        self.weights: dict[str, WeightScale] = {}
        self.notes: list[str] = []
        self.pairs = 0

    def run(self) -> None:
        """Looks at every quantizer, and at every constant that was quantized before."""
        for node in self._nodes():
            self.pairs += 1
            source: object = node.input[0]
            if not isinstance(source, str):  # protobuf gives bytes where they are not UTF-8
                raise ModelError(f"The model has a tensor whose name is not UTF-8: {source!r}.", "Export it again.")
            if len(node.input) < 2 or (scales := self._constant(node.input[1])) is None:
                self.notes.append(f"{source!r} is left out: its scale is computed at run time.")
            elif source in self.constants:
                self._weight(node, source, scales)
            elif node.op_type == "QuantizeLinear":
                self._activation(node, source, scales)

    def _nodes(self) -> Iterator[onnx.NodeProto]:
        for node in self.index.graph.node:
            if node.input and node.op_type == "QuantizeLinear":
                yield node
            elif node.input and node.op_type == "DequantizeLinear":
                self.pairs += node.input[0] not in self.constants
                if node.input[0] in self.constants:
                    yield node

    def _constant(self, name: str) -> npt.NDArray[Any] | None:
        """Value of a constant; None when the tensor is none."""
        if name not in self.constants:
            return None
        try:
            value: npt.NDArray[Any] = numpy_helper.to_array(self.constants[name])
            return value
        except (ValueError, TypeError, KeyError, OverflowError, MemoryError) as error:
            raise ModelError(
                f"The constant {name!r} cannot be read: {error}.", "Fetch or export the model again."
            ) from error

    def _zero_points(self, node: onnx.NodeProto) -> tuple[npt.NDArray[np.int64] | None, int]:
        """Zero points (0 where there are none) and the type of the codes; None when they are computed."""
        if len(node.input) < 3 or not node.input[2]:
            codes = self.constants.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
            kind = attribute(node, "output_dtype", 0) if codes is None else codes.data_type
            return np.zeros(1, np.int64), kind or TensorProto.UINT8
        if (value := self._constant(node.input[2])) is None:
            return None, 0
        return np.atleast_1d(value).astype(np.int64).reshape(-1), self.constants[node.input[2]].data_type

    def _activation(self, node: onnx.NodeProto, source: str, scales: npt.NDArray[Any]) -> None:
        """Notes a QuantizeLinear of an activation."""
        zero_points, kind = self._zero_points(node)
        word = _word(kind)
        if zero_points is None:
            self.notes.append(f"{source!r} is left out: its zero point is computed at run time.")
        elif kind not in LIMITS:
            self.notes.append(f"{source!r} is left out: its codes are {word}, not 8-bit integers.")
        elif scales.size != 1 or zero_points.size != 1:
            self.notes.append(f"{source!r} is left out: it is quantized per channel, which a table cannot say.")
        else:
            found = ActivationScale(source, np.float32(scales.reshape(-1)[0]), int(zero_points[0]), word)
            if self.activations.setdefault(source, found) != found:
                self.notes.append(f"{source!r} is quantized twice, on different grids: the first is taken.")

    def _weight(self, node: onnx.NodeProto, source: str, scales: npt.NDArray[Any]) -> None:
        """Notes a constant that is quantized here, or was before."""
        zero_points, kind = self._zero_points(node)
        if zero_points is None:
            self.notes.append(f"{source!r} is left out: its zero point is computed at run time.")
            return
        flat = np.atleast_1d(scales).astype(np.float32).reshape(-1)
        if zero_points.size not in (1, flat.size):
            self.notes.append(f"{source!r} is left out: {flat.size} scales, {zero_points.size} zero points.")
            return
        axis = attribute(node, "axis", 1) if scales.ndim else None
        name = next((source.removesuffix(end) for end in SUFFIXES if source.endswith(end)), source)
        spread = np.broadcast_to(zero_points, flat.shape)
        self.weights.setdefault(source, WeightScale(name, flat, spread, axis, _word(kind)))


def _word(kind: int) -> str:
    """Name of an ONNX element type, in lower case."""
    return TensorProto.DataType.Name(kind).lower() if kind in TensorProto.DataType.values() else str(kind)

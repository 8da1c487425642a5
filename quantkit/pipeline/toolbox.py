"""The table toolbox's work that needs more than tables: ONNX files as sources, models to check names against."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.errors import QuantkitError
from quantkit.report.record import versions
from quantkit.tables.formats import Loaded, read_limited, read_table
from quantkit.tables.scan import Finding, Scanned, bits_of, scan
from quantkit.tables.validate import ModelFacts, validate

if TYPE_CHECKING:
    import onnx

    from quantkit.network.qdq_reader import WeightScale

ONNX = "onnx"
"""The format that can only be read: a model with Q/DQ nodes."""


def is_model(path: Path, kind: str | None = None) -> bool:
    """Whether a file is to be read as an ONNX model."""
    return kind == ONNX or (kind is None and path.suffix == ".onnx")


def load_any(path: Path, kind: str | None = None) -> Loaded:
    """A table of any format, or the activations' scales of a Q/DQ model.

    Raises:
        TableError: no table; see `read_table`.
        ModelError: no model, or one without Q/DQ nodes.
    """
    if not is_model(path, kind):
        return read_table(path, kind)
    from quantkit.network.qdq_reader import read_qdq

    table, notes = read_qdq(path).table()
    return Loaded(table, ONNX, tuple(notes))


def weight_rows(path: Path) -> list[dict[str, Any]]:
    """The weights' scales of a Q/DQ model, as JSON values.

    Raises:
        ModelError: no model, or one without Q/DQ nodes.
    """
    from quantkit.network.qdq_reader import read_qdq

    return [_weight_row(weight) for weight in read_qdq(path).weights]


def activation_rows(path: Path) -> list[dict[str, Any]]:
    """The activations' grids of a Q/DQ model, as JSON values; errors as `weight_rows`."""
    from quantkit.network.qdq_reader import read_qdq

    return [
        {"tensor": found.tensor, "scale": float(found.scale), "zero_point": found.zero_point, "dtype": found.dtype}
        for found in read_qdq(path).activations
    ]


def _weight_row(weight: WeightScale) -> dict[str, Any]:
    """One weight."""
    return {
        "tensor": weight.tensor,
        "dtype": weight.dtype,
        "axis": weight.axis,
        "scales": [float(scale) for scale in weight.scales],
        "zero_points": [int(point) for point in weight.zero_points],
    }


def validate_file(path: Path, model: Path | None = None, kind: str | None = None) -> tuple[int, list[Finding]]:
    """Number of tensors in a table file, and everything noticed about it, errors first.

    Args:
        path: the table, damaged perhaps, or a Q/DQ model.
        model: the model it should fit: an .onnx file, or a folder in Hugging Face layout.
        kind: format of the table; None looks.

    Raises:
        StorageError: a file cannot be read.
        ModelError: the model cannot be read.
    """
    if is_model(path, kind):
        loaded = load_any(path, kind)
        scanned = Scanned(bits_of(loaded.table), loaded, ())
    else:
        scanned = scan(read_limited(path), str(path), kind)
    facts = model_facts(model) if model is not None else None
    return len(scanned.bits), validate(scanned, facts, versions())


def model_facts(path: Path) -> ModelFacts:
    """Names, needed tensors and hash of a model.

    Raises:
        ModelError: it cannot be read at all.
    """
    from quantkit.network.model import load_model
    from quantkit.network.onnx_import import read_model

    if not path.is_file():
        network = load_model(path)
        return ModelFacts(str(path), tensor_names(network.proto), _needed(network.proto), network.sha256)
    raw = read_model(path)
    try:
        network = load_model(path)
    except QuantkitError:
        return ModelFacts(str(path), tensor_names(raw), _needed(_plain(path, raw)))
    # A table may carry the file's own names, or those that quantkit gives inputs and output.
    return ModelFacts(
        str(path), tensor_names(raw) | tensor_names(network.proto), _needed(network.proto), network.sha256
    )


def _plain(path: Path, raw: onnx.ModelProto) -> onnx.ModelProto:
    """The model as `migrate` reads it; as it is, where it cannot be quantized."""
    from quantkit.network.onnx_import import read_plain

    try:
        return read_plain(path)[0]
    except QuantkitError:
        return raw


def tensor_names(model: onnx.ModelProto) -> frozenset[str]:
    """Every tensor of a graph: inputs, constants, and what nodes compute."""
    graph = model.graph
    computed = {name for node in graph.node for name in node.output if name}
    return frozenset(computed | {info.name for info in graph.input} | {tensor.name for tensor in graph.initializer})


def _needed(model: onnx.ModelProto) -> tuple[tuple[str, ...], ...]:
    """Tensors whose scale the placement asks for, the encoder's or the general one, each with its aliases."""
    from quantkit.network.general import requirements_everywhere
    from quantkit.network.index import GraphIndex
    from quantkit.network.placement import requirements
    from quantkit.network.precision import PrecisionPlan

    index = GraphIndex(model.graph)
    try:
        asked = requirements(index, PrecisionPlan())
    except QuantkitError:
        asked = requirements_everywhere(index)
    return tuple((name, index.aliases[name]) if name in index.aliases else (name,) for name in asked)

"""From TensorRT's calibrators to TensorRT 11, which takes only Q/DQ models: a calibration cache put into the graph."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.backends import get_backend
from quantkit.errors import InputError, ModelError, QuantkitError, TableError
from quantkit.files import write_bytes
from quantkit.pipeline.toolbox import load_any, tensor_names
from quantkit.tables.table import CalibrationTable
from quantkit.tables.validate import UNNAMED

if TYPE_CHECKING:
    import onnx

    from quantkit.network.index import GraphIndex
    from quantkit.network.qdq import QdqResult

GENERAL = "general"
UNNAMED_SOFTMAX = re.compile(r"\(Unnamed Layer\* ([0-9]{1,9})\) \[Softmax\]_output$")
CHECKED_WITH = ("onnxruntime", "openvino")


@dataclass(frozen=True)
class Migration:
    """What became of a table's entries and of a model's products.

    Attributes:
        file: the model that was written.
        placement: the mode of the encoder's placement, or "general".
        quantized: names of the products that compute in INT8.
        carried: tensor -> name of the entry its scale is from (its own, or that of the tensor it reorders).
        unnamed: entries with names that TensorRT gave to layers without one.
        unknown: other entries that name no tensor of the model.
        constants: entries of constants, and of tensors that were folded into them; weights are quantized per channel
            from their values.
        zero: entries whose scale is zero, or too small to divide by.
        infinite: entries whose scale is infinite.
        unused: entry of an activation that got no pair -> why.
        missing: tensors that products read, and that the table has no scale for.
        left_float: product or tensor that stays FP32 -> why.
        checks: runtime -> "" when the model loads in it, else why not.
        notes: further remarks, a sentence each.
    """

    file: str
    placement: str
    quantized: tuple[str, ...]
    carried: dict[str, str]
    unnamed: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    constants: tuple[str, ...] = ()
    zero: tuple[str, ...] = ()
    infinite: tuple[str, ...] = ()
    unused: dict[str, str] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    left_float: dict[str, str] = field(default_factory=dict)
    checks: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}


def migrate(
    cache: Path,
    model: Path,
    out: Path,
    *,
    placement: str = "",
    skip: frozenset[str] = frozenset(),
    float_weights: bool = False,
    check: bool = True,
    force: bool = False,
) -> Migration:
    """Writes a model with Q/DQ pairs whose scales are those of a calibration cache, bit for bit.

    Args:
        cache: a table of any format; TensorRT's cache, usually.
        model: the float32 model that was calibrated: an .onnx file, or a folder in Hugging Face layout.
        out: the .onnx file to write.
        placement: a mode of `PrecisionPlan`, or "general"; empty takes "gemm" where encoder layers are recognised, and
            "general" where not.
        skip: names or patterns of what stays FP32; see `PrecisionPlan`.
        float_weights: write weights as float constants behind QuantizeLinear, as TensorRT 8.6 wants them, instead of as
            int8 constants.
        check: load the result in onnxruntime and OpenVINO, where they are installed.
        force: use a table whose provenance names another model.

    Raises:
        TableError: no table, the table of another model, or not one product could be quantized.
        InputError: `out` is the model itself.
        ModelError: the model cannot be quantized; see `read_plain` and `insert_qdq`.
    """
    from quantkit.network.float_weights import with_float_weights
    from quantkit.network.general import place_everywhere
    from quantkit.network.index import GraphIndex
    from quantkit.network.precision import PrecisionPlan
    from quantkit.network.qdq import insert_qdq
    from quantkit.network.qdq_reader import verify_scales

    if out.exists() and model.exists() and out.samefile(model):
        raise InputError(f"{out} is the model itself.", "Write to another file with --out.")
    loaded = load_any(cache)
    proto, notes, names = _read(model)
    if not force:
        _check_origin(loaded.table, model)
    index = GraphIndex(proto.graph)
    softmax = _softmax_entries(index, loaded.table)
    table = _with_copies(loaded.table, softmax)
    chosen = placement or _placement_for(proto)
    if chosen == GENERAL:
        result = insert_qdq(proto, table, PrecisionPlan(skip=skip, int8_only=True), rule=place_everywhere)
    else:
        # A factor moved to the query would change its scale, and a migrated model has the cache's scales bit for bit.
        result = insert_qdq(proto, table, PrecisionPlan(chosen, skip, int8_only=True), early_factor=False)
    if not result.quantized:
        why = next(iter(result.skipped.items()), ("nothing", "the placement covers nothing"))
        raise TableError(
            f"No product of the model could be quantized: {why[0]}: {why[1]}.", "Is it this model's table?"
        )
    quantized = with_float_weights(result.proto) if float_weights else result.proto
    verify_scales(quantized, {tensor: grid.scale for tensor, grid in result.grids.items()})
    write_bytes(out, quantized.SerializeToString())
    sources = {tensor: _entry_name(index, tensor, table) for tensor in result.grids}
    fixed = [t for t, name in sources.items() if name not in table or table[name].scale != result.grids[t].scale]
    if fixed:
        notes.append(f"{len(fixed)} tensors have a fixed range, whatever the table says: probabilities, [0, 1].")
    carried = {tensor: softmax.get(name, name) for tensor, name in sources.items() if tensor not in fixed}
    return Migration(
        str(out),
        chosen,
        tuple(result.quantized),
        carried,
        checks=_load_everywhere(quantized) if check else {},
        infinite=loaded.infinite,
        notes=(*(note for note in loaded.notes if not loaded.infinite), *notes),
        **_left_behind(index, loaded.table, result, carried, softmax, names),
    )


def _read(model: Path) -> tuple[onnx.ModelProto, list[str], frozenset[str]]:
    """The float32 graph, notes on it, and the names of all tensors that the file has."""
    from quantkit.network.model import load_model
    from quantkit.network.onnx_import import read_model, read_plain

    if model.is_dir():
        network = load_model(model)
        return network.proto, list(network.notes), tensor_names(network.proto)
    names = tensor_names(read_model(model))
    return *read_plain(model), names


def _placement_for(proto: onnx.ModelProto) -> str:
    """The placement that fits a graph: the encoder's where its layers are recognised."""
    from quantkit.network.index import GraphIndex
    from quantkit.network.structure import find_encoder

    encoder = find_encoder(GraphIndex(proto.graph))
    return "gemm" if encoder.num_layers and encoder.sites else GENERAL


def _check_origin(table: CalibrationTable, model: Path) -> None:
    """Refuses a table whose provenance names another model, where the model's hash can be told."""
    from quantkit.network.model import load_model

    if table.provenance is None:
        return
    try:
        found = load_model(model).sha256
    except ModelError:
        return
    if found != table.provenance.model_sha256:
        raise TableError(
            f"The table is of the model {table.provenance.model_sha256[:12]}..., and {model} is {found[:12]}...",
            "Calibrate this model, or use the table all the same with --force.",
        )


def _softmax_entries(index: GraphIndex, table: CalibrationTable) -> dict[str, str]:
    """Result of a Softmax -> the entry of the layer that TensorRT's parser made of it, which has no name of its own.

    The parser puts reshapes around a Softmax, and the name of its result goes to the last of them. Layers are numbered
    in graph order, so the entries belong to the Softmax nodes in turn; where the numbers differ none is taken.
    """
    entries = {int(match[1]): name for name in table.names if (match := UNNAMED_SOFTMAX.match(name))}
    results = [node.output[0] for node in index.graph.node if node.op_type == "Softmax"]
    if len(entries) != len(results) or any(name in table for name in results):
        return {}
    return dict(zip(results, (entries[number] for number in sorted(entries)), strict=True))


def _with_copies(table: CalibrationTable, copies: Mapping[str, str]) -> CalibrationTable:
    """The table with further entries: new name -> name of the entry that is copied."""
    added = {new: table[old] for new, old in copies.items()}
    return CalibrationTable({**table.entries, **added}, table.algorithm, table.parameters, table.provenance)


def _entry_name(index: GraphIndex, tensor: str, table: CalibrationTable) -> str:
    """The entry that gave a tensor its scale; the tensor itself where the range is a fixed one."""
    return tensor if tensor in table else index.aliases.get(tensor, tensor)


def _left_behind(
    index: GraphIndex,
    table: CalibrationTable,
    result: QdqResult,
    carried: Mapping[str, str],
    softmax: Mapping[str, str],
    names: frozenset[str],
) -> dict[str, Any]:
    """The entries that no pair came of, sorted by reason, and the products without scale."""
    from quantkit.network.placement import NO_ENTRY

    places = {name: name for name in (*index.producer, *(info.name for info in index.inputs))}
    places |= {entry: tensor for tensor, entry in softmax.items()}
    used = set(carried.values())
    rest = [name for name in table.names if name not in used]
    zero = [name for name in rest if not _usable(table, name)]
    known = {name: places[name] for name in rest if name in places and name not in zero}
    constants = [name for name in rest if name in names and name not in zero and name not in known]
    unknown = [name for name in rest if not (name in zero or name in known or name in constants)]
    return {
        "unnamed": tuple(name for name in unknown if UNNAMED.match(name)),
        "unknown": tuple(name for name in unknown if not UNNAMED.match(name)),
        "constants": tuple(constants),
        "zero": tuple(zero),
        "unused": {
            name: "its pair has a fixed range" if tensor in result.grids else _why(index, tensor)
            for name, tensor in known.items()
        },
        "missing": tuple(name for name, why in result.skipped.items() if why == NO_ENTRY),
        "left_float": {name: why for name, why in result.skipped.items() if why != NO_ENTRY},
    }


def _usable(table: CalibrationTable, name: str) -> bool:
    """Whether an entry's scale can be divided by."""
    from quantkit.network.precision import Grid

    return Grid(table[name].scale).usable


def _why(index: GraphIndex, tensor: str) -> str:
    """Why an activation got no pair: what reads it."""
    kinds = Counter(node.op_type for node in index.consumers.get(tensor, ()))
    if not kinds:
        return "nothing reads it"
    return "read by " + ", ".join(f"{count} {kind}" if count > 1 else kind for kind, count in kinds.items())


def _load_everywhere(proto: onnx.ModelProto) -> dict[str, str]:
    """Runtime -> "" or why it does not take the model; runtimes that are not installed are left out."""
    found = {}
    for name in CHECKED_WITH:
        backend = get_backend(name)
        if backend.available():
            continue
        try:
            backend.compile(proto, "int8").close()
            found[name] = ""
        except QuantkitError as error:
            found[name] = error.message
    return found

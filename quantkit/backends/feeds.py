"""What goes into and comes out of an engine: specs read from a graph, and the check of a feed against them.

Nothing here imports onnx: a ModelProto is only read through its fields, so that the fake backend stays light.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from quantkit.errors import BackendError
from quantkit.types import Array, FeedDict, TensorSpec

TOKENS = "input_ids"
SEGMENTS = "token_type_ids"
"""The one input that may be left out (zeros then: a single segment) or be given to a graph that has none."""

Symbols = Mapping[str, tuple[str | None, ...]]
"""Input name -> for each dimension the symbol that the graph gives it ("batch"), or None where it is a number."""

# onnx.TensorProto.DataType -> NumPy type, for what BERT-class graphs take and give; NumPy has no bfloat16.
_ELEMENT_TYPES: dict[int, type[np.generic]] = {
    1: np.float32,
    2: np.uint8,
    3: np.int8,
    6: np.int32,
    7: np.int64,
    9: np.bool_,
    10: np.float16,
    11: np.float64,
}
FLOAT = 1
"""onnx.TensorProto.FLOAT."""


def element_type(code: int) -> np.dtype[Any] | None:
    """NumPy type of an ONNX element type code, None when NumPy has none."""
    return np.dtype(_ELEMENT_TYPES[code]) if code in _ELEMENT_TYPES else None


def graph_inputs(proto: Any) -> list[Any]:
    """The ValueInfoProtos that must be fed: graph inputs that no initializer gives a value."""
    given = {tensor.name for tensor in proto.graph.initializer}
    return [value for value in proto.graph.input if value.name not in given]


def spec_of(value: Any) -> TensorSpec:
    """TensorSpec of a ValueInfoProto; dimensions without a number become -1.

    Raises:
        BackendError: the element type has no NumPy counterpart.
    """
    tensor = value.type.tensor_type
    dtype = element_type(tensor.elem_type)
    if dtype is None:
        raise BackendError(f"The tensor {value.name!r} has ONNX element type {tensor.elem_type}, which cannot be fed.")
    shape = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in tensor.shape.dim)
    return TensorSpec(value.name, dtype, shape)


def specs_of(values: Iterable[Any]) -> tuple[TensorSpec, ...]:
    """TensorSpecs of ValueInfoProtos, in order."""
    return tuple(spec_of(value) for value in values)


def symbols_of(values: Iterable[Any]) -> dict[str, tuple[str | None, ...]]:
    """The symbols (dim_param) of each value's dimensions: equal symbols must be fed with equal sizes."""
    return {value.name: tuple(d.dim_param or None for d in value.type.tensor_type.shape.dim) for value in values}


def rows_of(proto: Any) -> dict[str, int]:
    """For each input whose values a Gather looks up in a constant table: how many rows the table has."""
    inputs = {value.name for value in graph_inputs(proto)}
    tables = {t.name: t.dims[0] for t in proto.graph.initializer if len(t.dims) > 1}
    origin = {name: name for name in inputs}
    rows: dict[str, int] = {}
    for node in proto.graph.node:
        if node.op_type == "Cast" and node.input[0] in origin:
            origin[node.output[0]] = origin[node.input[0]]
        axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
        if node.op_type == "Gather" and axis == 0 and node.input[0] in tables and node.input[1] in origin:
            name = origin[node.input[1]]
            rows[name] = min(tables[node.input[0]], rows.get(name, tables[node.input[0]]))
    return rows


def checked_feed(
    feed: FeedDict, specs: Sequence[TensorSpec], symbols: Symbols, rows: Mapping[str, int] | None = None
) -> dict[str, Array]:
    """The feed as contiguous arrays of exactly the wanted types, one for each spec and in their order.

    int32 and int64 are cast into each other. `token_type_ids` may be missing (zeros are fed, as transformers does) and
    is ignored by a graph that has no such input. Arrays that fit already are passed through, not copied.

    Args:
        feed: what came.
        specs: name, type and shape of every input that must be fed.
        symbols: see `symbols_of`.
        rows: see `rows_of`; inputs that are not in it may hold any value.

    Raises:
        BackendError: a name, a type, a rank, a size or a value does not fit; the sentence says what came and what was
            expected.
    """
    wanted = {spec.name for spec in specs}
    missing = [spec.name for spec in specs if spec.name not in feed and spec.name != SEGMENTS]
    surplus = [name for name in feed if name not in wanted and name != SEGMENTS]
    if missing or surplus:
        faults = [
            f"{word} {', '.join(map(repr, names))}"
            for word, names in (("without", missing), ("with", surplus))
            if names
        ]
        expected = ", ".join(map(repr, sorted(wanted)))
        raise BackendError(f"The engine was fed {' and '.join(faults)}; expected the inputs {expected}.")
    arrays = {spec.name: _checked_array(spec, feed[spec.name]) for spec in specs if spec.name in feed}
    if SEGMENTS in wanted and SEGMENTS not in arrays:
        arrays[SEGMENTS] = _single_segment(specs, arrays)
    _check_symbols(arrays, symbols)
    for name, count in (rows or {}).items():
        _check_rows(name, arrays[name], count)
    return {spec.name: arrays[spec.name] for spec in specs}


def _checked_array(spec: TensorSpec, array: Any) -> Array:
    """`array` in the spec's type, contiguous; BackendError when type or shape do not fit."""
    if not isinstance(array, np.ndarray):
        kind = type(array).__name__
        raise BackendError(f"The input {spec.name!r} is a {kind}; expected a NumPy array of {spec.dtype}.")
    fits = len(array.shape) == len(spec.shape) and all(
        want in (-1, got) for want, got in zip(spec.shape, array.shape, strict=True)
    )
    if not fits:
        raise BackendError(
            f"The input {spec.name!r} has shape {shape_text(array.shape)}; expected {shape_text(spec.shape)}.",
            "Compile the graph for this shape, or with dynamic shapes." if -1 not in spec.shape else "",
        )
    if array.size == 0:
        raise BackendError(f"The input {spec.name!r} is empty (shape {shape_text(array.shape)}).")
    return np.asarray(_cast(spec, array), order="C")


def _cast(spec: TensorSpec, array: Array) -> Array:
    """`array` in the spec's type: itself, or an int32/int64 cast that changes no value."""
    integers = (np.dtype(np.int32), np.dtype(np.int64))
    if array.dtype == spec.dtype:
        return array
    if array.dtype not in integers or spec.dtype not in integers:
        raise BackendError(f"The input {spec.name!r} has type {array.dtype}; expected {spec.dtype}.")
    if spec.dtype == np.int32:
        limits = np.iinfo(np.int32)
        if array.min() < limits.min or array.max() > limits.max:
            raise BackendError(f"The input {spec.name!r} holds values beyond int32, which is what the graph takes.")
    return array.astype(spec.dtype)


def _single_segment(specs: Sequence[TensorSpec], arrays: Mapping[str, Array]) -> Array:
    """Zeros for a `token_type_ids` that was not fed, in the shape of the first input of the same rank."""
    spec = next(s for s in specs if s.name == SEGMENTS)
    like = next((a for a in arrays.values() if a.ndim == len(spec.shape)), None)
    if like is None:
        raise BackendError(f"The engine was fed without {SEGMENTS!r}, and no other input tells its shape.")
    return _checked_array(spec, np.zeros(like.shape, spec.dtype))


def _check_symbols(arrays: Mapping[str, Array], symbols: Symbols) -> None:
    """BackendError when two dimensions of one symbol have different sizes (engines would broadcast, or crash)."""
    seen: dict[str, tuple[int, str]] = {}
    for name, array in arrays.items():
        for symbol, size in zip(symbols.get(name, ()), array.shape, strict=False):
            if symbol is None:
                continue
            first, where = seen.setdefault(symbol, (size, name))
            if size != first:
                raise BackendError(
                    f"The input {name!r} has {size} for the dimension {symbol!r}; expected {first}, as {where!r} has."
                )


def _check_rows(name: str, array: Array, rows: int) -> None:
    """BackendError when a value stands for no row of its table: engines crash, or go on with zeros."""
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= rows:
        raise BackendError(
            f"The input {name!r} holds {low if low < 0 else high}; the graph's table has the rows 0 to {rows - 1}.",
            "Use the tokenizer that belongs to this model." if name == TOKENS else "",
        )


def shape_text(shape: Sequence[int]) -> str:
    """A shape as people read it: (16, any)."""
    sizes = ", ".join("any" if size == -1 else str(size) for size in shape)
    return f"({sizes},)" if len(shape) == 1 else f"({sizes})"

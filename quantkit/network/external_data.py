"""Constants that an ONNX model keeps in files beside it, read with a suspicious eye.

A model file comes from anywhere, so the places it names are checked: a plain relative path inside the model's own
folder, links that lead out refused, and offset and length within the file and equal to what the tensor needs.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from quantkit.errors import ModelError

MAX_BYTES = (1 << 31) - 1
"""A protobuf message cannot be larger, so neither can a model that the runtimes are handed."""


def read_external_data(model: onnx.ModelProto, folder: Path) -> None:
    """Puts all external constants into the model, in place.

    Raises:
        ModelError: a path leads out of `folder`, a file is missing or too short, or the model becomes too large.
    """
    total = model.ByteSize()
    for tensor in _tensors(model.graph):
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        file, offset, length = _place(tensor, folder)
        total += length
        if total > MAX_BYTES:
            raise ModelError(
                f"The model's constants are larger than {MAX_BYTES} bytes together.", "Give a smaller model."
            )
        try:
            with file.open("rb") as stream:
                stream.seek(offset)
                data = stream.read(length)
        except OSError as error:
            raise ModelError(f"{file} cannot be read: {error.strerror or error}.") from error
        if len(data) != length:
            raise ModelError(
                f"{file} ends before the constant {tensor.name}, which needs {length} bytes from {offset}.",
                "The file is cut off: fetch it again.",
            )
        tensor.raw_data = data
        tensor.data_location = TensorProto.DEFAULT
        del tensor.external_data[:]


def check_texts(model: onnx.ModelProto, source: str) -> None:
    """Refuses names that are not UTF-8, those of external files included.

    Raises:
        ModelError: there is one.
    """
    try:
        for text in (*(opset.domain for opset in model.opset_import), *_texts(model.graph)):
            # protobuf gives a name that is not UTF-8 as bytes, or fails to, by version.
            if not isinstance(text, str):
                raise ModelError(f"{source} holds the name {text!r}, which is not UTF-8.", "Export it again.")
    except UnicodeDecodeError as error:
        raise ModelError(f"{source} holds a name that is not UTF-8 ({error}).", "Export it again.") from error


def check_types(model: onnx.ModelProto, source: str) -> None:
    """Refuses constants, inputs and outputs of element types that ONNX does not have, and impossible shapes.

    Also constants whose content does not fill their shape. onnx.checker lets them pass.

    Raises:
        ModelError: there is one.
    """
    for tensor in _tensors(model.graph):
        _check_content(tensor)
    graph = model.graph
    for info in (*graph.input, *graph.output, *graph.value_info):
        if info.type.tensor_type.elem_type not in TensorProto.DataType.values():
            raise ModelError(f"{source} gives {info.name} the unknown element type {info.type.tensor_type.elem_type}.")


def _texts(graph: onnx.GraphProto) -> Iterator[object]:
    """Every name of a graph that is used later."""
    yield graph.name
    for node in graph.node:
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
        for attr in node.attribute:
            yield attr.name
            for sub in [attr.g] if attr.type == AttributeProto.GRAPH else attr.graphs:
                yield from _texts(sub)
    for info in (*graph.input, *graph.output, *graph.value_info):
        yield from (info.name, *(dim.dim_param for dim in info.type.tensor_type.shape.dim))
    for tensor in _tensors(graph):
        yield tensor.name
        for entry in tensor.external_data:
            yield from (entry.key, entry.value)


def _place(tensor: onnx.TensorProto, folder: Path) -> tuple[Path, int, int]:
    """File, offset and length in bytes of an external constant, checked."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    file = _inside(folder, entries.get("location", ""), tensor.name)
    needed = _bytes(tensor)
    try:
        offset, length = int(entries.get("offset") or 0), int(entries.get("length") or needed)
    except ValueError as error:
        raise ModelError(f"The place of the constant {tensor.name} is not given in numbers: {error}.") from error
    if offset < 0 or length != needed:
        raise ModelError(
            f"The constant {tensor.name} needs {needed} bytes; the model says {length} at offset {offset}.",
            "The file is damaged: export it again.",
        )
    return file, offset, length


def _inside(folder: Path, location: str, tensor: str) -> Path:
    """The file a location names, if it is an ordinary one inside the folder."""
    parts = PurePosixPath(location.replace("\\", "/"))
    windows = PureWindowsPath(location)
    if not location or parts.is_absolute() or windows.is_absolute() or windows.drive or ".." in parts.parts:
        raise ModelError(
            f"The constant {tensor} is kept in {location!r}, which is no path inside the model's folder.",
            "Only files beside the model are read.",
        )
    file = folder / parts
    try:
        inside, there = file.resolve().is_relative_to(folder.resolve()), file.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # a null byte, a name too long, links in a circle
        raise ModelError(
            f"The constant {tensor} is kept in {location[:200]!r}, which cannot be a file: {error}."
        ) from error
    if not inside:
        raise ModelError(
            f"The constant {tensor} is kept in {location!r}, a link that leads out of the model's folder.",
            "Put the file itself beside the model.",
        )
    if not there:
        raise ModelError(
            f"The constant {tensor} is kept in {location!r}, which is not beside the model.", "Fetch it too."
        )
    return file


def _check_content(tensor: onnx.TensorProto) -> None:
    """A constant holds as many elements as its shape says."""
    needed, held = _bytes(tensor), tensor.raw_data
    try:
        if len(held) != needed or not needed:  # packed types are smaller; lists of numbers stand in other fields
            numpy_helper.to_array(tensor)
    except (ValueError, TypeError) as error:
        shape = tuple(tensor.dims)
        raise ModelError(
            f"The constant {tensor.name} does not hold what its shape {shape} needs: {error}.", "Export it again."
        ) from error


def _bytes(tensor: onnx.TensorProto) -> int:
    """Size of a tensor of a type whose elements are whole bytes."""
    if any(d < 0 for d in tensor.dims):
        raise ModelError(f"The constant {tensor.name} has the impossible shape {tuple(tensor.dims)}.")
    try:
        itemsize = int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    except (KeyError, TypeError) as error:
        raise ModelError(f"The constant {tensor.name} has the unknown element type {tensor.data_type}.") from error
    return int(prod(tensor.dims)) * itemsize


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every constant of a graph, those in attributes and subgraphs included."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attr in node.attribute:
            if attr.type == AttributeProto.TENSOR:
                yield attr.t
            yield from attr.tensors
            for sub in [attr.g] if attr.type == AttributeProto.GRAPH else attr.graphs:
                yield from _tensors(sub)

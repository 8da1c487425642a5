"""A backend that computes nothing: pure NumPy, deterministic, for tests and for trying things without an engine.

    from quantkit.backends import get_backend
    engine = get_backend("fake").compile(proto, "fp32")

By default it hashes the tokens of each row into logits, so that the same sentence always gets the same answer, padding
or the rest of the batch notwithstanding. A Python function can be given instead.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from quantkit.backends.base import Backend, CheckedRunner, Engine, EngineInfo, Precision
from quantkit.backends.cpu import cpu_name, physical_cores
from quantkit.backends.feeds import FLOAT, graph_inputs, rows_of, specs_of, symbols_of
from quantkit.errors import BackendError
from quantkit.types import Array, FeedDict, TensorSpec

if TYPE_CHECKING:
    from onnx import ModelProto

Function = Callable[[FeedDict], Mapping[str, Array]]

_COMPUTE: dict[str, str] = {"fp32": "f32", "fp16": "f16", "int8": "int8+f32"}
_STEP: dict[str, float] = {"fp32": 0.0, "fp16": 2.0**-8, "int8": 2.0**-4}
_WIDTH = 4
"""Last dimension of a tapped tensor whose shape the graph does not tell."""


@dataclass(frozen=True)
class FakeBackend(Backend):
    """Engines without a network behind them.

    Args:
        function: feed -> outputs, called for every batch in place of the hash; what it returns is checked against the
            graph's outputs.
        latency_s: seconds that each `infer` takes at least.
        refused: precisions that this backend cannot do, with the reason; for trying how failures are shown.
    """

    name = "fake"

    function: Function | None = None
    latency_s: float = 0.0
    refused: tuple[tuple[Precision, str], ...] = ()

    def available(self) -> str | None:
        """Always None: there is nothing to install."""
        return None

    def unsupported(self, precision: Precision) -> str | None:
        """The reason given in `refused`."""
        return dict(self.refused).get(precision)

    def describe(self) -> dict[str, Any]:
        """Facts in the shape that every backend gives."""
        return {
            "version": np.__version__,
            "device": cpu_name(),
            "capabilities": sorted(_COMPUTE.values()),
            "threads": physical_cores(),
        }

    def _compile(self, proto: ModelProto, precision: Precision, threads: int) -> Engine:
        quantized = [node for node in proto.graph.node if node.op_type == "DequantizeLinear"]
        info = EngineInfo(
            precision=precision,
            compute=_COMPUTE[precision],
            size_bytes=len(proto.SerializeToString()),
            int8_ops=len(quantized) if precision == "int8" else 0,
            float_ops=sum(node.op_type in ("MatMul", "Gemm") for node in proto.graph.node),
            notes=("Nothing is computed: the fake backend hashes its inputs.",),
        )
        return FakeEngine(info, proto, self)

    def _tap(self, proto: ModelProto, names: tuple[str, ...], threads: int) -> CheckedRunner:
        known = {value.name: value for value in (*proto.graph.value_info, *proto.graph.output)}
        for name in names:
            if name in known and known[name].type.tensor_type.elem_type not in (0, FLOAT):
                raise BackendError(f"The tensor {name!r} is not float32 and cannot be tapped.")
        dims = {n: _dimensions(known[n]) if n in known else ("batch", "sequence", _WIDTH) for n in names}
        return FakeTap(proto, dims)


class FakeEngine(Engine):
    """An engine that hashes tokens, or calls a function."""

    def __init__(self, info: EngineInfo, proto: ModelProto, backend: FakeBackend) -> None:
        inputs = graph_inputs(proto)
        outputs = specs_of(proto.graph.output)
        super().__init__("fake", info, specs_of(inputs), outputs, symbols_of(inputs), rows_of(proto))
        self._function = backend.function
        self._latency_s = backend.latency_s

    def _run(self, feed: dict[str, Array]) -> dict[str, Array]:
        if self._latency_s:
            time.sleep(self._latency_s)
        given = self._function(feed) if self._function else None
        results = {}
        for spec in self._outputs:
            if given is None:
                array = hashed_logits(feed, spec.shape[-1] if spec.shape and spec.shape[-1] > 0 else _WIDTH, spec.name)
                array = _rounded(array, _STEP[self.precision]).reshape(_bound(spec.shape, array))
            elif spec.name in given:
                array = np.array(given[spec.name], np.float32)
            else:
                raise BackendError(f"The fake backend's function returned no {spec.name!r}; it returned {list(given)}.")
            results[spec.name] = array
        return results

    def _release(self) -> None:
        self._function = None


class FakeTap(CheckedRunner):
    """A tap whose tensors are pseudo-random numbers that depend on the tensor's name and on the tokens."""

    def __init__(self, proto: ModelProto, dimensions: Mapping[str, tuple[int | str, ...]]) -> None:
        shapes = {name: tuple(d if isinstance(d, int) else -1 for d in dims) for name, dims in dimensions.items()}
        outputs = [TensorSpec(name, np.dtype(np.float32), shape) for name, shape in shapes.items()]
        inputs = graph_inputs(proto)
        super().__init__("fake", specs_of(inputs), outputs, symbols_of(inputs), rows_of(proto))
        self._dimensions = dict(dimensions)

    def _run(self, feed: dict[str, Array]) -> dict[str, Array]:
        first = next(iter(feed.values()))
        sizes = dict(zip(("batch", "sequence"), first.shape, strict=False))
        for name, symbols in self._symbols.items():
            sizes |= {s: n for s, n in zip(symbols, feed[name].shape, strict=True) if s is not None}
        seed = zlib.crc32(b"".join(array.tobytes() for array in feed.values()))
        results = {}
        for name, dims in self._dimensions.items():
            shape = tuple(d if isinstance(d, int) else sizes.get(d, 1) for d in dims)
            draw = np.random.default_rng((seed, zlib.crc32(name.encode())))
            results[name] = draw.standard_normal(shape, np.float32)
        return results

    def _release(self) -> None:
        self._dimensions = {}


def hashed_logits(feed: FeedDict, labels: int, salt: str = "") -> Array:
    """float32 (batch, labels) in [-1, 1): each row's CRC-32 of its tokens, segments and the label's number.

    Positions that `attention_mask` hides do not count, so padding changes nothing.
    """
    first = next(iter(feed.values()))
    mask = np.asarray(feed.get("attention_mask", np.ones(first.shape[:2])))
    rows = []
    for row in range(first.shape[0]):
        seen = mask[row] > 0 if mask.ndim == 2 else slice(None)
        parts = [
            a[row][seen] if a.shape[:2] == mask.shape else a[row] for n, a in feed.items() if n != "attention_mask"
        ]
        key = salt.encode() + b"".join(np.ascontiguousarray(part).astype("<f8").tobytes() for part in parts)
        rows.append([zlib.crc32(b"%d" % label, zlib.crc32(key)) / 2**31 - 1 for label in range(labels)])
    return np.array(rows, np.float32)


def _rounded(array: Array, step: float) -> Array:
    """`array` rounded to multiples of `step`, as a coarser number format would do it; unchanged for step 0."""
    return (np.rint(array / np.float32(step)) * np.float32(step)).astype(np.float32) if step else array


def _bound(shape: tuple[int, ...], array: Array) -> tuple[int, ...]:
    """The shape that `array` takes as an output of `shape`; its own when the sizes do not agree."""
    sizes = tuple(array.shape[0] if i == 0 else 1 if size == -1 else size for i, size in enumerate(shape))
    return sizes if int(np.prod(sizes)) == array.size else array.shape


def _dimensions(value: Any) -> tuple[int | str, ...]:
    """A ValueInfoProto's dimensions: numbers, or symbols; an unnamed unknown one is the symbol ""."""
    return tuple(d.dim_value if d.HasField("dim_value") else d.dim_param for d in value.type.tensor_type.shape.dim)

"""What every backend has in common: runners that check what they are fed, engines that say what they compute.

CheckedRunner     inputs, outputs, infer (checks, one call at a time), close; a context manager
├── Engine        + what was asked (precision) and what is computed (compute, int8_ops, float_ops)
└── a tap         + named intermediate tensors of the FP32 graph, for calibration
Backend           compiles graphs into engines and taps
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, get_args

from quantkit.backends.cpu import physical_cores
from quantkit.backends.feeds import Symbols, checked_feed
from quantkit.errors import BackendError, InputError, MissingDependencyError, UnknownNameError
from quantkit.types import Array, FeedDict, TensorSpec

if TYPE_CHECKING:
    from onnx import ModelProto

    from quantkit.tables.table import CalibrationTable

ModelFiles = Callable[[], tuple[Path, Path | None]]
"""Gives the model's folder or file, and the adapter's folder, when asked."""

Precision = Literal["fp32", "fp16", "int8", "tf32", "int8+fp16", "int8+fp32"]
ALL_PRECISIONS: tuple[Precision, ...] = get_args(Precision)
PRECISIONS: tuple[Precision, ...] = ALL_PRECISIONS[:3]
"""Those that every backend is asked for; the others are TensorRT's."""

Self = TypeVar("Self", bound="CheckedRunner")


class CheckedRunner(ABC):
    """A Runner that checks its feed, runs one call at a time and may be closed twice.

    `infer` may be called from several threads: calls wait for each other, because one engine already uses all the
    cores that it was given.

    Args:
        backend: the backend's name, for error messages.
        inputs, outputs: what `infer` takes and gives.
        symbols: names of the inputs' dimensions that may change; equal names must be fed with equal sizes.
        rows: inputs that are looked up in a table -> its rows; values beyond are refused.
    """

    def __init__(
        self,
        backend: str,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        symbols: Symbols,
        rows: Mapping[str, int] | None = None,
    ) -> None:
        self.backend = backend
        self._inputs = tuple(inputs)
        self._outputs = tuple(outputs)
        self._symbols = dict(symbols)
        self._rows = dict(rows or {})
        self._lock = threading.Lock()
        self._closed = False

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What `infer` takes."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What `infer` gives."""
        return self._outputs

    @property
    def closed(self) -> bool:
        """Whether the runner has freed what it held."""
        return self._closed

    def infer(self, feed: FeedDict) -> dict[str, Array]:
        """Output name -> array for one batch.

        Raises:
            BackendError: the feed does not fit `inputs`, the runner is closed, or the engine failed.
        """
        with self._lock:
            if self._closed:
                raise BackendError(f"This {self.backend} engine is closed and cannot infer.", "Compile it again.")
            return self._run(checked_feed(feed, self._inputs, self._symbols, self._rows))

    def close(self) -> None:
        """Frees what the runner holds, after a running `infer` has ended; a second call does nothing."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._release()

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @abstractmethod
    def _run(self, feed: dict[str, Array]) -> dict[str, Array]:
        """`infer` for a feed that fits; called by one thread at a time."""

    @abstractmethod
    def _release(self) -> None:
        """Drops every reference to the engine's memory; called once."""


@dataclass(frozen=True)
class EngineInfo:
    """What an engine is, apart from its inputs and outputs.

    Attributes:
        precision: what was asked for.
        compute: what is really computed, as the compiled engine itself says: "f32", "bf16", "f16", "int8", or both
            ("int8+f32") for an INT8 engine that keeps a part in float.
        size_bytes: bytes of the serialized ONNX graph, weights included, that the engine was compiled from: the file
            one would ship. INT8 weights count one byte each; half precision converts at load, so its file is FP32's.
        int8_ops: matrix products (with their weights or of two activations) that run in INT8.
        float_ops: matrix products that run in floating point.
        notes: what the user should know, one sentence each.
        audit: JSON values on what the compiled graph computes: "kernel_counts" (kind and precision -> number) and
            "float_products" (names of the matrix products that run in floating point); empty when not looked at.
    """

    precision: Precision
    compute: str
    size_bytes: int
    int8_ops: int = 0
    float_ops: int = 0
    notes: tuple[str, ...] = ()
    audit: Mapping[str, Any] = field(default_factory=dict)


class Engine(CheckedRunner):
    """A compiled graph. `infer` returns fresh arrays (float outputs as float32) that the caller may keep.

    The attributes `precision`, `compute`, `size_bytes`, `int8_ops`, `float_ops` and `notes` are those of `EngineInfo`.
    """

    def __init__(
        self,
        backend: str,
        info: EngineInfo,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        symbols: Symbols,
        rows: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(backend, inputs, outputs, symbols, rows)
        self.precision = info.precision
        self.compute = info.compute
        self.size_bytes = info.size_bytes
        self.int8_ops = info.int8_ops
        self.float_ops = info.float_ops
        self.notes = info.notes
        self._audit = dict(info.audit)

    @property
    def details(self) -> dict[str, Any]:
        """What a record keeps of an engine besides the common fields: JSON values, {"audit": ...} or nothing."""
        return {"audit": self._audit} if self._audit else {}


class Backend(ABC):
    """Compiles ONNX graphs for one inference library. Backends hold no state: one instance serves everybody."""

    name: ClassVar[str]
    known: ClassVar[tuple[Precision, ...]] = PRECISIONS
    """Precisions that the backend has a meaning for; a machine may still not support one."""
    symmetric_only: ClassVar[bool] = False
    """Whether quantized activations must be int8 around zero."""
    default_placement: ClassVar[str] = "gemm+mha"
    """Mode of the precision plan when none is asked for."""
    free_shapes: ClassVar[bool] = True
    """Whether a graph with free shapes can be compiled as it is."""
    shareable: ClassVar[bool] = True
    """Whether workers in other processes and on other machines may do its work (docs/distributed.md)."""
    packages: ClassVar[tuple[str, ...]] = ()
    """Packages whose version decides the bits of its results."""

    @property
    def places_int8(self) -> bool:
        """Whether INT8 engines are compiled from the float32 graph and a table, not from a graph with Q/DQ pairs."""
        return False

    @property
    def dynamic(self) -> bool:
        """Whether engines are compiled for changing shapes rather than for the run's batch and length."""
        return False

    def configured(self, options: Mapping[str, Any], files: ModelFiles) -> Backend:
        """The backend with options of its own, as the user gave them.

        Args:
            options: name -> value; none for most backends.
            files: where the model lies, for backends that read it themselves.

        Raises:
            InputError: it has no option of that name, or the value cannot be used.
        """
        for name in options:
            raise InputError(f"The {self.name} backend has no option {name!r}.", "Leave it out, or choose tensorrt.")
        return self

    @abstractmethod
    def available(self) -> str | None:
        """None when the backend can be used, else why not and how to install it."""

    @abstractmethod
    def unsupported(self, precision: Precision) -> str | None:
        """None when the backend can be asked for this precision, else one sentence that says why not."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Facts for `quantkit doctor`: "version", "device", "capabilities", "threads"; JSON types only.

        Raises:
            MissingDependencyError: the backend is not available.
        """

    @abstractmethod
    def _compile(self, proto: ModelProto, precision: Precision, threads: int) -> Engine:
        """`compile` for arguments that were checked."""

    def _compile_with_table(self, proto: ModelProto, precision: Precision, table: CalibrationTable) -> Engine:
        """`compile` with a table, for arguments that were checked."""
        raise BackendError(f"The {self.name} backend takes INT8 from Q/DQ pairs in the graph, not from a table.")

    @abstractmethod
    def _tap(self, proto: ModelProto, names: tuple[str, ...], threads: int) -> CheckedRunner:
        """`tap` for arguments that were checked."""

    def precisions(self) -> tuple[Precision, ...]:
        """The precisions that the backend can be asked for."""
        return tuple(p for p in self.known if self.unsupported(p) is None)

    def compile(
        self,
        proto: ModelProto,
        precision: Precision,
        *,
        threads: int | None = None,
        table: CalibrationTable | None = None,
    ) -> Engine:
        """An engine for the graph, which may have fixed or dynamic shapes.

        Args:
            proto: float32 graph; for "int8" with QuantizeLinear/DequantizeLinear pairs where INT8 is wanted.
            precision: "fp32" (computed in float32, really), "fp16" (the half precision that the device computes) or
                "int8" (Q/DQ pairs in INT8, the rest in float32).
            threads: CPU threads; all physical cores that this process may use when None.
            table: scales, for backends that place INT8 themselves (`places_int8`).

        Raises:
            UnknownNameError: no such precision.
            MissingDependencyError: the backend is not installed.
            BackendError: the precision is not supported, or the graph cannot be compiled.
        """
        if precision not in self.known:
            raise UnknownNameError(f"precision of {self.name}", str(precision), self.known)
        self.require()
        if reason := self.unsupported(precision):
            raise BackendError(reason, "Leave this precision out, or choose another backend.")
        if table is not None:
            return self._compile_with_table(proto, precision, table)
        return self._compile(proto, precision, thread_count(threads))

    def tap(self, proto: ModelProto, names: Sequence[str], *, threads: int | None = None) -> CheckedRunner:
        """A runner of the FP32 graph whose outputs are exactly the named float tensors, in this order.

        The arrays that its `infer` returns are float32 views of memory that the next `infer` writes again, wherever
        the backend allows it: use them, or copy them, before that. They must not be used after `close`.

        Raises:
            MissingDependencyError: the backend is not installed.
            BackendError: no names, a name twice, a name that the graph does not compute, a tensor that is not float32.
        """
        self.require()
        wanted = tuple(names)
        if not wanted:
            raise BackendError("There are no tensors to tap: the list of names is empty.")
        if len(set(wanted)) < len(wanted):
            twice = next(name for name in wanted if wanted.count(name) > 1)
            raise BackendError(f"The tensor {twice!r} is to be tapped twice; expected each name once.")
        produced = {name for node in proto.graph.node for name in node.output if name}
        if unknown := [name for name in wanted if name not in produced]:
            raise BackendError(
                f"The graph computes no tensor {unknown[0]!r} ({len(unknown)} of {len(wanted)} names are unknown).",
                "Take the names from the graph that is tapped.",
            )
        return self._tap(proto, wanted, thread_count(threads))

    def require(self) -> None:
        """MissingDependencyError when the backend cannot be used."""
        if reason := self.available():
            raise MissingDependencyError(reason)


def thread_count(threads: int | None) -> int:
    """The number of threads to use: what was asked for, else one a physical core that this process may use.

    Raises:
        BackendError: less than one thread.
    """
    if threads is None:
        return physical_cores()
    if threads < 1:
        raise BackendError(f"An engine was asked to use {threads} threads; expected at least 1.")
    return threads


def serialized(proto: ModelProto) -> bytes:
    """The graph as bytes.

    Raises:
        BackendError: it is bigger than the 2 GiB that one protobuf message may have, or holds no graph.
    """
    try:
        data: bytes = proto.SerializeToString()
    except Exception as error:  # protobuf raises its own class, ValueError or EncodeError, by version
        raise BackendError(f"The graph cannot be serialized: {first_line(error)}") from error
    if not proto.graph.node:
        raise BackendError("The graph has no nodes; expected a model.")
    return data


_NOISE = ("exception from", "check '", "traceback", "stack trace", "at ")


def first_line(error: BaseException) -> str:
    """The first line of an error's text that says something, as one sentence without source locations."""
    lines = [" ".join(line.split()) for line in str(error).splitlines()]
    meaningful = [line for line in lines if line and not line.lower().startswith(_NOISE)]
    text = (meaningful or [line for line in lines if line] or [type(error).__name__])[0]
    text = text if len(text) <= 300 else text[:297] + "..."
    return text if text.endswith((".", "!", "?")) else text + "."

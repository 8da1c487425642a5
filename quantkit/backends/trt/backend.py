"""The TensorRT backend: builds in a child process, keeps plans, loads them, says what they compute."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.backends.base import (
    ALL_PRECISIONS,
    Backend,
    CheckedRunner,
    Engine,
    ModelFiles,
    Precision,
    serialized,
)
from quantkit.backends.feeds import graph_inputs
from quantkit.backends.trt import plans, runtime
from quantkit.backends.trt.audit import Audit
from quantkit.backends.trt.build import BATCHES, CACHE, HISTOGRAMS, PLAN, TABLE
from quantkit.backends.trt.child import read_json
from quantkit.backends.trt.options import (
    PLUGIN_PRECISIONS,
    WAYS_IN,
    BuildOptions,
    CalibratorOptions,
    Job,
    Mix,
    Outcome,
    ShapeRange,
    Source,
)
from quantkit.backends.trt.parsable import parsable
from quantkit.backends.trt.plugins.definition import STARTS
from quantkit.backends.trt.rules import Rules
from quantkit.backends.trt.support import engine_info, folder_hash, inspection_of, rescue, store_batches, with_outputs
from quantkit.backends.trt.worker import INSPECTION
from quantkit.errors import BackendError, InputError, QuantkitError, StorageError, UnknownNameError

if TYPE_CHECKING:
    from onnx import ModelProto

    from quantkit.backends.trt.engine import TrtEngine
    from quantkit.collect.histogram import Histogram
    from quantkit.tables.table import CalibrationTable
    from quantkit.types import BatchSource

ONNX = "model.onnx"
TABLE_RANGES = ("qdq", "cache", "dynamic_range")
DEFAULT_RANGES = {"api": "cache", "plugins": "dynamic_range"}


@dataclass(frozen=True)
class Calibration:
    """What TensorRT's own calibrator gave.

    Attributes:
        table: its scales.
        cache: the cache, byte for byte.
        histograms: Legacy's histograms by tensor; empty for the others.
        histogram_cache: Legacy's histogram cache, byte for byte.
        seconds: of the whole job.
    """

    table: CalibrationTable
    cache: bytes
    histograms: Mapping[str, Histogram]
    histogram_cache: bytes
    seconds: float


@dataclass(frozen=True)
class TensorRTBackend(Backend):
    """TensorRT on the first GPU.

    "int8" allows float16 for what is not INT8, as "int8+fp16" does; "int8+fp32" does not. "fp32" is without TF32.

    Args:
        network, ranges: see `BuildOptions`; what `compile` uses.
        model, adapter: folders that the network API reads; "" for none.
        head: "classifier" or "masked-lm", for the network API.
        profiles: ranges of shapes for graphs with dynamic shapes.
        workspace_mb, level: see `BuildOptions`.
        graphs: run engines through CUDA graphs.
        reuse: use plans that were built before, and keep those that are built.
        timeout_s: longest time a build may take; None waits for ever.
        audit: look into engines when they are built.
        packed: whether engines of plugins take sentences without padding.
        mix: what engines of plugins are made of.
    """

    name = "tensorrt"
    shareable = False
    known = ALL_PRECISIONS
    symmetric_only = True
    default_placement = "gemm"  # probabilities lose half of their codes where uint8 is not to be had
    free_shapes = False  # it wants optimization profiles

    network: str = "onnx"
    ranges: str = "qdq"
    model: str = ""
    adapter: str = ""
    head: str = "classifier"
    profiles: tuple[ShapeRange, ...] = ()
    workspace_mb: int = 4096
    level: int = 3
    graphs: bool = False
    reuse: bool = True
    timeout_s: float | None = None
    audit: bool = True
    packed: bool = False
    mix: Mix = field(default_factory=Mix)

    @property
    def places_int8(self) -> bool:
        """Whether INT8 is placed by TensorRT itself, from a table."""
        return self.ranges != "qdq"

    @property
    def dynamic(self) -> bool:
        """Whether shapes may change: when a range of them was given."""
        return bool(self.profiles)

    def configured(self, options: Mapping[str, Any], files: ModelFiles) -> TensorRTBackend:
        """The backend with "network", "ranges", "shapes", "packed", "attention", "linear", "cuda_graphs".

        See `Backend.configured`.
        """
        given = dict(options)
        changes: dict[str, Any] = {}
        if (shapes := given.pop("shapes", None)) is not None:
            changes["profiles"] = tuple(ShapeRange.parse(part) for part in str(shapes).split(","))
        if (graphs := given.pop("cuda_graphs", None)) is not None:
            changes["graphs"] = bool(graphs)
        network = str(given.pop("network", self.network))
        if network not in WAYS_IN:
            raise UnknownNameError("way to a network", network, WAYS_IN)
        ranges = str(given.pop("ranges", DEFAULT_RANGES.get(network, self.ranges)))
        if (packed := given.pop("packed", None)) is not None:
            changes["packed"] = bool(packed)
        if ranges not in TABLE_RANGES:
            raise UnknownNameError("way to INT8 ranges", ranges, TABLE_RANGES)
        mix = {name: str(given.pop(name)) for name in ("attention", "linear") if name in given}
        if mix:
            changes["mix"] = replace(self.mix, **mix)
        for name in given:
            known = "It has network, ranges, shapes, packed, attention, linear."
            raise InputError(f"The tensorrt backend has no option {name!r}.", known)
        if mix and network != "plugins":
            raise InputError("--attention and --linear are for networks of plugins.", "Add --network plugins.")
        if changes.get("packed") and (network != "plugins" or not changes.get("profiles")):
            raise InputError("Packed sentences need --network plugins and a range of shapes.", "Give --shapes.")
        if network != "onnx":
            model, adapter = files()
            if not model.is_dir():
                raise InputError(f"The network API needs a model folder; {model} is a file.", "Use --network onnx.")
            changes |= {"model": str(model), "adapter": str(adapter or "")}
        return replace(self, network=network, ranges=ranges, **changes)

    def available(self) -> str | None:
        """None, or what is missing: a package, the driver, a GPU that this TensorRT knows."""
        if reason := runtime.missing_packages():
            return reason
        try:
            return runtime.table().refusal("gpu")
        except QuantkitError as error:
            return str(error)

    def unsupported(self, precision: Precision) -> str | None:
        """What the capability table says against a precision; without TensorRT, that it is missing."""
        return self.available() or runtime.table().refusal(precision)

    def describe(self) -> dict[str, Any]:
        """Version, GPU, precisions, and the capability table row by row."""
        self.require()
        able = runtime.table()
        gpu = able.gpu.as_json() if able.gpu else {}
        return {
            "version": str(able.version),
            "device": gpu.get("name", ""),
            "capabilities": [name.upper() for name in ("fp32", "tf32", "fp16", "int8") if able.can(name)],
            "threads": 1,
            "gpu": gpu,
            "table": [{"name": r.name, "possible": r.possible, "says": r.says} for r in able.values()],
        }

    def build(
        self, source: ModelProto | Source, options: BuildOptions, table: CalibrationTable | None = None
    ) -> TrtEngine:
        """An engine, from the plan cache when it was built before from the same things.

        Args:
            source: an ONNX graph, or for the network API a model folder.
            options: precision, way in, shapes.
            table: scales for ranges "cache" and "dynamic_range".

        Raises:
            TableError: the table has no tensor of this network.
            BackendError: this TensorRT or GPU cannot do it, or the build failed or crashed; the step is named.
        """
        self.require()
        options.check(runtime.table())
        if options.ranges in ("cache", "dynamic_range") and table is None:
            raise InputError(f"INT8 by {options.ranges} needs a calibration table.", "Give one with --table.")
        prepared = self._prepare(source, options, table)
        notes: tuple[str, ...] = ()
        path = plans.plan_path(prepared.key)
        if self.reuse and path.is_file():
            try:
                return self.load(path)
            except (BackendError, StorageError) as error:
                notes = (f"A kept plan was not used: {error.message}",)
        return self._build(prepared, path, notes)

    def calibrate(
        self, proto: ModelProto, batches: BatchSource, calibrator: CalibratorOptions, *, precision: str = "int8"
    ) -> Calibration:
        """Runs one of TensorRT's calibrators over a graph of fixed shapes; no engine is kept.

        Raises:
            CalibrationError: a batch is bad, or TensorRT did not take all of them.
            BackendError: this TensorRT has no calibrators, the shapes are dynamic, or the build failed.
        """
        from quantkit.collect.store import load_trt_histogram_cache
        from quantkit.tables import trt_text

        self.require()
        options = BuildOptions(precision, ranges="calibrate", workspace_mb=self.workspace_mb, level=self.level)
        options.check(runtime.table())
        with tempfile.TemporaryDirectory(prefix="quantkit-") as name:
            folder = Path(name)
            (folder / ONNX).write_bytes(serialized(parsable(proto)))
            count = store_batches(folder / BATCHES, batches, [value.name for value in graph_inputs(proto)])
            job = Job(Source(ONNX), options, calibrator, count, stop_after_calibration=True)
            outcome = self._run(job, folder)
            cache = (folder / CACHE).read_bytes()
            recorded = (folder / HISTOGRAMS).read_bytes() if (folder / HISTOGRAMS).is_file() else b""
        return Calibration(
            table=trt_text.loads(cache, source=f"TensorRT's {calibrator.algorithm} cache"),
            cache=cache,
            histograms=load_trt_histogram_cache(recorded) if recorded else {},
            histogram_cache=recorded,
            seconds=outcome.seconds,
        )

    def load(self, path: Path, *, trust: bool = False) -> TrtEngine:
        """The engine in a plan file.

        Args:
            path: the plan; its sidecar stands beside it.
            trust: load it although it was not built by this user on this machine.

        Raises:
            StorageError: there is none, or it is damaged.
            BackendError: it is a stranger's, or for another GPU or TensorRT version, or does not load.
        """
        from quantkit.backends.trt.cuda import device
        from quantkit.backends.trt.engine import TrtEngine
        from quantkit.backends.trt.plan import LoadedPlan

        self.require()
        info = plans.check(path, runtime.library_version(), device().gpu, trust=trust)
        plan = LoadedPlan(path.read_bytes(), device())
        outcome = Outcome.from_json(info.outcome) if info else Outcome()
        asked = BuildOptions.from_json(info.key.get("options", {})) if info else None
        found = inspection_of(path)
        audit = found.audit(asked, outcome) if found else Audit()
        rules = info.rules if info else Rules.of_tensors(plan.inputs)
        facts = {"plan": str(path), "build_s": outcome.seconds, "warnings": outcome.warnings[:20]}
        kind: type[TrtEngine] = TrtEngine
        if STARTS in {tensor.name for tensor in plan.inputs}:
            from quantkit.backends.trt.plugins.packing import PackedEngine

            kind = PackedEngine
        return kind(
            engine_info(asked, audit, plan.size_bytes, outcome),
            plan,
            device(),
            rules,
            audit=audit,
            facts=facts | {"device_memory_bytes": plan.device_memory_bytes},
            graphs=self.graphs,
        )

    def inspect(self, path: Path, *, trust: bool = False) -> tuple[Audit, dict[str, Any]]:
        """What an engine computes, by running it in a child process unless that was done when it was built.

        Returns:
            The audit, and what its sidecar says ({} without one).

        Raises:
            StorageError, BackendError: as `load`; or the engine crashed the process.
        """
        from quantkit.backends.trt.child import inspect_in_child
        from quantkit.backends.trt.cuda import device
        from quantkit.backends.trt.inspection import Inspection

        self.require()
        info = plans.check(path, runtime.library_version(), device().gpu, trust=trust)
        found = inspection_of(path)
        if found is None:
            with tempfile.TemporaryDirectory(prefix="quantkit-") as name:
                shutil.copyfile(path, Path(name) / PLAN)
                inspect_in_child(Path(name), timeout_s=self.timeout_s)
                found = Inspection.from_json(json.loads((Path(name) / INSPECTION).read_text()))
        if info is None:
            return found.audit(None), {}
        asked, outcome = BuildOptions.from_json(info.key.get("options", {})), Outcome.from_json(info.outcome)
        told = {"precision": asked.precision, "ranges": asked.ranges, "gpu": info.gpu, "tensorrt": info.tensorrt}
        return found.audit(asked, outcome), {**told, "size_bytes": info.size, "build_s": outcome.seconds}

    def options_for(self, precision: str, *, ranges: str = "", network: str = "onnx") -> BuildOptions:
        """Build options with this backend's memory, level and profiles.

        The plugins compute FP16 and INT8; float32 engines beside them come from the network API.
        """
        if network == "plugins" and precision not in PLUGIN_PRECISIONS:
            network = "api"
        packed = self.packed and network == "plugins"
        return BuildOptions(
            precision,
            network,
            ranges,
            self.profiles,
            workspace_mb=self.workspace_mb,
            level=self.level,
            packed=packed,
            mix=self.mix if network == "plugins" else Mix(),
        )

    def source_for(self, proto: ModelProto) -> ModelProto | Source:
        """What a build starts from: the graph, or for the network API the model folder with the graph's shapes."""
        if self.network == "onnx":
            return proto
        dims = graph_inputs(proto)[0].type.tensor_type.shape.dim
        batch, seq_len = (int(d.dim_value) if d.HasField("dim_value") else 0 for d in dims)
        return Source("", self.model, self.adapter, self.head, batch, seq_len)

    def _compile(self, proto: ModelProto, precision: Precision, threads: int) -> Engine:
        quantized = any(node.op_type == "DequantizeLinear" for node in proto.graph.node)
        if not precision.startswith("int8"):
            return self.build(self.source_for(proto), self.options_for(precision, network=self.network))
        if not quantized or self.network != "onnx":
            raise BackendError(
                "There are no Q/DQ pairs and no table, so nothing would be INT8.",
                "Insert pairs, or give a table for ranges cache or dynamic_range.",
            )
        return self.build(proto, self.options_for(precision, ranges="qdq"))

    def _compile_with_table(self, proto: ModelProto, precision: Precision, table: CalibrationTable) -> Engine:
        ranges = self.ranges if self.ranges != "qdq" else "cache"
        options = self.options_for(precision, ranges=ranges, network=self.network)
        return self.build(self.source_for(proto), options, table)

    def _tap(self, proto: ModelProto, names: tuple[str, ...], threads: int) -> CheckedRunner:
        plain = replace(self, graphs=False, reuse=False, audit=False)
        return plain.build(with_outputs(proto, names), plain.options_for("fp32"))

    def _prepare(self, source: ModelProto | Source, options: BuildOptions, table: CalibrationTable | None) -> Prepared:
        """What the build needs, and the key under which its plan is kept."""
        able = runtime.table()
        scales = {} if table is None else {name: float(scale) for name, scale in table.scales.items()}
        what: dict[str, Any] = {"table": scales, "options": options.to_json(), "tensorrt": str(able.version)}
        what["gpu"] = plans.gpu_text(able.gpu) if able.gpu else ""
        if options.network == "plugins" and able.gpu:
            from quantkit.backends.trt.plugins.compiler import find_library

            # A plan holds what the plugins' sources of its day wrote into it.
            try:
                what["plugins"] = find_library(able.gpu.compute_capability, able.version).parent.name
            except BackendError:
                what["plugins"] = ""  # the network may do without them
        if isinstance(source, Source):
            data, rules = b"", Rules.of_bert(Path(source.model))
            hashed = folder_hash(Path(source.model), source.adapter)
            what["model"] = {**vars(source), "model": "", "adapter": "", "sha256": hashed}
        else:
            if not able.can("flags") and options.half:
                from quantkit.backends.trt.typed import half_graph

                source = half_graph(source)
            source = parsable(source)
            data, rules = serialized(source), Rules.of_graph(source)
            what["model"] = {"sha256": hashlib.sha256(data).hexdigest()}
            source = Source(ONNX)
        digest = hashlib.sha256(repr(sorted(scales.items())).encode()).hexdigest() if scales else ""
        return Prepared(source, options, data, table, {**what, "table": digest}, rules)

    def _build(self, prepared: Prepared, path: Path, notes: tuple[str, ...]) -> TrtEngine:
        """Builds, keeps the plan, and loads it."""
        from quantkit.backends.trt.cuda import device

        with tempfile.TemporaryDirectory(prefix="quantkit-") as name:
            folder = Path(name)
            if prepared.data:
                (folder / ONNX).write_bytes(prepared.data)
            if prepared.table is not None:
                prepared.table.save(folder / TABLE)
            outcome = self._run(Job(prepared.source, prepared.options, inspect=self.audit), folder)
            plan = (folder / PLAN).read_bytes()
            outcome.notes += notes
            info = plans.info_for(
                plan,
                runtime.library_version(),
                device().gpu,
                key=prepared.key,
                outcome=outcome.to_json(),
                rules=prepared.rules,
            )
            inspection = read_json(folder / INSPECTION)
            return self.load(plans.store(path if self.reuse else folder / PLAN, plan, info, inspection))

    def _run(self, job: Job, folder: Path) -> Outcome:
        """Does a job in a child process; what a failed one computed is kept.

        Raises:
            QuantkitError: the job failed.
        """
        from quantkit.backends.trt.child import run_job

        try:
            return run_job(job, folder, timeout_s=self.timeout_s)
        except QuantkitError as error:
            if kept := rescue(folder):
                error.hint = f"{error.hint} The calibration cache is kept: {kept}.".strip()
                error.args = (error.message,)
            raise


@dataclass(frozen=True)
class Prepared:
    """A build that is ready to start."""

    source: Source
    options: BuildOptions
    data: bytes
    table: CalibrationTable | None
    key: dict[str, Any]
    rules: Rules


__all__ = ["Calibration", "TensorRTBackend", "store_batches"]

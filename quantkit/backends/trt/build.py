"""The build itself, as the child process does it: network, scales, engine. Nothing here survives a crash but files."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quantkit.backends.trt import ranges, runtime
from quantkit.backends.trt.calibrators import BatchFeeder, make_cache_reader, make_calibrator
from quantkit.backends.trt.capabilities import PROFILE_SHARING_BY_DEFAULT, Capabilities
from quantkit.backends.trt.cuda import device
from quantkit.backends.trt.network import (
    add_profiles,
    create_network,
    define_bert,
    define_plugins,
    float_tensors,
    inputs_of,
    is_dynamic,
    parse_onnx,
    profiles_of,
)
from quantkit.backends.trt.options import CalibratorOptions, Job, Outcome
from quantkit.errors import BackendError, CalibrationError
from quantkit.files import read_bytes, write_bytes
from quantkit.tables.table import CalibrationTable, load_table
from quantkit.types import Array, FeedDict

if TYPE_CHECKING:
    from quantkit.backends.trt.plugins.definition import PluginNetwork

PLAN, TABLE, CACHE, HISTOGRAMS, BATCHES, LOG = (
    *("engine.plan", "table.json", "calibration.cache", "calibration.hist"),
    *("batches.npz", "log.txt"),
)
"""Files of a job's folder; CACHE and HISTOGRAMS are written as soon as TensorRT gives them."""

UNNAMED = "(Unnamed Layer"
"""How TensorRT begins the names of tensors that it makes itself; nobody can calibrate those."""

Step = Callable[[str], None]
Leave = Callable[[Outcome], None]
"""Ends the process there and then, with this outcome: TensorRT has no way to stop a build after calibration."""


@dataclass
class Bench:
    """What is on the bench while a network is built; every reference must live until the build is over."""

    trt: Any
    able: Capabilities
    messages: runtime.Messages
    builder: Any
    network: Any
    config: Any
    kept: list[Any]
    derived: Mapping[str, tuple[str, ...]]


def run(job: Job, folder: Path, step: Step, leave: Leave) -> Outcome:
    """Builds what the job asks for in `folder`; the plan is PLAN.

    Args:
        job: what to build.
        folder: where the job's files are, and where results go.
        step: told before each step, in words.
        leave: called, if the job stops after calibration, as soon as the cache is written.

    Raises:
        QuantkitError: whatever kind fits.
    """
    step("load TensorRT")
    trt, able, messages = runtime.load(), runtime.table(), runtime.Messages()
    job.options.check(able)
    with device().current(), (folder / LOG).open("w") as log:
        messages.log = log if job.verbose else None
        started = time.perf_counter()
        outcome = Outcome(version=str(able.version))
        try:
            bench = prepare(trt, able, messages, job, folder, step)
            outcome.tensors = len(float_tensors(trt, bench.network))
            outcome.notes += [sentence for item in bench.kept for sentence in getattr(item, "says", ())]
            feeder = give_scales(bench, job, folder, outcome, step, leave)
            step("build the engine" if feeder is None else "calibrate and build the engine")
            plan = bench.builder.build_serialized_network(bench.network, bench.config)
            if feeder is not None:
                settle(feeder, plan, messages)
        finally:
            messages.log = None
            outcome.warnings, outcome.fallback = messages.warnings, list(messages.missing)
        if plan is None and not job.stop_after_calibration:
            raise failure(messages)
        if plan is not None:
            step("write the engine")
            write_bytes(folder / PLAN, bytes(plan))
        outcome.seconds = round(time.perf_counter() - started, 3)
    return outcome


def prepare(trt: Any, able: Capabilities, messages: runtime.Messages, job: Job, folder: Path, step: Step) -> Bench:
    """The network and the configuration."""
    builder = trt.Builder(runtime.logger())
    network = create_network(trt, builder, able)
    derived: Mapping[str, tuple[str, ...]] = {}
    if job.options.network == "onnx":
        step("parse the graph")
        parser = parse_onnx(trt, network, read_bytes(folder / job.source.onnx), runtime.logger())
        kept = [parser]
    elif job.options.network == "plugins":
        kept = [plugin_network(trt, network, able, job, folder, step)]
    else:
        step("define the network")
        definition = define_bert(trt, network, job.source, job.options)
        kept, derived = [definition], definition.derived
    step("configure the builder")
    config = configure(trt, builder, network, able, job)
    return Bench(trt, able, messages, builder, network, config, kept, derived)


def plugin_network(trt: Any, network: Any, able: Capabilities, job: Job, folder: Path, step: Step) -> PluginNetwork:
    """The network of plugins, with the tile shapes that are fastest here."""
    from quantkit.backends.trt.cuda import driver
    from quantkit.backends.trt.plugins import library
    from quantkit.backends.trt.plugins.definition import Product
    from quantkit.backends.trt.plugins.tuning import Tuner, row_counts

    step("load the plugins")
    trt.init_libnvinfer_plugins(runtime.logger(), "")
    built = library.is_built()
    if built:
        library.register()
    rows = row_counts(job.options.profiles, job.source.batch, job.source.seq_len)
    tuners: list[Tuner] = []

    def tiles(product: Product) -> list[tuple[int, int]]:
        if not tuners:
            step("choose tile shapes")
            tuners.append(Tuner(library.kernels(), driver(), rows))
        return tuners[0](product)

    table = load_table(folder / TABLE) if job.options.int8 else None
    step("define the network")
    return define_plugins(trt, network, job.source, job.options, table, tiles, able, built=built)


def configure(trt: Any, builder: Any, network: Any, able: Capabilities, job: Job) -> Any:
    """The builder's configuration: precision flags, memory, verbosity, profiles."""
    options = job.options
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mb << 20)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.builder_optimization_level = options.level
    if options.precision in ("fp32", "int8+fp32"):
        config.clear_flag(trt.BuilderFlag.TF32)
    if able.can("flags"):
        if options.half:
            config.set_flag(trt.BuilderFlag.FP16)
        if options.int8:
            config.set_flag(trt.BuilderFlag.INT8)
    if options.network == "plugins":
        # Without this TensorRT loads cuBLAS and cuDNN for networks with plugins; these need neither.
        config.set_tactic_sources(0)
        if options.mix.constrained != "no":
            config.set_flag(trt.BuilderFlag.PREFER_PRECISION_CONSTRAINTS)
    if able.version < PROFILE_SHARING_BY_DEFAULT:
        config.set_preview_feature(trt.PreviewFeature.PROFILE_SHARING_0806, True)
    add_profiles(builder, config, network, profiles_of(job.source, options))
    return config


def give_scales(bench: Bench, job: Job, folder: Path, outcome: Outcome, step: Step, leave: Leave) -> BatchFeeder | None:
    """Tells TensorRT the scales, or where to find them; the feeder when its calibrator runs."""
    if not job.options.implicit:
        return None
    if job.options.network == "plugins":
        made = next(item for item in bench.kept if hasattr(item, "used"))
        known = load_table(folder / TABLE).names
        outcome.used = list(dict.fromkeys(made.used))
        outcome.unused = [name for name in known if name not in set(made.used)]
        return None
    if job.options.ranges == "calibrate":
        step("prepare calibration")
        if job.calibrator is None:
            raise BackendError("There is no calibrator for this build.", "Name one: entropy2, entropy, minmax, legacy.")
        stop = (lambda: leave(outcome)) if job.stop_after_calibration else None
        return start_calibration(bench, job.calibrator, folder, step, stop)
    step("fit the table")
    tensors = [*(str(t.name) for t in inputs_of(bench.network)), *float_tensors(bench.trt, bench.network)]
    table = ranges.with_derived(load_table(folder / TABLE), bench.derived)
    fit = ranges.fit(table, tensors)
    integers = {str(t.name) for t in inputs_of(bench.network)}
    outcome.used, outcome.unused = list(fit.used), list(fit.unused)
    outcome.missing = [name for name in fit.missing if name not in integers and not name.startswith(UNNAMED)]
    if job.options.ranges == "dynamic_range":
        outcome.used = ranges.set_dynamic_ranges(bench.trt, bench.network, table)
        return None
    bench.config.int8_calibrator = cache_reader(bench, table)
    return None


def cache_reader(bench: Bench, table: CalibrationTable) -> Any:
    """A calibrator that gives TensorRT the table; dynamic networks also need a profile to calibrate with."""
    reader = make_cache_reader(bench.trt, ranges.cache_text(table, bench.able.version).encode())
    bench.kept.append(reader)
    return reader


def start_calibration(
    bench: Bench, options: CalibratorOptions, folder: Path, step: Step, stop: Callable[[], None] | None
) -> BatchFeeder:
    """Sets up TensorRT's calibrator over the job's batches.

    Raises:
        BackendError: the network's shapes are dynamic.
    """
    if is_dynamic(bench.network):
        raise BackendError(
            "TensorRT's calibrators need a network of fixed shapes; this one is dynamic.",
            "Calibrate the network with its shapes fixed, then build the dynamic one with the table.",
        )
    specs = {
        str(tensor.name): (tuple(tensor.shape), np.dtype(bench.trt.nptype(tensor.dtype)))
        for tensor in inputs_of(bench.network)
    }
    batches = StoredBatches(folder / BATCHES)
    feeder = BatchFeeder(batches, specs, device(), lambda done, total: step(f"calibrate (batch {done} of {total})"))

    def keep(cache: bytes) -> None:
        write_bytes(folder / CACHE, cache)
        step("build the engine with the new table")
        if stop is not None and feeder.given == len(batches):
            stop()

    def keep_histograms(data: bytes) -> None:
        write_bytes(folder / HISTOGRAMS, data)

    calibrator = make_calibrator(bench.trt, options, feeder, keep, keep_histograms)
    bench.kept += [feeder, calibrator]
    bench.config.int8_calibrator = calibrator
    return feeder


def settle(feeder: BatchFeeder, plan: Any, messages: runtime.Messages) -> None:
    """After a build that calibrated: its errors, if there were any; a failed build explains missing batches."""
    try:
        feeder.finish()
    except CalibrationError:
        if feeder.error is None and plan is None and messages.errors:
            raise failure(messages) from None
        raise
    finally:
        feeder.free()


def failure(messages: runtime.Messages) -> BackendError:
    """The error of a build that gave no engine."""
    cause = messages.cause()
    memory = any(word in cause.lower() for word in ("memory", "cudaerrormemoryallocation", "out of"))
    hint = "Free GPU memory, or lower the largest shape or the workspace." if memory else ""
    return BackendError(f"TensorRT built no engine: {cause}.", hint)


class StoredBatches:
    """The batches of a job: arrays (batches, ...) in an .npz file; a `BatchSource`."""

    def __init__(self, path: Path) -> None:
        with np.load(path, allow_pickle=False) as file:
            self._arrays: dict[str, Array] = {name: file[name] for name in file.files}

    def __len__(self) -> int:
        return len(next(iter(self._arrays.values()))) if self._arrays else 0

    def __iter__(self) -> Iterator[FeedDict]:
        for i in range(len(self)):
            yield {name: array[i] for name, array in self._arrays.items()}

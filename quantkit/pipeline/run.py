"""The main job: data, calibration, engines, accuracy, latency, record."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.backends.base import Backend, Engine, Precision
from quantkit.calibrate import make_calibrator
from quantkit.data.batches import TokenBatches
from quantkit.data.tokenize import encode
from quantkit.errors import BackendError, InputError, QuantkitError
from quantkit.evaluate.accuracy import EvalResult, evaluate_engine
from quantkit.evaluate.latency import Latency, time_engines
from quantkit.evaluate.significance import compare
from quantkit.files import check_writable, write_bytes
from quantkit.network.plan_file import idle_patterns, load_plan, plan_to_json
from quantkit.network.precision import PrecisionPlan
from quantkit.network.refine import parse_steps
from quantkit.pipeline import unfinished
from quantkit.pipeline.calibration import Calibrated, calibrate
from quantkit.pipeline.candidates import build_candidate, refined_for
from quantkit.pipeline.locks import alone_in
from quantkit.pipeline.manifest import answers, labels_sha256, manifest
from quantkit.pipeline.memory import check_engines, tell_peak
from quantkit.pipeline.settings import Settings, threads_of
from quantkit.pipeline.shared_engines import SharedEngines
from quantkit.pipeline.sharing import cluster_for
from quantkit.pipeline.tensors import write_tensors
from quantkit.pipeline.workspace import Workspace
from quantkit.report.html import write_report
from quantkit.report.readme import FLOAT_FILE, INT8_FILE, TENSORRT_FILE, write_readme
from quantkit.report.record import SCHEMA, EngineRow, Record
from quantkit.types import Array, Watcher

if TYPE_CHECKING:
    from onnx import ModelProto

    from quantkit.distributed.cluster import Cluster
    from quantkit.tables.table import CalibrationTable

LATENCY_BATCHES = 8
LATENCY_ROUNDS = 30
LATENCY_WARMUP = 3
JOBS = {(True, True): "run", (True, False): "eval", (False, True): "bench", (False, False): "build"}
"""(metrics, latency) -> the command that asks for them."""


@dataclass
class Trial:
    """One precision on its way through the stages; `error` ends it and becomes the row's reason.

    With `keep_float` the model file of a float precision is written too.
    """

    precision: Precision
    keep_float: bool = False
    engine: Engine | None = None
    model_file: str = ""
    size_bytes: int | None = None
    result: EvalResult | None = None
    latency: Latency | None = None
    error: QuantkitError | None = None
    notes: list[str] = field(default_factory=list)
    key: str = ""
    """Hash of everything that decides what the engine answers."""
    graph: str = ""
    """Hash of the graph that was compiled."""
    table: CalibrationTable | None = None
    """Ranges that INT8 is built with."""
    kept: list[Path] = field(default_factory=list)
    """What was written down for the case of an interruption."""

    @property
    def quantized(self) -> bool:
        """Whether the engine is to have INT8 in it."""
        return self.precision.startswith("int8")


def run_settings(
    settings: Settings,
    watcher: Watcher,
    *,
    metrics: bool = True,
    latency: bool = True,
    cluster: Cluster | None = None,
) -> Record:
    """The whole job; with --out the record is written after every stage, so that nothing computed is lost.

    A whole run (metrics and latency) with --out also writes what a report shows of every tensor, and the report.

    Args:
        settings: what the user asked for.
        watcher: who is told how it goes.
        metrics: evaluate the task.
        latency: time the engines.
        cluster: workers that are there already; None starts or reaches those of the settings.

    Raises:
        QuantkitError: something that concerns every engine; what concerns one is that engine's row.
    """
    with alone_in(settings.out, watcher), cluster_for(settings, cluster) as workers:
        return run_stages(Workspace(settings, watcher, workers), metrics=metrics, latency=latency)


def run_stages(workspace: Workspace, *, metrics: bool, latency: bool) -> Record:
    """`run_settings`, while no other process writes to the same --out."""
    settings, watcher = workspace.settings, workspace.watcher
    check_early(workspace)
    check_engines(workspace, len(settings.precisions) if latency else 1)
    evaluation = evaluation_batches(workspace)
    calibrated = calibrate_and_refine(workspace) if settings.wants_int8 else None
    if calibrated is not None and metrics and latency and settings.out is not None:
        plan = plan_of(settings, workspace.backend)
        with watcher.stage("compare ranges") as progress:
            files = write_tensors(workspace, calibrated.table, plan, settings.out, progress)
        calibrated = replace(calibrated, files=files)
    trials = [Trial(precision, keep_float=not (metrics or latency)) for precision in settings.precisions]
    try:
        name = JOBS[metrics, latency]
        for group in together(settings, trials, latency):
            compile_all(workspace, group, calibrated)
            save(workspace, trials, calibrated, evaluation, name)
            if metrics:
                evaluate_all(workspace, group, evaluation)
                save(workspace, trials, calibrated, evaluation, name)
            if len(group) < len(trials):
                close(group)
        if latency:
            time_all(workspace, trials, evaluation)
        record = save(workspace, trials, calibrated, evaluation, name)
        if metrics and latency and settings.out is not None:
            report(settings.out, watcher)
        forget(trials)
        tell_peak(settings.memory, watcher)
        return record
    finally:
        close(trials)


def together(settings: Settings, trials: Sequence[Trial], latency: bool) -> list[Sequence[Trial]]:
    """Engines that exist at the same time: all, because they are timed in turn; one where memory is limited."""
    return [[trial] for trial in trials] if settings.memory and not latency else [trials]


def close(trials: Sequence[Trial]) -> None:
    """Frees the engines; what they are stays known."""
    for trial in trials:
        if trial.engine is not None:
            trial.engine.close()


def forget(trials: Sequence[Trial]) -> None:
    """Deletes what was kept for the case of an interruption: the work is done."""
    unfinished.discard([path for trial in trials for path in trial.kept])


def report(folder: Path, watcher: Watcher) -> None:
    """Writes report.html beside the record; a run that is done is not lost because that cannot be."""
    try:
        _, notes = write_report(folder)
    except QuantkitError as error:
        notes = (f"No report was written: {error}",)
    for note in notes:
        watcher.say(note)


def calibrate_and_refine(workspace: Workspace) -> Calibrated:
    """The table, and the refinement for the plan of the settings."""
    calibrated = calibrate(workspace)
    refined = refined_for(workspace, plan_of(workspace.settings, workspace.backend))
    return replace(calibrated, refinement=refined.refinement, record=calibrated.record | {"refinement": refined.record})


def build_only(settings: Settings, watcher: Watcher) -> Record:
    """`quantkit build`: the model file of each precision, checked by compiling it."""
    return run_settings(settings, watcher, metrics=False, latency=False)


def check_early(workspace: Workspace) -> None:
    """Raises what can be known before anything is computed: an error after minutes of work would cost the user them."""
    settings = workspace.settings
    make_calibrator(settings.method, **settings.parameters)
    plan_of(settings, workspace.backend)
    if settings.refine:
        parse_steps(settings.refine)
    if settings.out is not None:
        check_writable(settings.out)
    single = settings.data and Path(settings.data).is_file()
    if single and not settings.calib_data and settings.table is None and settings.wants_int8:
        raise InputError(
            f"{settings.data} is one file; calibrating on the rows that are evaluated would flatter INT8.",
            "Name other rows with --calib-data, or a table with --table.",
        )
    _ = workspace.backend, workspace.task
    check_plan(workspace)
    limit = workspace.network.max_positions
    if limit is not None and settings.seq_len > limit:
        raise InputError(f"The model has {limit} positions; a sequence of {settings.seq_len} tokens does not fit.")


def plan_of(settings: Settings, backend: Backend) -> PrecisionPlan:
    """What becomes INT8, on a grid that the backend has: by --plan, else by --placement and --symmetric.

    Raises:
        UnknownNameError: there is no such placement.
        InputError: the plan file cannot be used.
    """
    if settings.plan is None:
        mode = settings.placement or backend.default_placement
        plan = PrecisionPlan(mode=mode, symmetric=settings.around_zero)
    else:
        plan = load_plan(settings.plan).plan
    return replace(plan, symmetric=True, int8_only=True) if backend.symmetric_only else plan


def check_plan(workspace: Workspace) -> None:
    """Refuses a plan file whose patterns name nothing in this model; says when it was found for another one."""
    path = workspace.settings.plan
    if path is None:
        return
    given = load_plan(path)
    if idle := idle_patterns(given.plan, workspace.network.index):
        raise InputError(
            f"{path} leaves {idle[0]!r} in float, and the model has nothing of that name.",
            "Give the plan of a model with the same layers and names, or edit its skip list.",
        )
    if given.model_sha256 and given.model_sha256 != workspace.network.sha256:
        workspace.watcher.say(f"{path} was found for another model; its accuracy was not measured for this one.")


def evaluation_batches(workspace: Workspace) -> TokenBatches:
    """The evaluation rows as batches of the fixed shape; the last one is filled up."""
    settings = workspace.settings
    encoded = encode(workspace.tokenizer, workspace.evaluation.texts, settings.seq_len)
    return TokenBatches(encoded, settings.batch, settings.seq_len, fill="pad")


def compile_all(workspace: Workspace, trials: Sequence[Trial], calibrated: Calibrated | None) -> None:
    """Builds every engine; one that cannot be built carries its error on."""
    settings = workspace.settings
    with workspace.watcher.stage("build engines") as progress:
        for done, trial in enumerate(trials):
            trial.table = calibrated.table if calibrated is not None and trial.quantized else None
            try:
                proto = graph_for(workspace, trial, calibrated)
                own = calibrated is not None and trial.quantized and workspace.backend.places_int8
                trial.engine = workspace.backend.compile(
                    proto,
                    trial.precision,
                    threads=threads_of(settings),
                    table=calibrated.table if calibrated and own else None,
                )
                ranges = calibrated.table if calibrated and own else None
                trial.graph = unfinished.graph_sha256(proto)
                trial.key = unfinished.engine_key(trial.graph, trial.precision, ranges, settings)
            except QuantkitError as error:
                trial.error = error
            progress(done + 1, len(trials))


def graph_for(workspace: Workspace, trial: Trial, calibrated: Calibrated | None) -> ModelProto:
    """The ONNX graph of a precision, with fixed shapes where the backend wants them.

    The INT8 one is also written, with free shapes, into --out; `quantkit build` writes the float one too.
    """
    settings, network = workspace.settings, workspace.network
    fixed = workspace.fixed_graph
    if not trial.quantized and trial.keep_float and settings.out is not None:
        if "float file" not in workspace.kept:  # every float precision runs the same file
            workspace.kept["float file"] = write_bytes(settings.out / FLOAT_FILE, network.proto.SerializeToString())
        trial.model_file = str(workspace.kept["float file"])
    if not trial.quantized or workspace.backend.places_int8:
        return fixed
    if calibrated is None:
        raise BackendError("There is no calibration table for INT8.", "Calibrate first.")
    plan = plan_of(settings, workspace.backend)
    placed = build_candidate(workspace, fixed, calibrated.table, plan)
    trial.notes += [f"{name} stays in float: {reason}" for name, reason in placed.skipped.items()]
    if settings.out is not None:
        free = build_candidate(workspace, network.proto, calibrated.table, plan)
        trial.model_file = str(write_bytes(settings.out / INT8_FILE, free.proto.SerializeToString()))
        if settings.tensorrt_model:
            write_tensorrt_model(workspace, calibrated, plan)
    return placed.proto


def write_tensorrt_model(workspace: Workspace, calibrated: Calibrated, plan: PrecisionPlan) -> None:
    """The INT8 model as TensorRT's parser takes it, beside the other one: int8 around zero, float weights quantized.

    Raises:
        ModelError: the graph has something that the parser does not take, whatever is done.
    """
    from quantkit.backends.trt.exported import for_parser

    if workspace.settings.out is None:
        return
    around_zero = replace(plan, symmetric=True, int8_only=True)
    placed = build_candidate(workspace, workspace.network.proto, calibrated.table, around_zero)
    write_bytes(workspace.settings.out / TENSORRT_FILE, for_parser(placed.proto).SerializeToString())


def evaluate_all(workspace: Workspace, trials: Sequence[Trial], batches: TokenBatches) -> None:
    """Runs the task through every engine."""
    labels = labels_of(workspace)
    for trial in trials:
        if trial.engine is None:
            continue
        with workspace.watcher.stage(f"evaluate {trial.precision}") as progress:
            try:
                with closing(kept_answers(workspace, trial, trial.engine, batches)) as engine:
                    trial.result = evaluate_engine(engine, batches, labels, workspace.task, progress=progress)
                    engine.keep()
            except BackendError as error:
                trial.error = error


def kept_answers(workspace: Workspace, trial: Trial, engine: Engine, batches: TokenBatches) -> unfinished.KeptAnswers:
    """The engine of a trial, or the workers in its place, with what an interrupted evaluation by it has left."""
    path = unfinished.answers_path(trial.key, batches.sha256)
    trial.kept.append(path)
    if workspace.helpers is None:
        return unfinished.KeptAnswers(engine, path)
    shape = None if workspace.backend.dynamic else (workspace.settings.batch, workspace.settings.seq_len)
    engines = SharedEngines(workspace, workspace.helpers, trial.table, shape)
    plan = plan_of(workspace.settings, workspace.backend) if trial.quantized else None
    return unfinished.KeptAnswers(engine, path, lambda first: engines.answers(plan, trial.precision, batches, first))


def labels_of(workspace: Workspace) -> Array:
    """The labels of the evaluation rows; InputError when the file has none."""
    labels = workspace.evaluation.labels
    if labels is None:
        raise InputError("The evaluation rows have no labels.", "Name the column with --label-column.")
    return labels


def time_all(workspace: Workspace, trials: Sequence[Trial], batches: TokenBatches) -> None:
    """Times the engines that work, in turn, on the same full batches of the task's own sentences."""
    alive = [trial for trial in trials if trial.engine is not None and trial.error is None]
    if not alive:
        return
    feeds = list(islice(batches, LATENCY_BATCHES))
    engines = [trial.engine for trial in alive if trial.engine is not None]
    kept = unfinished.latencies_path([trial.key for trial in alive], batches.sha256, LATENCY_ROUNDS)
    alive[0].kept.append(kept)
    with workspace.watcher.stage("time engines") as progress:
        try:
            timings = unfinished.kept_latencies(kept) or time_engines(
                engines, feeds, warmup=LATENCY_WARMUP, rounds=LATENCY_ROUNDS, progress=progress
            )
            unfinished.keep_latencies(kept, timings)
        except BackendError as error:
            # Engines are timed in turn, so one that breaks leaves none with a fair figure; accuracies stay.
            for trial in alive:
                trial.notes.append(f"not timed: {error}")
            return
    for trial, timing in zip(alive, timings, strict=True):
        trial.latency = timing


def row_of(trial: Trial, reference: Trial, workspace: Workspace) -> EngineRow:
    """The record's row of one engine, compared with the reference where there is one."""
    engine, backend = trial.engine, workspace.backend.name
    if trial.error is not None or engine is None:
        reason = str(trial.error) if trial.error else "not built"
        return EngineRow(trial.precision, backend, status="failed", reason=reason)
    row = EngineRow(
        precision=trial.precision,
        backend=backend,
        compute=engine.compute,
        size_bytes=engine.size_bytes,
        model_file=trial.model_file,
        int8_ops=engine.int8_ops if trial.quantized else None,
        float_ops=engine.float_ops,
        notes=(*engine.notes, *trial.notes),
    )
    if trial.result is not None:
        scores = {name: score.as_json() for name, score in trial.result.scores.items()}
        row = replace(row, metrics=scores)
        if trial is not reference and reference.precision == "fp32" and reference.result is not None:
            comparison = compare(reference.result, trial.result, labels_of(workspace), workspace.task)
            row = replace(row, against_fp32=comparison.as_json("FP32", trial.precision.upper()))
    if trial.latency is not None:
        row = replace(row, latency_ms=trial.latency.as_json(), throughput_per_s=trial.latency.throughput_per_s)
        if trial is not reference and reference.latency is not None:
            row = replace(row, speedup=trial.latency.ratio_to(reference.latency))
    return row


def save(
    workspace: Workspace,
    trials: Sequence[Trial],
    calibrated: Calibrated | None,
    evaluation: TokenBatches,
    name: str = "bench",
) -> Record:
    """The record of what is known so far, written to --out when there is one; `name` is the command's."""
    settings, network = workspace.settings, workspace.network
    reference = next((trial for trial in trials if trial.precision == "fp32"), trials[0])
    rows = [row_of(trial, reference, workspace) for trial in trials]
    data: dict[str, Any] = {
        "schema": SCHEMA,
        "context": workspace.context(),
        "model": {
            "name": settings.model,
            "adapter": str(workspace.adapter_path) if workspace.adapter_path else None,
            "sha256": network.sha256,
        },
        "task": {
            "name": workspace.task.name,
            "split": workspace.evaluation.split,
            "source": workspace.evaluation.source,
            "examples": evaluation.examples,
            "truncated": evaluation.truncated,
            "seq_len": settings.seq_len,
            "batch": settings.batch,
        },
        "calibration": calibrated.record if calibrated else None,
        "plan": plan_record(workspace) if calibrated else None,
        "interface": {"inputs": list(network.input_names), "output": network.output_name},
        "engines": [row.as_json() | details_of(trial) for row, trial in zip(rows, trials, strict=True)],
    }
    table = None if calibrated is None else calibrated.table
    data["manifest"] = manifest(
        workspace,
        name,
        table,
        evaluation={
            "rows_sha256": evaluation.sha256,
            "labels_sha256": labels_sha256(workspace.evaluation.labels),
        },
        engines={trial.precision: hashes_of(trial) for trial in trials if trial.graph},
    )
    data["verdict"] = verdict(rows)
    data["files"] = dict(calibrated.files) if calibrated else {}
    record = Record(data)
    if settings.out is not None:
        record.save(settings.out / "record.json")
        write_readme(record.data, settings.out)
    return record


def hashes_of(trial: Trial) -> dict[str, str]:
    """Of an engine's graph, and of its answers where it was evaluated."""
    return {"graph_sha256": trial.graph, **({} if trial.result is None else answers(trial.result))}


def plan_record(workspace: Workspace) -> dict[str, Any]:
    """What became INT8, and by which file."""
    settings = workspace.settings
    reasons = dict(load_plan(settings.plan).reasons) if settings.plan else {}
    return plan_to_json(plan_of(settings, workspace.backend)) | {"file": str(settings.plan or ""), "reasons": reasons}


def details_of(trial: Trial) -> dict[str, Any]:
    """What only this kind of engine tells: {"details": ...}, or nothing."""
    details = trial.engine.details if trial.engine is not None else {}
    return {"details": details} if details else {}


def verdict(rows: Sequence[EngineRow]) -> list[str]:
    """What the user should read first, in words."""
    lines = [f"{row.precision} failed: {row.reason}" for row in rows if row.status != "ok"]
    int8 = next((row for row in rows if row.precision.startswith("int8") and row.status == "ok"), None)
    fp32 = next((row for row in rows if row.precision == "fp32" and row.status == "ok"), None)
    if int8 is not None and not int8.int8_ops:
        why = next((f" {note}" for note in int8.notes if note.startswith("Nothing in this engine is INT8")), "")
        says = "The INT8 engine computes nothing in INT8: its accuracy and speed are those of a float engine."
        lines.insert(0, says + why)
    half = next((row for row in rows if row.precision == "fp16" and row.status == "ok"), None)
    if half is not None and half.compute not in ("f16", ""):
        lines.append(f"This machine computes half precision as {half.compute}.")
    if int8 is not None and fp32 is not None and int8.metrics and fp32.metrics:
        name = next(iter(fp32.metrics))
        change = 100 * (int8.metrics[name]["value"] - fp32.metrics[name]["value"])
        speed = f", at {int8.speedup:.2f} times its speed" if int8.speedup else ""
        lines.append(f"INT8 against FP32: {name} {change:+.2f} points{speed}.")
        if against := int8.against_fp32:
            agree = "" if against["identical"] else f" They agree on {100 * against['agreement']:.1f} % of the rows."
            lines.append(f"{against['words']}{agree}")
    return lines

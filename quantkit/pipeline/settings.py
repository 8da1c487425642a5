"""What a user asks for, checked before anything heavy is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from quantkit.backends.base import ALL_PRECISIONS, PRECISIONS, Precision
from quantkit.errors import InputError, UnknownNameError
from quantkit.report.record import available_cores

DEMO = "demo"
DEMO_TASK = "rotten_tomatoes"
DEFAULT_METHOD = "mse"
LEAST = {"calib_samples": 1, "batch": 1, "seq_len": 2, "tune_rows": 1}
LEAST |= dict.fromkeys(("limit", "seed", "threads", "workers", "memory"), 0)


@dataclass(frozen=True)
class Settings:
    """The settings of a run; every one has the default of the command line.

    Args:
        model: "demo", a folder in Hugging Face layout, a hub id, or an .onnx file.
        task: a GLUE task's name; empty means rotten_tomatoes, which only the demo has.
        data: folder or file with the task's rows; empty means the hub (the packaged rows for the demo's task).
        calib_data: a file to calibrate with instead of the train split; empty means the train split.
        adapter: PEFT LoRA folder; empty means none (for the demo: the shipped one).
        tokenizer: folder of the tokenizer; empty means the model's own.
        text_columns: names of the text columns in a file of the user's own; empty means the task's.
        label_column: name of its label column; empty means the task's.
        backend: "openvino" or "onnxruntime".
        method: the calibrator that INT8 uses.
        methods: the calibrators whose tables `calibrate` writes; ("all",) is every one.
        parameters: the calibrator's parameters by TensorRT's names (`quantile`, `regression_cutoff`, ...).
        precisions: which engines to build: "fp32", "fp16", "int8"; tensorrt also has "tf32", "int8+fp16", "int8+fp32".
        calib_samples: sentences to calibrate with.
        batch: sequences a batch.
        seq_len: tokens a sequence, padding included.
        limit: evaluate only the first rows; 0 means all.
        seed: seed of the calibration sample.
        threads: threads to compute with; 0 means all cores.
        workers: processes to start on this machine that share calibration and evaluation (docs/distributed.md); 0
            means none.
        scheduler: address of a Dask scheduler whose workers share them; empty means none.
        order_free: power-of-two histogram ranges instead of TensorRT's rule.
        ignore_padding: leave padded positions out of the statistics.
        placement: mode of the precision plan; empty is the backend's own choice.
        refine: steps that refine ranges and weights (quantkit/network/refine.py) with commas, "all" or "none"; empty
            means all, or none where a table is given.
        symmetric: symmetric INT8 activations; asymmetric ones use the observed low and high ends. None means symmetric
            where `refine` shifts and smooths (they leave a zero point nothing to do), asymmetric otherwise.
        plan: a plan file; it overrides `placement` and `symmetric`. None means what those two say.
        tune_rows: train rows, apart from the calibration sample, that decide a search.
        tensorrt_model: also write the INT8 model in the form that TensorRT's parser takes.
        table: a calibration table to use instead of calibrating; None means calibrate or reuse.
        memory: bytes of resident memory that the process may take; 0 means no limit.
        force: use `table` even when its provenance does not fit.
        out: folder for results; None writes none.
        engine: options of the backend alone, by name; see its `configured`.

    Raises:
        InputError: a value is out of its range.
        UnknownNameError: there is no such precision.
    """

    model: str = DEMO
    task: str = ""
    data: str = ""
    calib_data: str = ""
    adapter: str = ""
    tokenizer: str = ""
    text_columns: tuple[str, ...] = ()
    label_column: str = ""
    backend: str = "openvino"
    method: str = DEFAULT_METHOD
    methods: tuple[str, ...] = ("all",)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    precisions: tuple[Precision, ...] = PRECISIONS
    calib_samples: int = 512
    batch: int = 16
    seq_len: int = 64
    limit: int = 0
    seed: int = 0
    threads: int = 0
    workers: int = 0
    scheduler: str = ""
    order_free: bool = False
    ignore_padding: bool = False
    placement: str = ""
    symmetric: bool | None = None
    plan: Path | None = None
    tune_rows: int = 4096
    tensorrt_model: bool = False
    refine: str = ""
    table: Path | None = None
    force: bool = False
    memory: int = 0
    out: Path | None = None
    engine: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if unknown := [precision for precision in self.precisions if precision not in ALL_PRECISIONS]:
            raise UnknownNameError("precision", unknown[0], ALL_PRECISIONS)
        if not self.precisions:
            raise InputError("No precision was given.", f"Choose from {', '.join(ALL_PRECISIONS)}.")
        for name, least in LEAST.items():
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                flag = "--" + name.replace("_", "-")
                raise InputError(
                    f"{name} must be a whole number of at least {least}; got {value!r}.", f"Change {flag}."
                )
        if self.workers and self.scheduler:
            raise InputError(
                "Workers are those of --scheduler, or are started here by --workers.", "Give one of the two."
            )
        if self.task == "" and self.model != DEMO:
            raise InputError("A model of your own needs a task.", "Name it with --task, for example --task sst2.")

    @property
    def task_name(self) -> str:
        """The task, with the demo's default filled in."""
        return self.task or DEMO_TASK

    @property
    def shared(self) -> bool:
        """Whether workers share the work."""
        return bool(self.workers or self.scheduler)

    @property
    def wants_int8(self) -> bool:
        """Whether an INT8 engine is among the precisions."""
        return any(precision.startswith("int8") for precision in self.precisions)

    @property
    def around_zero(self) -> bool:
        """Whether INT8 activations are symmetric: as asked for, else by what `refine` says."""
        if self.symmetric is not None:
            return self.symmetric
        steps = {step.strip() for step in (self.refine or ("none" if self.table else "all")).split(",")}
        return "all" in steps or steps >= {"shift", "smooth"}

    @property
    def range_mode(self) -> Literal["tensorrt", "pow2"]:
        """Rule of the histograms' range: "tensorrt" or "pow2"."""
        return "pow2" if self.order_free else "tensorrt"

    def as_json(self) -> dict[str, Any]:
        """The settings as plain JSON values."""
        values = asdict(self)
        return values | {
            "table": str(self.table or ""),
            "plan": str(self.plan or ""),
            "out": str(self.out or ""),
            "parameters": dict(self.parameters),
            "engine": dict(self.engine),
        }


def settings_from_json(values: Mapping[str, Any], where: str) -> Settings:
    """Settings from their `as_json`; what is not there has its default, and what is unknown is left out.

    Raises:
        InputError: a value is of another type than it should be, or cannot be used; `where` begins the sentence.
    """
    given: dict[str, Any] = {}
    for field_ in fields(Settings):
        if field_.name not in values:
            continue
        value = values[field_.name]
        plain = field_.default_factory() if field_.default_factory is not MISSING else field_.default
        if field_.name in ("table", "plan", "out"):
            fits = isinstance(value, str)
            value = (Path(value) if value else None) if fits else value
        elif isinstance(plain, tuple):
            fits = isinstance(value, list | tuple) and all(isinstance(part, str) for part in value)
            value = tuple(value) if fits else value
        elif field_.name == "symmetric":
            fits = value is None or isinstance(value, bool)
        elif isinstance(plain, Mapping):
            fits = isinstance(value, dict)
        else:
            fits = type(value) is type(plain)
        if not fits:
            raise InputError(f"{where}: the setting {field_.name} is {value!r}, which it cannot be.")
        given[field_.name] = value
    return Settings(**given)


def threads_of(settings: Settings) -> int:
    """How many threads to compute with: what was asked for, else all that this process may use."""
    return settings.threads or available_cores()


def answering_threads(settings: Settings) -> int:
    """How many threads a shard of calibration or evaluation is computed with, here or by a worker.

    With workers one, unless a number was asked for: rounding may depend on it, and must not depend on how many workers
    there are.
    """
    return settings.threads or 1 if settings.shared else threads_of(settings)

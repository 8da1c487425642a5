"""What a user asks for, checked before anything heavy is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from quantkit.backends.base import ALL_PRECISIONS, PRECISIONS, Precision
from quantkit.errors import InputError, UnknownNameError
from quantkit.report.record import available_cores

DEMO = "demo"
DEMO_TASK = "rotten_tomatoes"
DEFAULT_METHOD = "mse"
DEFAULT_PLACEMENT = "gemm"
LEAST = {"calib_samples": 1, "batch": 1, "seq_len": 2, "tune_rows": 1, "limit": 0, "seed": 0, "threads": 0, "memory": 0}


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
        order_free: power-of-two histogram ranges instead of TensorRT's rule.
        ignore_padding: leave padded positions out of the statistics.
        placement: mode of the precision plan.
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
    order_free: bool = False
    ignore_padding: bool = False
    placement: str = DEFAULT_PLACEMENT
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
        if self.task == "" and self.model != DEMO:
            raise InputError("A model of your own needs a task.", "Name it with --task, for example --task sst2.")

    @property
    def task_name(self) -> str:
        """The task, with the demo's default filled in."""
        return self.task or DEMO_TASK

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


def threads_of(settings: Settings) -> int:
    """How many threads to compute with: what was asked for, else all that this process may use."""
    return settings.threads or available_cores()

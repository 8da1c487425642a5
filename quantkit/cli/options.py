"""Every option that becomes one of the pipeline's settings, defined once, and how a command takes some of them.

A command names the settings it takes; its signature, and so its help, is put together here, with the defaults of
`Settings`. No option is written twice and no default can drift.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from quantkit.errors import InputError
from quantkit.pipeline.settings import DEMO, DEMO_TASK, Settings
from quantkit.pipeline.sizes import parse_size

DATA, CALIBRATION, ENGINES, OUTPUT = "Model and data", "Calibration", "Engines", "Output"
TENSORRT = "TensorRT only"
SHARING = "Several processes or machines (extra: distributed)"
PARAMETERS = ("percentile", "quantile", "regression_cutoff")
METHODS = "minmax, entropy, legacy, percentile, mse, auto"

SEVERAL = {"methods": "all", "tasks": "", "backends": "openvino"}
"""Options of several names with commas, and their defaults; tasks and backends become `Output.extra`, not settings."""

MODEL_HELP = "demo (the packaged all-MiniLM-L6-v2), a folder in Hugging Face layout, a hub id, or an .onnx file."

# setting -> (type, flags, help, panel)
OPTIONS: dict[str, tuple[Any, tuple[str, ...], str, str]] = {
    "task": (str, ("--task", "-t"), "Task: a GLUE name such as sst2, or rotten_tomatoes.", DATA),
    "tasks": (str, ("--tasks", "--task", "-t"), "Tasks, with commas: sst2,mrpc.", DATA),
    "data": (str, ("--data", "-d"), "Folder in GLUE's TSV layout, or a TSV, CSV, JSON lines or Parquet file.", DATA),
    "calib_data": (str, ("--calib-data",), "File to calibrate with instead of the train split; .txt will do.", DATA),
    "adapter": (str, ("--adapter", "-a"), "PEFT LoRA folder to merge into the weights.", DATA),
    "tokenizer": (str, ("--tokenizer",), "Folder of the tokenizer; an .onnx file needs it.", DATA),
    "text_columns": (list[str], ("--text-column",), "Text column in your own file; twice for pairs.", DATA),
    "label_column": (str, ("--label-column",), "Label column in your own file.", DATA),
    "batch": (int, ("--batch", "-b"), "Sequences a batch.", DATA),
    "seq_len": (int, ("--seq-len",), "Tokens a sequence, padding included.", DATA),
    "seed": (int, ("--seed",), "Seed of the calibration sample.", DATA),
    "limit": (int, ("--limit",), "Evaluate the first N rows only; 0 is all.", DATA),
    "method": (str, ("--method", "-m"), f"Calibration method: {METHODS}.", CALIBRATION),
    "methods": (
        str,
        ("--method", "--methods", "-m"),
        f"Methods, with commas, or all: {METHODS}.",
        CALIBRATION,
    ),
    "calib_samples": (int, ("--calib-samples", "-n"), "Sentences to calibrate with.", CALIBRATION),
    "percentile": (float, ("--percentile",), "Percentile method: the percentage of values to keep.", CALIBRATION),
    "quantile": (float, ("--quantile",), "Legacy method: quantile.", CALIBRATION),
    "regression_cutoff": (float, ("--regression-cutoff",), "Legacy method: regression cutoff.", CALIBRATION),
    "order_free": (
        bool,
        ("--order-free/--tensorrt-ranges",),
        "Histogram ranges: powers of two, free of the data's order, or TensorRT's rule.",
        CALIBRATION,
    ),
    "ignore_padding": (
        bool,
        ("--ignore-padding/--count-padding",),
        "Leave padded positions out of the statistics; TensorRT counts them.",
        CALIBRATION,
    ),
    "table": (
        Path,
        ("--table",),
        "Calibration table to use, of any format: quantkit's JSON, a TensorRT cache ...",
        CALIBRATION,
    ),
    "force": (bool, ("--force",), "Use a table whose provenance does not fit.", CALIBRATION),
    "backend": (str, ("--backend",), "What runs the model: openvino, onnxruntime or tensorrt.", ENGINES),
    "backends": (str, ("--backends", "--backend"), "What runs the model, with commas: openvino,onnxruntime.", ENGINES),
    "precisions": (str, ("--precision", "-p"), "Engines: fp32, fp16, int8, with commas.", ENGINES),
    "placement": (
        str,
        ("--placement",),
        "What becomes INT8: gemm, ffn-only, gemm+mha, gemm+residual, gemm+residual+mha; by default gemm+mha on a CPU, "
        "gemm on TensorRT.",
        ENGINES,
    ),
    "symmetric": (
        bool,
        ("--symmetric/--asymmetric",),
        "INT8 activations: around zero, as TensorRT has them (the default with --refine all), or from lowest to "
        "highest value (the default without).",
        ENGINES,
    ),
    "plan": (Path, ("--plan",), "Plan file of `quantkit tune`; instead of --placement and --symmetric.", ENGINES),
    "tune_rows": (int, ("--tune-rows",), "Train rows, apart from the calibration sample, that decide.", CALIBRATION),
    "tensorrt_model": (
        bool,
        ("--tensorrt-model",),
        "Write int8-tensorrt.onnx too: symmetric, as TensorRT's parser takes it.",
        OUTPUT,
    ),
    "refine": (
        str,
        ("--refine",),
        "Refinement of ranges and weights: all (the default, but none with --table), none, or steps with commas: "
        "shift, split, smooth, range, round, bias.",
        ENGINES,
    ),
    "network": (str, ("--network",), "How the network is made: onnx (parser), api (network API) or plugins.", TENSORRT),
    "ranges": (
        str,
        ("--ranges",),
        "How INT8 is placed: qdq (pairs), cache or dynamic_range (TensorRT places).",
        TENSORRT,
    ),
    "shapes": (str, ("--shapes",), "Dynamic shapes, min:opt:max, for example 1x8:16x64:32x128.", TENSORRT),
    "packed": (bool, ("--packed/--padded",), "Pack sentences without padding (--network plugins).", TENSORRT),
    "attention": (
        str,
        ("--attention",),
        "Attention of a network of plugins: auto, own, tensorrt (its plugin), interleaved (its INT8 plugin).",
        TENSORRT,
    ),
    "linear": (
        str,
        ("--linear",),
        "Its linear layers: auto, own, or TensorRT's as convolution, fully_connected or matmul.",
        TENSORRT,
    ),
    "cuda_graphs": (bool, ("--cuda-graphs/--no-cuda-graphs",), "Run engines through CUDA graphs.", TENSORRT),
    "memory": (
        str,
        ("--memory",),
        "Memory that the process may take, for example 4G or 900M; tensors are then collected a part at a time.",
        ENGINES,
    ),
    "threads": (int, ("--threads",), "Threads to compute with; 0 is all cores.", ENGINES),
    "workers": (int, ("--workers",), "Processes on this machine that share calibration and evaluation.", SHARING),
    "scheduler": (str, ("--scheduler",), "Address of a Dask scheduler whose workers share them.", SHARING),
    "out": (Path, ("--out", "-o"), "Folder for the results.", OUTPUT),
}
BACKENDS = ("openvino", "onnxruntime", "tensorrt")
CHOICES: dict[str, tuple[str, ...]] = {
    "method": tuple(METHODS.split(", ")),
    "methods": ("all", *METHODS.split(", ")),
    "backend": BACKENDS,
    "backends": BACKENDS,
    "precisions": ("fp32", "fp16", "int8"),
    "placement": ("gemm", "ffn-only", "gemm+mha", "gemm+residual", "gemm+residual+mha"),
    "network": ("onnx", "api"),
    "ranges": ("qdq", "cache", "dynamic_range"),
}
"""What shell completion offers for an option; what a command takes is checked where it is used."""


def completer(names: Sequence[str]) -> Callable[[str], list[str]]:
    """A function that gives shell completion the names that go on as the user began."""
    return lambda incomplete: [name for name in names if name.startswith(incomplete)]


MODEL_AND_DATA = (
    *("task", "data", "calib_data", "adapter", "tokenizer", "text_columns", "label_column"),
    *("batch", "seq_len", "seed"),
)
RANGES = ("calib_samples", *PARAMETERS, "order_free", "ignore_padding")
PLAN = ("placement", "symmetric", "refine", "plan")
ENGINE = ("network", "ranges", "shapes", "packed", "attention", "linear", "cuda_graphs")
"""Options of one backend alone; what the user gives of them becomes `Settings.engine`."""
SHARED = ("workers", "scheduler")
MAKING = (
    *(*MODEL_AND_DATA, "method", *RANGES, "table", "force", "backend", "precisions", *PLAN, *ENGINE),
    *("threads", "memory", *SHARED, "out", "tensorrt_model"),
)
"""Options of the commands that write the models."""


@dataclass(frozen=True)
class Output:
    """How the command is to answer: JSON or a table, with progress or without; `extra` holds its own options."""

    json: bool
    quiet: bool
    extra: dict[str, Any]


def takes(*names: str, **extra: tuple[Any, Any]) -> Callable[[Callable[[Settings, Output], None]], Callable[..., None]]:
    """Makes a function of (settings, output) into a command that takes the model and the named settings.

    Args:
        names: settings of `OPTIONS`.
        extra: further options of this command alone: name -> (annotated type, default).
    """

    def decorate(function: Callable[[Settings, Output], None]) -> Callable[..., None]:
        def command(**values: Any) -> None:
            own = {name: values.pop(name) for name in (*extra, "tasks", "backends") if name in values}
            if "tasks" in own:
                own["tasks"] = split_names(own["tasks"] or (DEMO_TASK if values["model"] == DEMO else ""), "tasks")
                values["task"] = own["tasks"][0]
            if "backends" in own:
                own["backends"] = split_names(own["backends"], "backends")
            output = Output(values.pop("json"), values.pop("quiet"), own)
            function(make_settings(values), output)

        parameters = [_parameter("model", Annotated[str, typer.Argument(help=MODEL_HELP)], "demo")]
        parameters += [_parameter(name, annotation(name), default(name)) for name in names]
        parameters += [_parameter(name, kind, value) for name, (kind, value) in extra.items()]
        parameters += [_parameter("json", JSON, False), _parameter("quiet", QUIET, False)]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        command.__name__, command.__doc__ = function.__name__, function.__doc__
        return command

    return decorate


JSON = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.", rich_help_panel=OUTPUT)]
QUIET = Annotated[
    bool,
    typer.Option(
        "--quiet",
        "-q",
        help="Print nothing but errors, and the answer where it is in no file and no exit code.",
        rich_help_panel=OUTPUT,
    ),
]


def _parameter(name: str, kind: Any, value: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=value, annotation=kind)


def annotation(name: str) -> Any:
    """The annotated type that typer reads for a setting."""
    kind, flags, text, panel = OPTIONS[name]
    if name in (*PARAMETERS, *ENGINE, "out", "table", "symmetric", "plan"):
        kind = kind | None
    offered = completer(CHOICES[name]) if name in CHOICES else None
    return Annotated[kind, typer.Option(*flags, help=text, rich_help_panel=panel, autocompletion=offered)]


def default(name: str) -> Any:
    """The default of a setting on the command line: the one of `Settings`, in the form that typer takes."""
    if name in (*PARAMETERS, *ENGINE):
        return None
    if name in SEVERAL:
        return SEVERAL[name]
    if name == "memory":
        return ""
    field = next(f for f in fields(Settings) if f.name == name)
    value: Any = field.default_factory() if field.default_factory is not MISSING else field.default
    if name == "precisions":
        return ",".join(value)
    return list(value) if isinstance(value, tuple) else value


def make_settings(values: dict[str, Any]) -> Settings:
    """Settings from the values of the options; parameters the user did not give stay the calibrator's own."""
    chosen = {name: value for name, value in values.items() if name not in (*PARAMETERS, *ENGINE, "methods")}
    given = {name: values[name] for name in PARAMETERS if values.get(name) is not None}
    if "precisions" in chosen:
        chosen["precisions"] = split_names(chosen["precisions"], "precision")
    if "methods" in values:
        chosen["methods"] = split_names(values["methods"], "method")
    chosen["engine"] = {name: values[name] for name in ENGINE if values.get(name) is not None}
    chosen["memory"] = parse_size(values.get("memory") or "")
    if "text_columns" in chosen:
        chosen["text_columns"] = tuple(chosen["text_columns"] or ())
    return Settings(parameters=given, **chosen)


def with_folder(settings: Settings) -> Settings:
    """The settings with a folder for the results, ./quantkit-out unless one was named."""
    return settings if settings.out is not None else replace(settings, out=Path("quantkit-out"))


def split_names(text: str, what: str) -> tuple[str, ...]:
    """Names from a comma-separated option, in order, each once.

    Raises:
        InputError: there is none.
    """
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not names:
        raise InputError(f"--{what} is empty.", "Give it a name, or several with commas.")
    return names

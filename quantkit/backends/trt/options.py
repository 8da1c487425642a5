"""What an engine is to be: precision, way in, shapes. Plain data that travels to the building process as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from quantkit.backends.trt.capabilities import Capabilities
from quantkit.errors import BackendError, InputError, UnknownNameError

TrtPrecision = Literal["fp32", "tf32", "fp16", "int8", "int8+fp16", "int8+fp32"]
TRT_PRECISIONS: tuple[TrtPrecision, ...] = get_args(TrtPrecision)
WAYS_IN = ("onnx", "api", "plugins")
PLUGIN_PRECISIONS = ("fp16", "int8", "int8+fp16")
DENSE = ("matmul", "fully_connected", "convolution")
LINEAR = ("auto", "own", *DENSE)
ATTENTION = ("auto", "own", "tensorrt", "interleaved")
NORMS = ("layer", "elementwise")
INT8_RANGES = ("qdq", "cache", "dynamic_range", "calibrate")


@dataclass(frozen=True)
class ShapeRange:
    """Shapes of the token inputs that a profile takes, each (batch, sequence); tactics are chosen for `opt`.

    Raises:
        InputError: not two positive numbers each, or min <= opt <= max does not hold.
    """

    min: tuple[int, int]
    opt: tuple[int, int]
    max: tuple[int, int]

    def __post_init__(self) -> None:
        for name in ("min", "opt", "max"):
            value = tuple(getattr(self, name))
            if len(value) != 2 or not all(isinstance(n, int) and n > 0 for n in value):
                raise InputError(f"The {name} shape is {value}; expected batch and sequence, both positive.")
            object.__setattr__(self, name, value)
        if not all(a <= b <= c for a, b, c in zip(self.min, self.opt, self.max, strict=True)):
            raise InputError(f"The shapes {self.min}, {self.opt}, {self.max} are not in the order min <= opt <= max.")

    @classmethod
    def fixed(cls, batch: int, seq_len: int) -> ShapeRange:
        """The range of one shape."""
        return cls((batch, seq_len), (batch, seq_len), (batch, seq_len))

    @classmethod
    def parse(cls, text: str) -> ShapeRange:
        """The range in "1x8:16x64:32x128" (min, opt, max), or in "16x64" alone.

        Raises:
            InputError: the text is neither.
        """
        try:
            shapes = [tuple(int(n) for n in part.split("x")) for part in text.split(":")]
        except ValueError:
            shapes = []
        if len(shapes) not in (1, 3) or any(len(shape) != 2 for shape in shapes):
            raise InputError(f"{text!r} is no range of shapes.", "Write min:opt:max, for example 1x8:16x64:32x128.")
        low, middle, high = (shapes * 3)[:3] if len(shapes) == 1 else shapes
        return cls((low[0], low[1]), (middle[0], middle[1]), (high[0], high[1]))

    def holds(self, shape: tuple[int, ...]) -> bool:
        """Whether the profile takes `shape`."""
        return len(shape) == 2 and all(a <= n <= b for a, n, b in zip(self.min, shape, self.max, strict=True))


@dataclass(frozen=True)
class Mix:
    """What a network of plugins is made of; "auto" is what this TensorRT and GPU can do best.

    Args:
        linear: linear layers: "own" (Hopper alone), or TensorRT's as "convolution", "fully_connected" or "matmul".
        attention: "own", "tensorrt" (its plugin, version 2), or "interleaved" (version 3, INT8 alone).
        norms: embeddings and LayerNorm: "own" or "tensorrt".
        gelu: between TensorRT's linear layers: "own" (our plugin) or "layers" (fused by TensorRT).
        sums: type of what LayerNorm reads in an INT8 network: "half", "float" or "int8".
        constrained: whether TensorRT's layers are told their types: "yes" or "no".

    Raises:
        UnknownNameError: a name that there is not.
    """

    linear: str = "auto"
    attention: str = "auto"
    norms: str = "auto"
    gelu: str = "auto"
    sums: str = "auto"
    constrained: str = "auto"

    def __post_init__(self) -> None:
        for kind, value, known in (
            ("way to linear layers", self.linear, LINEAR),
            ("way to attention", self.attention, ATTENTION),
            ("way to LayerNorm", self.norms, ("auto", "own", "tensorrt")),
            ("way to GELU", self.gelu, ("auto", "own", "layers")),
            ("type of sums", self.sums, ("auto", "half", "float", "int8")),
            ("choice of types", self.constrained, ("auto", "yes", "no")),
        ):
            if value not in known:
                raise UnknownNameError(kind, value, known)


@dataclass(frozen=True)
class BuildOptions:
    """How an engine is built.

    Args:
        precision: "fp32", "tf32", "fp16", "int8" or "int8+fp16" (INT8 where it is faster, the rest in float16), or
            "int8+fp32" (the rest in float32).
        network: "onnx" (the parser), "api" (the network API) or "plugins" (our own plugins; FP16 and INT8 alone).
        ranges: for INT8, where the scales come from: "qdq" (pairs in the graph), "cache" (a table as a calibration
            cache), "dynamic_range" (a table, tensor by tensor) or "calibrate" (TensorRT's calibrator runs).
        profiles: ranges of shapes; empty for a graph of fixed shapes.
        dense: how the network API makes products with a weight: "matmul", "fully_connected" or "convolution" (1 x 1).
        norm: how it makes LayerNorm: "layer", or "elementwise" operations.
        fuse_qkv: whether it makes query, key and value with one product. Off by default: TensorRT fuses the attention
            with three products better (docs/gpu-performance.md). Networks of plugins always have one.
        workspace_mb: most scratch memory a layer may take, in MiB.
        level: builder optimization level, 0 (quick build) to 5 (slow build).
        packed: for a network of plugins, whether sentences come without padding; `profiles` then count padded shapes.
        mix: what a network of plugins is made of.

    Raises:
        UnknownNameError: a name that there is not.
        InputError: a number out of range, or INT8 without `ranges`.
    """

    precision: str = "fp32"
    network: str = "onnx"
    ranges: str = ""
    profiles: tuple[ShapeRange, ...] = ()
    dense: str = "matmul"
    norm: str = "layer"
    fuse_qkv: bool = False
    workspace_mb: int = 4096
    level: int = 3
    packed: bool = False
    mix: Mix = field(default_factory=Mix)

    def __post_init__(self) -> None:
        for kind, value, known in (
            ("precision", self.precision, TRT_PRECISIONS),
            ("way to a network", self.network, WAYS_IN),
            ("way to a dense layer", self.dense, DENSE),
            ("way to LayerNorm", self.norm, NORMS),
        ):
            if value not in known:
                raise UnknownNameError(kind, value, known)
        if self.int8 and self.ranges not in INT8_RANGES:
            raise InputError(f"INT8 needs scales from one of {', '.join(INT8_RANGES)}; {self.ranges!r} came.")
        if not self.int8 and self.ranges:
            raise InputError(f"{self.precision} takes no scales; {self.ranges!r} came.")
        if self.network == "plugins" and (
            self.precision not in PLUGIN_PRECISIONS or self.ranges not in ("", "dynamic_range")
        ):
            came = f"{self.precision} by {self.ranges}" if self.ranges else self.precision
            raise InputError(
                f"Plugins compute FP16, or INT8 by dynamic ranges from a table; {came} came.",
                "Choose fp16 or int8, or another --network.",
            )
        if self.packed and (self.network != "plugins" or not self.profiles):
            raise InputError("Packed sentences need --network plugins and a range of shapes.", "Give --shapes.")
        if self.mix != Mix() and self.network != "plugins":
            raise InputError(
                "Linear layers and attention are chosen for networks of plugins.", "Use --network plugins."
            )
        if self.workspace_mb < 1 or not 0 <= self.level <= 5:
            raise InputError(f"A workspace of {self.workspace_mb} MiB or a level of {self.level} cannot be built with.")

    @property
    def int8(self) -> bool:
        """Whether INT8 is wanted."""
        return self.precision.startswith("int8")

    @property
    def half(self) -> bool:
        """Whether float16 is allowed."""
        return self.precision in ("fp16", "int8", "int8+fp16")

    @property
    def implicit(self) -> bool:
        """Whether TensorRT places INT8 itself, by scales that are not part of the graph."""
        return self.ranges in ("cache", "dynamic_range", "calibrate")

    def check(self, able: Capabilities) -> None:
        """BackendError, in the capability table's words, when this TensorRT and GPU cannot do it."""
        able.require("gpu")
        able.require(self.precision)
        needed = {"qdq": "qdq", "cache": "cache", "dynamic_range": "dynamic range", "calibrate": "calibrators"}
        if self.ranges:
            able.require(needed[self.ranges])
        if self.network == "plugins":
            able.require("plugins", "Use --network api.")
        if self.network == "api" and self.ranges == "qdq":
            raise BackendError(
                "Networks defined through the API carry no Q/DQ pairs.", "Use --network onnx, or ranges from a table."
            )
        if self.network == "api" and not able.can("flags") and self.half:
            raise BackendError(
                f"TensorRT {able.version} takes types from the graph, and the API network is float32.",
                "Use --network onnx, whose graph is converted.",
            )

    def to_json(self) -> dict[str, Any]:
        """The options as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> BuildOptions:
        """The inverse of `to_json`."""
        known = {f.name for f in fields(cls)}
        given = {name: item for name, item in value.items() if name in known and name not in ("profiles", "mix")}
        profiles = [ShapeRange(tuple(p["min"]), tuple(p["opt"]), tuple(p["max"])) for p in value.get("profiles", ())]
        return cls(**given, profiles=tuple(profiles), mix=Mix(**value.get("mix", {})))


@dataclass(frozen=True)
class CalibratorOptions:
    """One of TensorRT's calibrators.

    Args:
        algorithm: "entropy2", "entropy", "minmax" or "legacy".
        quantile, cutoff: of Legacy.
    """

    algorithm: str = "entropy2"
    quantile: float = 0.9999
    cutoff: float = 1.0

    def __post_init__(self) -> None:
        if self.algorithm not in CALIBRATORS:
            raise UnknownNameError("TensorRT calibrator", self.algorithm, CALIBRATORS)
        for name in ("quantile", "cutoff"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"The {name} of the Legacy calibrator is {getattr(self, name)}; expected 0 to 1.")


CALIBRATORS: dict[str, str] = {
    "entropy2": "EntropyCalibration2",
    "entropy": "EntropyCalibration",
    "minmax": "MinMaxCalibration",
    "legacy": "LegacyCalibration",
}
"""Our name -> TensorRT's, as the header of a cache has it."""


@dataclass(frozen=True)
class Source:
    """Where the network comes from: an ONNX file beside the job, or a model folder.

    Attributes:
        onnx: name of the file in the job's folder; empty for the network API.
        model, adapter: folders in Hugging Face and PEFT layout; "" for none.
        head: "classifier" or "masked-lm".
        batch, seq_len: fixed shape of an API network; 0 for one that may change.
    """

    onnx: str = ""
    model: str = ""
    adapter: str = ""
    head: str = "classifier"
    batch: int = 0
    seq_len: int = 0


@dataclass(frozen=True)
class Job:
    """All that a building process is told; it finds the files that are named in its folder.

    Attributes:
        source, options: what to build.
        calibrator: for ranges "calibrate".
        batches: number of calibration batches in "batches.npz".
        stop_after_calibration: leave the engine unbuilt: only the cache is wanted.
        verbose: write everything that TensorRT says to "log.txt".
        inspect: look into the engine after it was built.
    """

    source: Source
    options: BuildOptions
    calibrator: CalibratorOptions | None = None
    batches: int = 0
    stop_after_calibration: bool = False
    verbose: bool = False
    inspect: bool = True

    def to_json(self) -> dict[str, Any]:
        """The job as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Job:
        """The inverse of `to_json`."""
        calibrator = value.get("calibrator")
        return cls(
            Source(**value["source"]),
            BuildOptions.from_json(value["options"]),
            None if calibrator is None else CalibratorOptions(**calibrator),
            int(value.get("batches", 0)),
            bool(value.get("stop_after_calibration", False)),
            bool(value.get("verbose", False)),
            bool(value.get("inspect", True)),
        )


@dataclass
class Outcome:
    """What a building process found out; written as "result.json" beside the plan.

    Attributes:
        seconds: of the build.
        missing: tensors of the network without a scale, as computed by comparing names.
        fallback: tensors that TensorRT itself reported to lack a scale.
        unused: entries of the table that the network has no tensor for.
        used: entries of the table that it has.
        warnings, notes: TensorRT's, and ours.
        tensors: number of float tensors in the network.
        version: TensorRT's.
    """

    seconds: float = 0.0
    missing: list[str] = field(default_factory=list)
    fallback: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    used: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    tensors: int = 0
    version: str = ""

    def to_json(self) -> dict[str, Any]:
        """The outcome as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Outcome:
        """The inverse of `to_json`; what it does not know is left out."""
        return cls(**{name: item for name, item in value.items() if name in {f.name for f in fields(cls)}})

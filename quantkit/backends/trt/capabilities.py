"""What a TensorRT version can do on a GPU: one table, a pure function of the two.

Facts of the table: NVIDIA's release notes and headers from 8.6 to 11.1 (calibrators and dynamic ranges are deprecated
since 10.1 and BuilderFlag.INT8/FP16 since 10.12, the last version with them is 10.16, 11.0 has only strongly typed
networks), and builds on an H100 with 8.6.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quantkit.backends.trt.fused import ComputeCapability, kernels_text
from quantkit.backends.trt.versions import Version
from quantkit.errors import BackendError

OLDEST = Version(8, 6)
DEPRECATED_CALIBRATORS = Version(10, 1)
DEPRECATED_FLAGS = Version(10, 12)
WITHOUT_IMPLICIT = Version(11, 0)
STRONG_TYPES = Version(10, 0)
PROFILE_SHARING_BY_DEFAULT = Version(10, 0)
NATIVE_INT64 = Version(10, 0)

# First TensorRT version that knows a compute capability newer than 9.0, and the last that knows an old one.
_SINCE: dict[ComputeCapability, Version] = {(10, 0): Version(10, 8), (12, 0): Version(10, 8)}
_NEWEST_OF_OLD = (9, 0)
_OLDEST_GPU: tuple[tuple[Version, ComputeCapability], ...] = (
    (Version(10, 5), (7, 5)),
    (Version(10, 0), (7, 0)),
    (OLDEST, (6, 0)),
)


@dataclass(frozen=True)
class Gpu:
    """Facts of a GPU.

    Attributes:
        name: what the driver calls it.
        compute_capability: (9, 0) for an H100.
        memory_bytes: memory in all.
        driver: highest CUDA version that the driver supports, as it counts: 12040 for 12.4.
    """

    name: str
    compute_capability: ComputeCapability
    memory_bytes: int = 0
    driver: int = 0

    def as_json(self) -> dict[str, Any]:
        """The facts as JSON values."""
        return {
            "name": self.name,
            "compute_capability": ".".join(map(str, self.compute_capability)),
            "memory_bytes": self.memory_bytes,
            "driver": f"{self.driver // 1000}.{self.driver % 1000 // 10}",
        }


@dataclass(frozen=True)
class Capability:
    """One thing that can or cannot be done.

    Attributes:
        name: key in the table.
        possible: whether it can.
        says: how it is done on this version, or why it cannot be done; one sentence.
    """

    name: str
    possible: bool
    says: str


class Capabilities(Mapping[str, Capability]):
    """The table; `require` turns an impossible thing into an error."""

    def __init__(self, version: Version, gpu: Gpu | None, rows: list[Capability]) -> None:
        self.version = version
        self.gpu = gpu
        self._rows = {row.name: row for row in rows}

    def __getitem__(self, name: str) -> Capability:
        return self._rows[name]

    def __iter__(self) -> Any:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def can(self, name: str) -> bool:
        """Whether the named thing can be done."""
        return self._rows[name].possible

    def refusal(self, name: str) -> str | None:
        """None when the named thing can be done, else the sentence that says why not."""
        row = self._rows[name]
        return None if row.possible else row.says

    def require(self, name: str, hint: str = "") -> None:
        """BackendError with the table's sentence when the named thing cannot be done."""
        if reason := self.refusal(name):
            raise BackendError(reason, hint)


def capabilities(version: Version, gpu: Gpu | None = None) -> Capabilities:
    """The table for a TensorRT version on a GPU; None stands for a GPU that is not known and is not asked about.

    Rows: "version", "gpu", the precisions "fp32", "tf32", "fp16", "int8", "int8+fp16", "int8+fp32", the ways to INT8
    "qdq", "calibrators", "cache", "dynamic range", and "flags", "strong types", "network api", "plugins",
    "own plugins", "own linear", "attention plugin", "normalization", "int64", "profile sharing", "inspector",
    "cuda graphs".
    """
    known = version >= OLDEST
    flags = version < WITHOUT_IMPLICIT
    int8 = _int8(version, gpu)
    half = _half(version, gpu)
    both = int8.possible and half.possible
    both_says = f"{int8.says} {half.says}" if both else half.says if int8.possible else int8.says
    rows = [
        _row("version", known, f"TensorRT {version}.", f"TensorRT {version} is older than {OLDEST}, the first usable."),
        _gpu(version, gpu),
        _row("fp32", True, "Float32, with TF32 switched off.", ""),
        _tf32(gpu),
        half,
        Capability("int8", both, both_says),
        Capability("int8+fp16", both, both_says),
        Capability("int8+fp32", int8.possible, int8.says),
        _row("qdq", True, "Q/DQ pairs in the graph.", ""),
        *_implicit(version),
        _row(
            "flags",
            flags,
            f"Precisions are builder flags{' (deprecated)' if version >= DEPRECATED_FLAGS else ''}.",
            f"TensorRT {version} has no precision flags; types come from the graph.",
        ),
        _row(
            "strong types",
            version >= STRONG_TYPES,
            "Strongly typed networks, the only kind." if not flags else "Strongly typed networks, if asked for.",
            f"TensorRT {version} has no strongly typed networks; they came with {STRONG_TYPES}.",
        ),
        _row("network api", True, "Networks can be defined through the API.", ""),
        _row(
            "normalization", known, "LayerNorm is a layer of its own.", "LayerNorm is put together from other layers."
        ),
        *_plugins(version, gpu),
        _row(
            "int64",
            version >= NATIVE_INT64,
            "Token inputs are int64.",
            f"TensorRT {version} has no int64; token inputs become int32.",
        ),
        _row(
            "profile sharing",
            known,
            "Several contexts may use one profile"
            + ("." if version >= PROFILE_SHARING_BY_DEFAULT else " (preview feature PROFILE_SHARING_0806)."),
            "Each context needs a profile of its own.",
        ),
        _row("inspector", known, "Engines can be inspected layer by layer.", "There is no engine inspector."),
        _row("cuda graphs", known, "Inference can be captured into CUDA graphs.", "CUDA graphs cannot be used."),
    ]
    return Capabilities(version, gpu, rows)


def _row(name: str, possible: bool, how: str, why_not: str) -> Capability:
    """A row with the sentence that applies."""
    return Capability(name, possible, how if possible else why_not)


def _implicit(version: Version) -> list[Capability]:
    """The three ways to INT8 that left with 11.0."""
    there = version < WITHOUT_IMPLICIT
    old = " (deprecated since 10.1)" if version >= DEPRECATED_CALIBRATORS else ""
    gone = f"TensorRT {version} has no {{}}: they were removed in {WITHOUT_IMPLICIT}; put Q/DQ pairs into the graph."
    ways = (
        ("calibrators", "Entropy, Entropy2, MinMax and Legacy calibrators", "calibrators"),
        ("cache", "Calibration caches, read through a calibrator", "calibration caches"),
        ("dynamic range", "Dynamic ranges, tensor by tensor", "dynamic ranges"),
    )
    return [_row(name, there, f"{how}{old}.", gone.format(what)) for name, how, what in ways]


def _tf32(gpu: Gpu | None) -> Capability:
    """TF32 came with compute capability 8.0."""
    possible = gpu is None or gpu.compute_capability >= (8, 0)
    return _row("tf32", possible, "TF32 in matrix products.", _lacks(gpu, "TF32", "8.0"))


def _half(version: Version, gpu: Gpu | None) -> Capability:
    """Half precision: a flag, or the graph's own types."""
    possible = gpu is None or (gpu.compute_capability >= (5, 3) and gpu.compute_capability != (6, 1))
    how = "Float16 by builder flag." if version < WITHOUT_IMPLICIT else "Float16 types in a strongly typed network."
    return _row("fp16", possible, how, _lacks(gpu, "fast float16", "7.0"))


def _int8(version: Version, gpu: Gpu | None) -> Capability:
    """INT8: DP4A since 6.1, tensor cores since 7.2."""
    possible = gpu is None or gpu.compute_capability >= (6, 1)
    if version < WITHOUT_IMPLICIT:
        how = "INT8 by Q/DQ pairs, calibrators, caches or dynamic ranges."
    else:
        how = "INT8 by Q/DQ pairs in a strongly typed network; nothing else is left."
    return _row("int8", possible, how, _lacks(gpu, "INT8", "6.1"))


def _plugins(version: Version, gpu: Gpu | None) -> list[Capability]:
    """Networks of plugins, ours and TensorRT's: their interface left with 11.0, and our linear layers are Hopper's."""
    names = ("plugins", "own plugins", "own linear", "attention plugin")
    if version >= WITHOUT_IMPLICIT:
        says = f"TensorRT {version} has no IPluginV2DynamicExt, which the plugins need."
        return [Capability(name, False, says) for name in names]
    own = (9, 0) if gpu is None else gpu.compute_capability
    shown = "" if gpu is None else f"{gpu.name} has compute capability {'.'.join(map(str, own))}"
    fused = kernels_text(own)
    return [
        _row("plugins", own >= (7, 5), "Networks of plugins.", f"Networks of plugins need 7.5; {shown}."),
        _row("own plugins", own >= (8, 0), "Our attention, LayerNorm and GELU.", f"Our plugins need 8.0; {shown}."),
        _row("own linear", own == (9, 0), "Our linear layers.", f"Our linear layers need 9.0 (Hopper); {shown}."),
        _row(
            "attention plugin",
            bool(fused),
            f"TensorRT's attention plugin: {fused}.",
            f"TensorRT's attention plugin is not known to have kernels here; {shown}.",
        ),
    ]


def _gpu(version: Version, gpu: Gpu | None) -> Capability:
    """Whether this TensorRT knows this GPU."""
    if gpu is None:
        return Capability("gpu", False, "There is no CUDA device: engines can be neither built nor run.")
    own = gpu.compute_capability
    shown = ".".join(map(str, own))
    oldest = next((least for since, least in _OLDEST_GPU if version >= since), (6, 0))
    if own < oldest:
        least = ".".join(map(str, oldest))
        return Capability("gpu", False, f"TensorRT {version} needs compute capability {least}; {gpu.name} has {shown}.")
    if own > _NEWEST_OF_OLD and version < (needed := _SINCE.get(own, Version(10, 8))):
        return Capability("gpu", False, f"{gpu.name} (compute capability {shown}) needs TensorRT {needed} or later.")
    return Capability("gpu", True, f"{gpu.name}, compute capability {shown}.")


def _lacks(gpu: Gpu | None, what: str, since: str) -> str:
    """The sentence on a GPU that is too old."""
    if gpu is None:
        return ""
    shown = ".".join(map(str, gpu.compute_capability))
    return f"{gpu.name} has compute capability {shown}, which has no {what} (it came with {since})."

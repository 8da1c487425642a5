"""What an engine really computes, layer by layer, and a verdict in words. Pure: JSON in, `Audit` out.

Sources: the engine inspector's JSON (ProfilingVerbosity.DETAILED), the layer times of an IProfiler, and what the build
found out about scales. Tactic names tell the types of a kernel ("sm80_xmma_gemm_i8i8_i8i32_f32..." takes INT8,
"...f16f16_f16f16_f16..." float16, "...tf32tf32..." TF32); where a layer has none, the formats of its tensors do.

TensorRT 8 hides the inside of a Myelin region ("{ForeignNode[first...last]}"): one layer, no tactic. Its precision is
then that of the tensors at its border and of the build's flags, and the audit says that it does not see further.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

PRECISIONS = ("int8", "fp16", "bf16", "tf32", "fp32")

_OURS = r"quantkit_(?:linear|linear_walk|attention)(?:I|<signed ch)"
"""Our plugins' kernels, mangled or not, up to the letter that stands for INT8 (signed char)."""
_KERNEL = (
    ("int8", re.compile(r"i8i8|i8i32|s8s8|(?<!cu)int8|imma|i8816|i16832|_i8_|u8s8|dp4a|" + _OURS + "a", re.IGNORECASE)),
    ("fp8", re.compile(r"e4m3|e5m2|fp8", re.IGNORECASE)),
    ("bf16", re.compile(r"bf16", re.IGNORECASE)),
    ("tf32", re.compile(r"tf32", re.IGNORECASE)),
    ("fp16", re.compile(r"f16f16|h884|h1688|h16816|hmma|fp16|_f16_|half|hgemm|s16816|s1688gemm_fp16", re.IGNORECASE)),
    ("fp32", re.compile(r"f32f32|sgemm|ffma|fp32|_f32_|simt", re.IGNORECASE)),
)
_FORMAT = (
    ("int8", re.compile(r"\bint8\b", re.IGNORECASE)),
    ("bf16", re.compile(r"\b(bf16|bfloat16)\b", re.IGNORECASE)),
    ("fp16", re.compile(r"\b(fp16|half)\b", re.IGNORECASE)),
    ("fp32", re.compile(r"\b(fp32|float)\b", re.IGNORECASE)),
    ("int32", re.compile(r"\bint32\b", re.IGNORECASE)),
    ("int64", re.compile(r"\bint64\b", re.IGNORECASE)),
)
_GEMM = re.compile(
    r"quantkit_linear|gemm|matmul|matrixmultiply|fullyconnected|fully_connected|convolution|einsum|cublas",
    re.IGNORECASE,
)
_ATTENTION = re.compile(r"quantkit_attention|_mha|fmha|fused_multihead|flash|_gemm_mha", re.IGNORECASE)
_REFORMAT = re.compile(r"reformat|copy ?node|reformatting", re.IGNORECASE)
_REFORMAT_KERNEL = re.compile(
    r"copyVectorized|reformat|permutationKernel|copyPacked|nchwToNhwc|nhwcToNchw", re.IGNORECASE
)
_FOREIGN = re.compile(r"ForeignNode|^myelin", re.IGNORECASE)


@dataclass(frozen=True)
class Layer:
    """One layer of an engine.

    Attributes:
        name: TensorRT's, the names of fused layers joined by " + ".
        kind: the inspector's layer type.
        tactic: kernel that runs, where the inspector says it.
        precision: "int8", "fp16", "bf16", "tf32", "fp32", another type ("int32"), or "" when it cannot be told.
        gemm: whether it is a matrix product (or a convolution that stands for one).
        attention: whether its kernel is fused attention.
        reformat: whether it only changes a tensor's format.
        region: whether it is a Myelin region whose inside is not shown.
        inputs, outputs: names of its tensors.
        ms: milliseconds, None when not measured.
    """

    name: str
    kind: str = ""
    tactic: str = ""
    precision: str = ""
    gemm: bool = False
    attention: bool = False
    reformat: bool = False
    region: bool = False
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    ms: float | None = None


@dataclass(frozen=True)
class Audit:
    """What was found out about an engine.

    Attributes:
        layers: TensorRT's, in engine order.
        kernels: the traced kernels in the order of their start; empty without a trace.
        gemms: precision -> number of matrix products that run in it.
        time_share: precision -> share of the measured time, 0 to 1; empty without a profile.
        total_ms: sum of the layers' times; None without a profile.
        reformats: number of layers that only change formats.
        fused_attention: number of fused attention kernels; None when they cannot be seen.
        regions: names of Myelin regions whose inside is not shown.
        scales_used, scales_missing: calibrated tensors of the table that the build used, and those it lacked.
        verdict: sentences, the most important one first.
    """

    layers: tuple[Layer, ...] = ()
    kernels: tuple[Layer, ...] = ()
    gemms: dict[str, int] = field(default_factory=dict)
    time_share: dict[str, float] = field(default_factory=dict)
    total_ms: float | None = None
    reformats: int = 0
    fused_attention: int | None = None
    regions: tuple[str, ...] = ()
    scales_used: tuple[str, ...] = ()
    scales_missing: tuple[str, ...] = ()
    verdict: tuple[str, ...] = ()

    @property
    def int8_gemms(self) -> int:
        """Matrix products that run in INT8."""
        return self.gemms.get("int8", 0)

    @property
    def float_gemms(self) -> int:
        """Matrix products that run in floating point, as far as they are seen."""
        return sum(count for precision, count in self.gemms.items() if precision != "int8")

    def as_json(self, *, layers: bool = False) -> dict[str, Any]:
        """The audit as JSON values, with or without every layer."""
        value: dict[str, Any] = {
            "verdict": list(self.verdict),
            "gemms": dict(self.gemms),
            "time_share": {name: round(share, 4) for name, share in self.time_share.items()},
            "total_ms": None if self.total_ms is None else round(self.total_ms, 4),
            "layers": len(self.layers),
            "kernels": len(self.kernels),
            "reformats": self.reformats,
            "fused_attention": self.fused_attention,
            "regions": list(self.regions),
            "scales_used": len(self.scales_used),
            "scales_missing": list(self.scales_missing),
        }
        if layers:
            for name, listed in (("layer_list", self.layers), ("kernel_list", self.kernels)):
                value[name] = [
                    {k: v for k, v in vars(item).items() if v not in ("", (), None, False)} for item in listed
                ]
        return value


def read_layers(information: Mapping[str, Any], times: Mapping[str, float] | None = None) -> tuple[Layer, ...]:
    """Layers from the inspector's JSON, with the profiler's milliseconds where the names agree.

    A layer that the inspector gives only by name (engines built without detailed verbosity) keeps its name. Layers that
    only the profiler knows (the inside of a region on some versions) are added at the end.
    """
    times = dict(times or {})
    layers = [_layer(item, times) for item in information.get("Layers", ())]
    seen = {layer.name for layer in layers}
    layers += [_from_name(name, ms) for name, ms in times.items() if name not in seen]
    return tuple(layers)


def examine(
    information: Mapping[str, Any],
    times: Mapping[str, float] | None = None,
    *,
    precision: str = "",
    ranges: str = "",
    scales_used: Sequence[str] = (),
    scales_missing: Sequence[str] = (),
    kernels: Sequence[tuple[str, float]] = (),
) -> Audit:
    """The audit of an engine.

    Args:
        information: `ICudaEngine`'s inspector JSON.
        times: layer name -> milliseconds.
        precision: what was asked for ("int8+fp16"); colours the verdict and tells a region's precision.
        ranges: where INT8 scales came from ("qdq", "cache", ...).
        scales_used: tensors of the table that the build had.
        scales_missing: tensors of the network without a scale.
        kernels: name and milliseconds of every kernel of one inference, where a trace tells them; they count then, and
            the layers are only listed.
    """
    layers = read_layers(information, times)
    counted = tuple(of_kernel(name, ms) for name, ms in kernels) or layers
    regions = () if kernels else tuple(layer.name for layer in layers if layer.region)
    gemms = Counter(layer.precision or "unknown" for layer in counted if layer.gemm)
    fused = sum(layer.attention for layer in counted)
    timed = [layer for layer in counted if layer.ms is not None]
    total = sum(layer.ms or 0.0 for layer in timed) if timed else None
    audit = Audit(
        layers=layers,
        kernels=counted if kernels else (),
        gemms={name: gemms[name] for name in (*PRECISIONS, *sorted(set(gemms) - set(PRECISIONS))) if gemms[name]},
        time_share=_shares(timed, total),
        total_ms=total,
        reformats=sum(layer.reformat for layer in counted),
        fused_attention=None if regions else fused,
        regions=regions,
        scales_used=tuple(scales_used),
        scales_missing=tuple(scales_missing),
    )
    return _with_verdict(audit, precision, ranges)


def of_kernel(name: str, ms: float) -> Layer:
    """A traced kernel as a layer."""
    attention = bool(_ATTENTION.search(name))
    reformat = bool(_REFORMAT_KERNEL.search(name))
    gemm = bool(_GEMM.search(name)) and not attention and not reformat
    return Layer(
        name=name,
        kind="kernel",
        tactic=name,
        precision=kernel_precision(name),
        gemm=gemm,
        attention=attention,
        reformat=reformat,
        ms=ms,
    )


def kernel_precision(tactic: str) -> str:
    """The type that a kernel multiplies, by its name; "" when the name does not tell."""
    return next((name for name, pattern in _KERNEL if pattern.search(tactic)), "")


def format_precision(text: str) -> str:
    """The element type in an inspector's "Format/Datatype"; "" when it is none of the known ones."""
    return next((name for name, pattern in _FORMAT if pattern.search(text)), "")


def _layer(item: Any, times: dict[str, float]) -> Layer:
    """One entry of the inspector's list: an object, or a bare name."""
    if not isinstance(item, Mapping):
        return _from_name(str(item), times.get(str(item)))
    name, kind = str(item.get("Name", "")), str(item.get("LayerType", ""))
    tactic = str(item.get("TacticName", "") or "")
    outputs = [t for t in item.get("Outputs", ()) if isinstance(t, Mapping)]
    inputs = [t for t in item.get("Inputs", ()) if isinstance(t, Mapping)]
    region = bool(_FOREIGN.search(name) or kind.lower() in ("myelin", "foreignnode")) and not tactic
    formats = [format_precision(str(t.get("Format/Datatype", ""))) for t in (*inputs, *outputs)]
    floats = [f for f in formats if f in PRECISIONS]
    parameter = str(item.get("ParameterType", ""))
    reformat = bool(_REFORMAT.search(f"{kind} {parameter} {name if not tactic else ''}"))
    attention = bool(_ATTENTION.search(f"{tactic} {name}"))
    gemm = not (reformat or region or attention) and bool(_GEMM.search(f"{kind} {tactic} {parameter}"))
    told = kernel_precision(tactic)
    if gemm:
        precision = told or (floats[0] if floats else "")
    else:
        precision = min(floats, key=PRECISIONS.index) if floats else (formats[-1] if formats else "")
    return Layer(
        name=name,
        kind=kind,
        tactic=tactic,
        precision=precision,
        gemm=gemm,
        attention=attention,
        reformat=reformat,
        region=region,
        inputs=tuple(str(t.get("Name", "")) for t in inputs),
        outputs=tuple(str(t.get("Name", "")) for t in outputs),
        ms=times.get(name),
    )


def _from_name(name: str, ms: float | None) -> Layer:
    """What a layer's name alone tells."""
    region = bool(_FOREIGN.search(name))
    reformat = bool(_REFORMAT.search(name))
    return Layer(
        name=name,
        precision=kernel_precision(name),
        gemm=not region and not reformat and bool(re.search(r"gemm|matmul", name, re.IGNORECASE)),
        attention=bool(_ATTENTION.search(name)),
        reformat=reformat,
        region=region,
        ms=ms,
    )


def _shares(timed: Sequence[Layer], total: float | None) -> dict[str, float]:
    """Share of the time by precision; regions and reformats under their own names."""
    if not total:
        return {}
    shares: Counter[str] = Counter()
    for layer in timed:
        key = "region" if layer.region else "reformat" if layer.reformat else layer.precision or "other"
        shares[key] += (layer.ms or 0.0) / total  # type: ignore[assignment]
    return dict(sorted(shares.items(), key=lambda pair: -pair[1]))


def _with_verdict(audit: Audit, precision: str, ranges: str) -> Audit:
    """The audit with its sentences."""
    lines = []
    counted = ", ".join(f"{count} in {name.upper()}" for name, count in audit.gemms.items())
    share = audit.time_share.get("region", 0.0)
    if precision.startswith("int8") and not audit.int8_gemms:
        lines.append(_nothing_int8(audit, ranges))
    elif counted:
        lines.append(f"Matrix products: {counted}.")
    if audit.regions:
        part = f" and take {100 * share:.0f} % of the time" if share else ""
        many = len(audit.regions) > 1
        lines.append(
            f"{len(audit.regions)} Myelin region{'s' if many else ''} hide{'' if many else 's'} what is inside"
            f"{part if many else part.replace('and take', 'and takes')}."
        )
    if audit.fused_attention is not None and (audit.layers or audit.fused_attention):
        fused = audit.fused_attention
        word = "kernel" if fused == 1 else "kernels"
        lines.append(f"Attention is fused in {fused} {word}." if fused else "Attention is not fused.")
    if audit.reformats:
        cost = audit.time_share.get("reformat")
        word = "reformat takes" if audit.reformats == 1 else "reformats take"
        lines.append(f"{audit.reformats} {word} {100 * (cost or 0):.0f} % of the time.")
    if audit.scales_missing:
        lines.append(f"{len(audit.scales_missing)} tensors had no scale.")
    return replace(audit, verdict=tuple(lines))


def _nothing_int8(audit: Audit, ranges: str) -> str:
    """The sentence on an INT8 engine without INT8."""
    myelin = audit.regions or any(layer.region for layer in audit.layers)
    why = "Myelin took the encoder" if myelin else "TensorRT chose float kernels for every product"
    advice = "use --network api" if ranges == "qdq" else "use Q/DQ or --network api"
    return f"Nothing in this engine is INT8: {why}; {advice}."

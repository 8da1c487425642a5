"""`quantkit profile`: where the time of an encoder layer goes, by precision and sequence length."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.backends.trt.shares import PARTS, PUBLISHED, Shares, layer_shares
from quantkit.environment import variable
from quantkit.errors import BackendError, InputError, QuantkitError
from quantkit.files import check_writable, read_bytes, write_json, write_text
from quantkit.report.stacked import stacked_bars
from quantkit.types import Watcher

if TYPE_CHECKING:
    from quantkit.backends.trt.engine import TrtEngine

NO_OVERLAP = "QUANTKIT_NO_OVERLAP"
"""Set while engines are traced: kernels of the plugins otherwise begin before the one in front of them has ended."""


def profile_model(
    model: str,
    *,
    precisions: Sequence[str],
    lengths: Sequence[int],
    batch: int,
    network: str,
    table: Path | None,
    watcher: Watcher,
    out: Path | None = None,
) -> dict[str, Any]:
    """Builds an engine for every precision and length, and traces it; see `report`.

    Args:
        model: model folder with at least as many positions as the longest length.
        precisions: "fp32", "fp16", "int8", ...
        lengths: sequence lengths.
        batch: sequences a batch.
        network: "onnx", "api" or "plugins"; see `BuildOptions`.
        table: scales for INT8.
        watcher: who is told how it goes.
        out: folder for profile.json and profile.svg.

    Raises:
        QuantkitError: what concerns every engine; what concerns one is that row's reason.
    """
    if batch < 1 or not lengths or min(lengths) < 2:
        raise InputError(f"A batch of {batch} sequences of {list(lengths)} tokens cannot be profiled.")
    if out is not None:
        check_writable(out)
    if any(p.startswith("int8") for p in precisions) and table is None:
        raise InputError("INT8 needs a calibration table.", "Name one with --table, or leave int8 out.")
    rows: list[dict[str, Any]] = []
    with variable(NO_OVERLAP, "1"), watcher.stage("build and trace engines") as progress:
        total = len(precisions) * len(lengths)
        for length in lengths:
            for precision in precisions:
                rows.append(_row(model, precision, length, batch, network, table))
                progress(len(rows), total)
    return report(rows, {"model": model, "batch": batch, "network": network}, out)


def profile_files(paths: Sequence[Path], out: Path | None = None) -> dict[str, Any]:
    """The same from kernels that were traced before: JSON objects name -> list of [kernel, milliseconds].

    Raises:
        InputError: a file holds something else.
    """
    rows = []
    for path in paths:
        for name, kernels in read_kernels(path).items():
            rows.append({"name": name, **_shares(kernels)})
    return report(rows, {"files": [str(path) for path in paths]}, out)


def read_kernels(path: Path) -> dict[str, list[tuple[str, float]]]:
    """Traced kernels: an object of lists, or an inspection's "kernels"; InputError when it is neither."""
    try:
        value = read_bytes(path, json.loads)
        if isinstance(value, Mapping) and "kernels" in value:
            value = {path.stem: value["kernels"]}
        return {str(name): [(str(kernel), float(ms)) for kernel, ms in kernels] for name, kernels in value.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path} holds no traced kernels: expected lists of [kernel, milliseconds].") from error


def report(rows: list[dict[str, Any]], about: Mapping[str, Any], out: Path | None) -> dict[str, Any]:
    """Rows as JSON values, with the published shares beside; also written to `out` as profile.json and profile.svg."""
    published = {str(length): shares for length, shares in PUBLISHED.items()}
    value = {"profile": dict(about), "rows": rows, "published": published}
    if out is not None:
        write_json(out / "profile.json", value)
        bars = {row["name"]: row["ms"] for row in rows if "ms" in row}
        write_text(out / "profile.svg", stacked_bars("Time of one encoder layer", PARTS, bars, "ms"))
    return value


def _row(model: str, precision: str, length: int, batch: int, network: str, table: Path | None) -> dict[str, Any]:
    """One engine's row; a failure is its reason."""
    name = f"{precision}, {length} tokens"
    about = {"name": name, "precision": precision, "seq_len": length}
    try:
        with _engine(model, precision, length, batch, network, table) as engine:
            kernels = [(kernel.name, kernel.ms or 0.0) for kernel in engine.audit.kernels] if engine.audit else []
            return {**about, **_shares(kernels), "computes": engine.compute}
    except QuantkitError as error:
        return {**about, "reason": str(error)}


def _shares(kernels: Sequence[tuple[str, float]]) -> dict[str, Any]:
    """The shares as JSON values, or the reason why there are none."""
    try:
        found: Shares = layer_shares(kernels)
    except BackendError as error:
        return {"reason": str(error)}
    return found.as_json()


def _engine(model: str, precision: str, length: int, batch: int, network: str, table: Path | None) -> TrtEngine:
    """The engine of one row."""
    from quantkit.backends.trt.backend import DEFAULT_RANGES, TensorRTBackend
    from quantkit.backends.trt.options import Source
    from quantkit.network.model import load_model
    from quantkit.tables.table import load_table

    backend = TensorRTBackend()
    int8 = precision.startswith("int8")
    options = backend.options_for(
        precision, ranges=DEFAULT_RANGES.get(network, "cache") if int8 else "", network=network
    )
    given = load_table(table) if int8 and table is not None else None
    if options.network == "onnx":
        return backend.build(load_model(Path(model)).fixed(batch, length), options, given)
    return backend.build(Source("", model, batch=batch, seq_len=length), options, given)

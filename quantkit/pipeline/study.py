"""`quantkit calibrate --study`: how ranges change with the number of samples and their order, and how many are enough.

One pass over the sample keeps snapshots whenever the number of sentences has doubled: the first n sentences of the
sample are themselves a random draw. Further passes show the same batches in other orders, and the same sentences in
other batches. A method's ranges are compared tensor by tensor with those of the whole sample; tensors that only
reorder another are left out, so that nothing counts twice.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from quantkit.calibrate import Calibrator, calibrate_histograms
from quantkit.collect.histogram import Histogram
from quantkit.data.batches import TokenBatches
from quantkit.errors import InputError, ModelError
from quantkit.files import write_json
from quantkit.pipeline.calibration import Collected, calibrators_for, histograms_path, provenance_of
from quantkit.pipeline.collection import batches_of, collect_snapshots, kinds_of
from quantkit.pipeline.settings import Settings
from quantkit.pipeline.tables import parameters_of
from quantkit.pipeline.workspace import Workspace
from quantkit.types import FeedDict, Watcher

if TYPE_CHECKING:
    from quantkit.network.kinds import TensorKinds

TYPE, VERSION = "quantkit.study", 1
ORDERS = 2
"""Other orders of the batches that are tried unless another number is asked for."""
TOLERANCE = 0.02
"""Ranges this close to those of the whole sample count as the same: INT8's noise then changes by less than 0.2 dB."""
QUANTILE = 95.0
"""Per cent of the tensors that must be that close for a number of samples to be enough."""

ORDER, BATCH = "other order", "other batch size"

Histograms = Mapping[str, Histogram]
Amaxes = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Pass:
    """One walk through the sentences: what was different, how long it took, what it gave."""

    what: str
    batch: int
    seconds: float
    histograms: Histograms


def study(settings: Settings, watcher: Watcher, orders: int = ORDERS) -> dict[str, Any]:
    """The whole study, written to study.json when there is an --out.

    Args:
        settings: as for `calibrate`; every method asked for is studied.
        watcher: who is told how it goes.
        orders: how many other orders of the batches are tried.

    Returns:
        The content of study.json; docs/calibration-methods.md describes it.

    Raises:
        InputError: a negative number of orders, or a sample of one batch only.
        CalibrationError: NaN or Inf in an activation.
    """
    if orders < 0:
        raise InputError(f"{orders} other orders were asked for; 0 is the least.")
    if settings.shared:
        raise InputError("A study is made by this process alone.", "Leave out --workers and --scheduler.")
    calibrators = calibrators_for(settings)
    workspace = Workspace(settings, watcher)
    batches = batches_of(workspace)
    if len(batches) < 2:
        raise InputError(
            f"{batches.examples} sentences make one batch of {settings.batch}: there is nothing to compare.",
            "Give more with --calib-samples, or use a smaller --batch.",
        )
    snapshots, passes = collect_all(workspace, batches, orders)
    aliases = workspace.network.aliases()
    names = [name for name in passes[0].histograms if name not in aliases]
    rows = []
    with watcher.stage("compute ranges") as progress:
        for done, calibrator in enumerate(calibrators):
            rows.append(study_method(calibrator, names, kinds_of(workspace), snapshots, passes))
            progress(done + 1, len(calibrators))
    provenance = provenance_of(workspace, batches)
    result = {
        "_type": TYPE,
        "_version": VERSION,
        "provenance": {k: v for k, v in provenance.to_dict().items() if k not in ("method", "parameters")},
        "tensors": len(names),
        "tolerance": TOLERANCE,
        "quantile": QUANTILE,
        "passes": [{"what": p.what, "batch": p.batch, "seconds": round(p.seconds, 3)} for p in passes],
        "methods": rows,
        "verdict": [*(row["verdict"] for row in rows), *order_verdicts(rows, passes, settings.order_free)],
    }
    if settings.out is not None:
        write_json(settings.out / "study.json", result)
    return result


def collect_all(workspace: Workspace, batches: TokenBatches, orders: int) -> tuple[dict[int, Histograms], list[Pass]]:
    """Snapshots by number of sentences, and the passes: first the sample's own order, whose histograms are kept."""
    settings, total = workspace.settings, orders + 2
    passes, started = [], time.perf_counter()
    marks = snapshot_marks(batches)
    found = collect_snapshots(workspace, batches, set(marks), f"pass 1 of {total}: as drawn")
    passes.append(Pass("as drawn", settings.batch, time.perf_counter() - started, found[len(batches)]))
    keep(workspace, batches, passes[0])
    feeds = list(batches)
    draw = random.Random(settings.seed)
    for number in range(orders):
        shuffled = sorted(feeds, key=lambda _: draw.random())
        passes.append(another_pass(workspace, shuffled, ORDER, f"pass {number + 2} of {total}: other order"))
    other = TokenBatches(batches.encoded, max(1, settings.batch // 2), settings.seq_len, fill="short")
    try:
        if settings.batch > 1:
            title = f"pass {total} of {total}: batches of {other.batch}"
            passes.append(another_pass(workspace, list(other), BATCH, title))
    except ModelError as error:
        workspace.watcher.say(f"No other batch size is tried: {error.message}")
    return {marks[count]: histograms for count, histograms in found.items()}, passes


def snapshot_marks(batches: TokenBatches) -> dict[int, int]:
    """Number of batches -> number of sentences, at every doubling from one batch on, and at the end."""
    counts = [1]
    while counts[-1] * 2 < len(batches):
        counts.append(counts[-1] * 2)
    return {count: sum(batches.valid[:count]) for count in (*counts, len(batches))}


def another_pass(workspace: Workspace, feeds: Sequence[FeedDict], what: str, title: str) -> Pass:
    """A pass over batches in the order given."""
    started = time.perf_counter()
    (histograms,) = collect_snapshots(workspace, feeds, (), title).values()
    return Pass(what, max(len(feed["input_ids"]) for feed in feeds), time.perf_counter() - started, histograms)


def keep(workspace: Workspace, batches: TokenBatches, first: Pass) -> None:
    """Puts the first pass where `calibrate` finds it: it is the very pass that `calibrate` would make."""
    provenance, kinds = provenance_of(workspace, batches), kinds_of(workspace)
    path = histograms_path(provenance)
    Collected(first.histograms, provenance, first.seconds, False, path, kinds.kinds, kinds.unmasked).save(path)


def study_method(
    calibrator: Calibrator,
    names: Sequence[str],
    kinds: TensorKinds,
    snapshots: Mapping[int, Histograms],
    passes: Sequence[Pass],
) -> dict[str, Any]:
    """One method's part of the result."""
    wanted = dict.fromkeys([*names, *kinds.unmasked.values()])

    def ranges(histograms: Histograms) -> Amaxes:
        chosen = {name: histograms[name] for name in wanted}
        found = calibrate_histograms(chosen, calibrator, kinds=kinds.kinds, unmasked=kinds.unmasked)
        return np.array([found[name].amax for name in names])

    by_count = {count: ranges(histograms) for count, histograms in snapshots.items()}
    full = by_count[max(by_count)]
    by_samples = [{"samples": count, **spread([full, seen], full, names)} for count, seen in by_count.items()]
    row: dict[str, Any] = {
        "method": calibrator.name,
        "parameters": parameters_of(calibrator),
        "by_samples": by_samples,
        "by_order": None,
        "by_batch": None,
        "enough": enough(by_samples),
        "verdict": sample_verdict(calibrator.name, by_samples),
    }
    for key, what in (("by_order", ORDER), ("by_batch", BATCH)):
        others = [ranges(p.histograms) for p in passes if p.what == what]
        if others:
            row[key] = {"passes": len(others), **spread([full, *others], full, names)}
    return row


def spread(variants: Sequence[Amaxes], full: Amaxes, names: Sequence[str]) -> dict[str, Any]:
    """How far variants of the ranges lie apart, as shares of the whole sample's: median, 95th percentile, worst.

    A tensor that was zero throughout has no range to compare and counts as equal.
    """
    gap = np.max(variants, axis=0) - np.min(variants, axis=0)
    shares = np.divide(gap, full, out=np.zeros_like(gap), where=full > 0)
    worst = int(np.argmax(shares))
    return {
        "median": float(np.median(shares)),
        "p95": float(np.percentile(shares, QUANTILE, method="higher")),
        "worst": float(shares[worst]),
        "tensor": names[worst] if shares[worst] > 0 else "",
    }


def enough(by_samples: Sequence[Mapping[str, Any]]) -> int | None:
    """The fewest samples from which on all larger prefixes are within the tolerance; None when only all of them are."""
    found = None
    for row in reversed(by_samples[:-1]):
        if row["p95"] > TOLERANCE:
            break
        found = int(row["samples"])
    return found


def sample_verdict(method: str, by_samples: Sequence[Mapping[str, Any]]) -> str:
    """How many samples a method needs, in words."""
    whole, found = by_samples[-1]["samples"], enough(by_samples)
    share = f"{QUANTILE:g} % of the ranges"
    if found is not None:
        return (
            f"{found} samples are enough for {method}: from there on {share} stay within "
            f"{100 * TOLERANCE:g} % of those of {whole}."
        )
    before = by_samples[-2]
    return (
        f"{whole} samples may not be enough for {method}: with {before['samples']}, {share} lie within "
        f"{100 * before['p95']:.1f} % of those of {whole}."
    )


def order_verdicts(rows: Sequence[Mapping[str, Any]], passes: Sequence[Pass], order_free: bool) -> list[str]:
    """What order and batching do, in words, for as much as was tried."""
    verdicts = []
    orders = sum(p.what == ORDER for p in passes)
    tried = "another order of the batches" if orders == 1 else f"{orders} other orders of the batches"
    for key, cause in (("by_order", tried), ("by_batch", "another batch size")):
        found = [row for row in rows if row[key]]
        if not found:
            continue
        worst = max(found, key=lambda row: (row[key]["p95"], row[key]["worst"]))
        part = worst[key]
        share = f"{QUANTILE:g} % of the ranges by up to {100 * part['p95']:.1f} % ({worst['method']})"
        if part["worst"] == 0:
            why = ": power-of-two ranges depend on neither, and none moved" if order_free else ""
            verdicts.append(f"Trying {cause} moves no range{why}.")
        elif order_free:
            verdicts.append(
                f"Trying {cause} moves {share}: histograms over power-of-two ranges depend on neither, so what moved "
                "is the backend's arithmetic."
            )
        else:
            verdicts.append(f"Trying {cause} moves {share}; with --order-free histograms depend on neither.")
    return verdicts

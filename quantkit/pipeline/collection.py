"""The pass over the data: every activation of every batch into its histogram."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import groupby, islice
from typing import TYPE_CHECKING

from quantkit.calibrate.base import check_histogram
from quantkit.collect.binning import MAX_FLOAT
from quantkit.collect.collector import Collector
from quantkit.collect.histogram import MASK_LOGITS, Histogram
from quantkit.data.batches import TokenBatches
from quantkit.data.tokenize import encode
from quantkit.evaluate.accuracy import inputs_for
from quantkit.pipeline.settings import threads_of
from quantkit.pipeline.workspace import Workspace
from quantkit.types import BatchSource

if TYPE_CHECKING:
    from quantkit.network.kinds import TensorKinds
    from quantkit.pipeline.unfinished import PassCheckpoint


def batches_of(workspace: Workspace) -> TokenBatches:
    """The calibration sample as token batches of the fixed shape."""
    settings = workspace.settings
    encoded = encode(workspace.tokenizer, workspace.sample.examples.texts, settings.seq_len)
    return TokenBatches(encoded, settings.batch, settings.seq_len, fill="short")


def kinds_of(workspace: Workspace) -> TensorKinds:
    """What each activation of the model is."""
    from quantkit.network.kinds import classify

    return classify(workspace.network.index)


def collect_batches(
    workspace: Workspace, batches: BatchSource, checkpoint: PassCheckpoint | None = None
) -> dict[str, Histogram]:
    """Histogram of every activation over all batches; memory does not grow with the data.

    With a checkpoint the pass goes on from it, and leaves one when it is interrupted.

    Raises:
        CalibrationError: NaN or Inf in an activation.
    """
    return collect_snapshots(workspace, batches, checkpoint=checkpoint)[len(batches)]


def collect_snapshots(
    workspace: Workspace,
    batches: BatchSource,
    at: Collection[int] = (),
    title: str = "collect activations",
    checkpoint: PassCheckpoint | None = None,
) -> dict[int, dict[str, Histogram]]:
    """One pass, with what had been counted on the way.

    Args:
        workspace: model, backend and settings.
        batches: token batches, in the order in which they are to be seen.
        at: numbers of batches after which a snapshot is kept; the one after the last batch always is.
        title: of the progress bar.
        checkpoint: where an interrupted pass is kept; what it has seen already has no snapshots.

    Returns:
        Number of batches seen -> tensor name -> histogram.

    Raises:
        CalibrationError: NaN or Inf in an activation.
    """
    from quantkit.network.kinds import MASK, MASKED_LOGITS

    threads, kinds, total = threads_of(workspace.settings), kinds_of(workspace), len(batches)
    hiding = {name for name, kind in kinds.kinds.items() if kind in (MASK, MASKED_LOGITS)}
    snapshots: dict[int, dict[str, Histogram]] = {}
    with ExitStack() as stack, workspace.watcher.stage(title) as progress:
        collectors = [stack.enter_context(collector) for collector in collectors_for(workspace, kinds.masked)]
        names = [name for collector in collectors for name in collector.collected]
        seen = checkpoint.resume(collectors, total) if checkpoint is not None else 0
        for shape, feeds in groupby(islice(batches, seen, None), key=lambda feed: feed["input_ids"].shape):
            with workspace.backend.tap(workspace.network.fixed(*shape), names, threads=threads) as runner:
                for feed in feeds:
                    tensors = runner.infer(inputs_for(runner, feed))
                    for collector in collectors:
                        collector.update(tensors, feed["attention_mask"])
                    seen += 1
                    progress(seen, total)
                    if seen in at and seen < total:
                        snapshots[seen] = snapshot(workspace.network.activations(), collectors, hiding)
                    if checkpoint is not None:
                        checkpoint.offer(collectors, seen)
        snapshots[total] = snapshot(workspace.network.activations(), collectors, hiding)
    return snapshots


def collectors_for(workspace: Workspace, masked: Collection[str]) -> list[Collector]:
    """A collector for all activations; with power-of-two ranges a second one sets mask logits apart.

    With TensorRT's ranges masked logits are counted like any other tensor, because TensorRT does so.
    """
    settings, network = workspace.settings, workspace.network
    apart = frozenset(masked) if settings.range_mode == "pow2" else frozenset()
    names = network.activations()
    groups = (([n for n in names if n not in apart], None), ([n for n in names if n in apart], MASK_LOGITS))
    return [
        Collector(
            group,
            mode=settings.range_mode,
            aliases=network.aliases(),
            axes=network.axes(),
            ignore_padding=settings.ignore_padding,
            mask_logits=mask_logits,
            threads=threads_of(settings),
        )
        for group, mask_logits in groups
        if group
    ]


def snapshot(names: Sequence[str], collectors: Sequence[Collector], hiding: Collection[str]) -> dict[str, Histogram]:
    """What the collectors have counted so far, in the order of `names`.

    Infinities in the tensors of `hiding`, attention masks and masked logits, are the mask's -inf: no range holds them,
    and they say nothing about one. They are in no bin; here they become mask logits that were set apart.

    Raises:
        CalibrationError: NaN or Inf in an activation.
    """
    found = {name: histogram for collector in collectors for name, histogram in collector.histograms().items()}
    for name in names:
        one = found[name]
        if one.inf_count and name in hiding and one.mask_logits is None and one.minimum > -MAX_FLOAT:
            found[name] = replace(one, inf_count=0, masked_count=one.inf_count, mask_logits=-MAX_FLOAT)
        check_histogram(found[name], name)
    return {name: found[name] for name in names}

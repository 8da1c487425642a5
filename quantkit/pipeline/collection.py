"""The pass over the data: every activation of every batch into its histogram."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import groupby, islice
from typing import TYPE_CHECKING

from quantkit.calibrate.base import check_histogram
from quantkit.collect.binning import MAX_FLOAT
from quantkit.collect.collector import Collector
from quantkit.collect.histogram import MASK_LOGITS, Histogram, Mode
from quantkit.data.batches import TokenBatches
from quantkit.data.tokenize import encode
from quantkit.evaluate.accuracy import inputs_for
from quantkit.pipeline.settings import threads_of
from quantkit.pipeline.stretches import by_segment, plan_pass, run_pass
from quantkit.pipeline.workspace import Workspace
from quantkit.types import BatchSource, FeedDict, Runner

if TYPE_CHECKING:
    from quantkit.network.graph import Network
    from quantkit.network.kinds import TensorKinds
    from quantkit.pipeline.unfinished import PassCheckpoint

HISTOGRAM_BYTES = 96 << 10
"""Bytes a tensor: its histogram, a snapshot of it, and both once more while a file is written."""


def batches_of(workspace: Workspace) -> TokenBatches:
    """The calibration sample as token batches of the fixed shape."""
    settings = workspace.settings
    encoded = encode(workspace.tokenizer, workspace.sample.examples.texts, settings.seq_len)
    return TokenBatches(encoded, settings.batch, settings.seq_len, fill="short")


def kinds_of(workspace: Workspace) -> TensorKinds:
    """What each activation of the model is."""
    from quantkit.network.kinds import classify

    return classify(workspace.network.index)


def hiding_of(workspace: Workspace) -> frozenset[str]:
    """Tensors whose infinities are the attention mask's."""
    from quantkit.network.kinds import MASK, MASKED_LOGITS

    return frozenset(name for name, kind in kinds_of(workspace).kinds.items() if kind in (MASK, MASKED_LOGITS))


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
    masked, hiding, total = kinds_of(workspace).masked, hiding_of(workspace), len(batches)
    snapshots: dict[int, dict[str, Histogram]] = {}
    with ExitStack() as stack, workspace.watcher.stage(title) as progress:
        whole = [stack.enter_context(collector) for collector in workspace_collectors(workspace, masked)]
        names = [name for collector in whole for name in collector.collected]
        plan = plan_pass(workspace, batches, names, HISTOGRAM_BYTES * len(names)) if workspace.settings.memory else None
        if plan is None or len(plan.segments) == 1:
            collectors = whole
            seen = checkpoint.resume(collectors, total) if checkpoint is not None else 0
            passes = all_at_once(workspace, islice(batches, seen, None), collectors, seen)
        else:
            parts = by_segment(workspace.network.activations(), workspace.network.aliases(), plan)
            grouped = [
                [stack.enter_context(collector) for collector in workspace_collectors(workspace, masked, part)]
                for part in parts
            ]
            collectors = [collector for group in grouped for collector in group]
            seen = checkpoint.resume(collectors, total) if checkpoint is not None else 0

            def update(number: int, tensors: FeedDict, feed: FeedDict) -> None:
                for collector in grouped[number]:
                    collector.update(tensors, feed["attention_mask"])

            passes = run_pass(workspace, islice(batches, seen, None), names, plan, update, seen, at)
        for done in passes:
            progress(done, total)
            if done in at and done < total:
                snapshots[done] = snapshot(workspace.network.activations(), collectors, hiding)
            if checkpoint is not None:
                checkpoint.offer(collectors, done)
        snapshots[total] = snapshot(workspace.network.activations(), collectors, hiding)
    return snapshots


def all_at_once(
    workspace: Workspace, feeds: Iterable[FeedDict], collectors: Sequence[Collector], seen: int
) -> Iterator[int]:
    """Runs the batches with all tensors shown; gives the number of batches seen after each."""
    names = [name for collector in collectors for name in collector.collected]
    threads = threads_of(workspace.settings)
    for shape, group in groupby(feeds, key=lambda feed: feed["input_ids"].shape):
        with workspace.backend.tap(workspace.network.fixed(*shape), names, threads=threads) as runner:
            for feed in group:
                count(runner, feed, collectors)
                seen += 1
                yield seen


def count(runner: Runner, feed: FeedDict, collectors: Sequence[Collector]) -> None:
    """Runs one batch and counts its activations."""
    tensors = runner.infer(inputs_for(runner, feed))
    for collector in collectors:
        collector.update(tensors, feed["attention_mask"])


def workspace_collectors(
    workspace: Workspace, masked: Collection[str], names: Sequence[str] | None = None
) -> list[Collector]:
    """The collectors that the settings ask for, of all activations or those named."""
    settings = workspace.settings
    threads = threads_of(settings)
    return collectors_for(workspace.network, masked, settings.range_mode, settings.ignore_padding, threads, names)


def collectors_for(
    network: Network,
    masked: Collection[str],
    mode: Mode,
    ignore_padding: bool,
    threads: int,
    names: Sequence[str] | None = None,
) -> list[Collector]:
    """A collector for activations, all or those named; with power-of-two ranges a second one sets mask logits apart.

    With TensorRT's ranges masked logits are counted like any other tensor, because TensorRT does so.
    """
    apart = frozenset(masked) if mode == "pow2" else frozenset()
    names = network.activations() if names is None else names
    groups = (([n for n in names if n not in apart], None), ([n for n in names if n in apart], MASK_LOGITS))
    return [
        Collector(
            group,
            mode=mode,
            aliases=network.aliases(),
            axes=network.axes(),
            ignore_padding=ignore_padding,
            mask_logits=mask_logits,
            threads=threads,
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

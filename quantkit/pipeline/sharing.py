"""The client's side of a shared job: what is sent to workers, and what becomes of their answers.

Shared are: the collecting pass where its histograms are order-free, evaluations, and the candidates of a search. Not
shared are TensorRT's ranges (they depend on the order of the batches), the moments of refinement (sums of floats: their
bits depend on the order too), and every timing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from quantkit.backends import get_backend
from quantkit.collect.histogram import Histogram
from quantkit.collect.store import unpack
from quantkit.data.batches import TokenBatches
from quantkit.distributed.cluster import PACKAGES, Cluster, value_of
from quantkit.errors import InputError
from quantkit.pipeline.collection import hiding_of, kinds_of, snapshot, workspace_collectors
from quantkit.pipeline.settings import Settings, answering_threads
from quantkit.pipeline.shards import NETWORK, collect_shard, cut, shard_size
from quantkit.pipeline.unfinished import ShardCheckpoint
from quantkit.pipeline.workspace import Workspace


@contextmanager
def cluster_for(
    settings: Settings, given: Cluster | None = None, backends: Sequence[str] = ()
) -> Iterator[Cluster | None]:
    """The workers that the settings ask for, let go of at the end; None without.

    Args:
        settings: with the workers.
        given: workers that are there already; they stay with their owner.
        backends: names of those that are used; none means the one of the settings.

    Raises:
        InputError: no backend's work can be shared.
        MissingDependencyError: Dask is not installed.
        BackendError: the scheduler cannot be reached.
    """
    if given is not None or not settings.shared:
        yield given
        return
    usable = [backend for name in backends or (settings.backend,) if (backend := get_backend(name)).shareable]
    if not usable:
        raise InputError(
            f"The {settings.backend} backend works on this machine's device, and shares no work.",
            "Leave out --workers and --scheduler, or choose openvino or onnxruntime.",
        )
    packages = (*PACKAGES, *(package for backend in usable for package in backend.packages))
    with Cluster(settings.workers, settings.scheduler, answering_threads(settings), packages) as cluster:
        cluster.check()
        yield cluster


def collect_shared(
    workspace: Workspace, cluster: Cluster, batches: TokenBatches, checkpoint: ShardCheckpoint
) -> dict[str, Histogram]:
    """`collect_batches` by workers; the histograms are the same, bit for bit, for any number of them.

    Raises:
        CalibrationError: NaN or Inf in an activation.
        BackendError: the workers are gone.
    """
    settings, masked, total = workspace.settings, kinds_of(workspace).masked, len(batches)
    spec = {
        "backend": workspace.backend.name,
        "threads": cluster.threads,
        "masked": sorted(masked),
        "ignore_padding": settings.ignore_padding,
    }
    size = shard_size(total)
    merged, done = checkpoint.resume(size, total)
    numbers = [number for number in range(-(-total // size)) if number not in done]
    shards = ((spec, feeds) for number, feeds in enumerate(cut(batches, size)) if number not in done)
    with workspace.watcher.stage("collect activations") as progress:
        for place, outcome in cluster.map(collect_shard, shards, network_keys(workspace, cluster)):
            part = unpack(value_of(outcome))
            merged = {name: merged[name].merge(histogram) for name, histogram in part.items()} if merged else part
            done.add(numbers[place])
            progress(min(total, len(done) * size), total)
            checkpoint.offer(merged, done, size, total)
    collectors = workspace_collectors(workspace, masked)
    for collector in collectors:
        collector.resume(merged, total)
    return snapshot(workspace.network.activations(), collectors, hiding_of(workspace))


def network_keys(workspace: Workspace, cluster: Cluster) -> dict[str, str]:
    """The network as a content for the workers."""
    kept = ("network content", id(cluster))
    if kept not in workspace.kept:
        workspace.kept[kept] = cluster.upload(workspace.network.proto.SerializeToString())
    return {NETWORK: workspace.kept[kept]}

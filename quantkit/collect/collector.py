"""One pass over the data, a histogram for every tensor, memory that does not grow.

Feed it the tensors of one batch after the other; what it keeps is 16 KiB a tensor. Tensors that only reshape or
transpose another ("aliases") share its histogram and are not counted again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy.typing as npt

from quantkit.collect.binning import Mode, as_float32
from quantkit.collect.histogram import Histogram, HistogramAccumulator
from quantkit.collect.runs import AXIS_ROLES, Axes, Runs, TokenMask
from quantkit.errors import CalibrationError, InputError
from quantkit.types import FeedDict


class Collector:
    """Histograms of the tensors `names` over any number of batches; a context manager (it owns threads).

    Args:
        names: the tensors wanted, each once; those in `aliases` are answered by their source.
        mode: "tensorrt" or "pow2", see quantkit/collect/histogram.py.
        aliases: tensor -> the tensor of `names` (or another alias) with the same values.
        axes: tensor -> the role of each dimension: "batch", "sequence" or None.
        ignore_padding: leave out positions whose attention mask is 0. Needs `axes`; a tensor without a "sequence" axis
            (the pooler's, the logits) is counted whole.
        mask_logits: values <= this negative number count as mask logits, see quantkit/collect/histogram.py.
        threads: how many tensors are counted at the same time.

    Raises:
        InputError: names repeat, an alias leads nowhere, or axes or threads make no sense.
    """

    def __init__(
        self,
        names: Iterable[str],
        *,
        mode: Mode = "tensorrt",
        aliases: Mapping[str, str] | None = None,
        axes: Mapping[str, Axes] | None = None,
        ignore_padding: bool = False,
        mask_logits: float | None = None,
        threads: int = 2,
    ) -> None:
        self.names = tuple(names)
        self._sources = {name: _source(name, aliases or {}) for name in self.names}
        self._axes = {name: tuple(roles) for name, roles in (axes or {}).items()}
        self.ignore_padding = ignore_padding
        self.batches = 0
        self._check(threads)
        collected = dict.fromkeys(self._sources.values())
        self._accumulators = {n: HistogramAccumulator(mode, mask_logits=mask_logits) for n in collected}
        self._threads = threads
        self._pool: ThreadPoolExecutor | None = None

    def _check(self, threads: int) -> None:
        if len(set(self.names)) != len(self.names):
            twice = sorted({name for name in self.names if self.names.count(name) > 1})
            raise InputError(f"Tensors to collect are named more than once: {', '.join(twice)}.")
        if threads < 1:
            raise InputError(f"The number of threads is at least 1, not {threads}.")
        for name, roles in self._axes.items():
            if not set(roles) <= set(AXIS_ROLES) or roles.count("batch") > 1:
                raise InputError(f"The axes of {name} are {roles}; each is 'batch' (once), 'sequence' or None.")
        if self.ignore_padding and (bare := [n for n in self._sources.values() if n not in self._axes]):
            raise InputError(
                f"Padding cannot be left out of {bare[0]}: its axes are not known.",
                "Give axes for every tensor, or collect with ignore_padding=False.",
            )

    @classmethod
    def from_histograms(cls, histograms: Mapping[str, Histogram], *, batches: int = 0, **options: Any) -> Collector:
        """A collector that continues from saved histograms (`histograms()` of another), all of one mode.

        Args:
            histograms: tensor -> what was counted so far; aliases among them may be left out.
            batches: how many batches that were.
            options: `aliases`, `axes`, `ignore_padding`, `threads` as for the class; mode and mask_logits are those of
                the histograms.

        Raises:
            InputError: the histograms differ in mode or mask threshold, or there are none.
        """
        kinds = {(h.mode, h.mask_logits) for h in histograms.values()}
        if len(kinds) != 1:
            raise InputError(f"A collector continues from histograms of one mode and mask threshold, not {len(kinds)}.")
        mode, mask_logits = kinds.pop()
        collector = cls(histograms, mode=mode, mask_logits=mask_logits, **options)
        collector.check_state(histograms)
        collector.resume(histograms, batches)
        return collector

    def state(self) -> dict[str, Histogram]:
        """What `resume` takes: the histogram of every tensor that is collected, without aliases."""
        return {name: accumulator.snapshot() for name, accumulator in self._accumulators.items()}

    def check_state(self, histograms: Mapping[str, Histogram]) -> None:
        """Refuses histograms that this collector cannot go on from.

        Raises:
            InputError: a tensor is missing, or of another mode or mask threshold.
        """
        for name, accumulator in self._accumulators.items():
            if name not in histograms:
                raise InputError(f"The saved histograms lack {name}, which is to be collected.")
            mine, saved = accumulator.snapshot(), histograms[name]
            if (mine.mode, mine.mask_logits) != (saved.mode, saved.mask_logits):
                raise InputError(f"The saved histogram of {name} is of another mode or mask threshold.")

    def resume(self, histograms: Mapping[str, Histogram], batches: int) -> None:
        """Goes on from `state()` of a collector with the same options, which had seen `batches` batches."""
        for name in self._accumulators:
            self._accumulators[name] = HistogramAccumulator(start=histograms[name])
        self.batches = batches

    @property
    def collected(self) -> tuple[str, ...]:
        """The tensors that `update` must be given: `names` without aliases."""
        return tuple(self._accumulators)

    def update(self, tensors: FeedDict, mask: npt.ArrayLike | None = None) -> None:
        """Counts one batch.

        Args:
            tensors: name -> float32 array; more than wanted may come.
            mask: (batch, sequence) attention mask, needed with ignore_padding and unused otherwise.

        Raises:
            CalibrationError: a tensor is missing or not float32, or axes and mask do not fit. Nothing is counted then.
        """
        work = self._work(tensors, TokenMask(mask) if mask is not None else None)
        # Large tensors first, so that the threads finish at about the same time.
        work.sort(key=lambda item: -item[1].size)
        queue = deque(work)
        helpers = min(self._threads, len(work)) - 1
        futures = [self._executor().submit(self._drain, queue) for _ in range(helpers)]
        self._drain(queue)
        for future in futures:
            future.result()
        self.batches += 1

    def _work(self, tensors: FeedDict, mask: TokenMask | None) -> list[tuple[str, npt.NDArray[Any], Runs | None]]:
        """What is to be counted: (name, array, runs or None for all of it)."""
        if self.ignore_padding and mask is None:
            raise CalibrationError("Padding cannot be left out without an attention mask.", "Give `mask` to update.")
        work: list[tuple[str, npt.NDArray[Any], Runs | None]] = []
        for name in self._accumulators:
            if name not in tensors:
                raise CalibrationError(
                    f"Batch {self.batches + 1} has no tensor {name!r} ({len(tensors)} others came).",
                    "Every batch must hold every tensor that is collected.",
                )
            try:
                array = as_float32(tensors[name])
                axes = self._axes.get(name, ())
                masked = self.ignore_padding and mask is not None and mask.applies_to(axes)
                work.append((name, array, mask.runs(array, axes) if masked and mask is not None else None))
            except CalibrationError as error:
                raise CalibrationError(f"Tensor {name!r}: {error.message}", error.hint) from error
        return work

    def _drain(self, queue: deque[tuple[str, npt.NDArray[Any], Runs | None]]) -> None:
        """Counts what is left in the queue; run by several threads at once."""
        while True:
            try:
                name, array, runs = queue.popleft()
            except IndexError:
                return
            self._accumulators[name].update(array, runs)

    def histograms(self) -> dict[str, Histogram]:
        """What has been counted so far, for every name in the order given, aliases included."""
        done = {name: accumulator.snapshot() for name, accumulator in self._accumulators.items()}
        return {name: done[source] for name, source in self._sources.items()}

    def _executor(self) -> ThreadPoolExecutor:
        """The helper threads, made when first needed."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads - 1, thread_name_prefix="quantkit-collect")
        return self._pool

    def close(self) -> None:
        """Ends the threads; histograms stay readable, and a later `update` starts new threads."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def __enter__(self) -> Collector:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _source(name: str, aliases: Mapping[str, str]) -> str:
    """The tensor that `name` shares its values with, at the end of a chain of aliases."""
    seen = {name}
    while name in aliases:
        name = aliases[name]
        if name in seen:
            raise InputError(f"The aliases lead in a circle through {name}.")
        seen.add(name)
    return name

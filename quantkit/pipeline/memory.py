"""Working within `--memory`: what the limit means, how much of it is left, and what to say where it is too small.

The limit is one of the process's resident memory. What a step takes is estimated before it begins, from the sizes of
its tensors and weights and from factors that were measured (benchmarks/memory_limit.py measures the whole).
"""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.errors import InputError
from quantkit.network.segments import Segment, Segments
from quantkit.pipeline.sizes import shown
from quantkit.types import Watcher

if TYPE_CHECKING:
    from quantkit.pipeline.workspace import Workspace

MMAP_THRESHOLD, TRIM_THRESHOLD, ARENA_MAX = -3, -1, -8
"""Parameters of GNU's mallopt."""
LARGE, HEAPS = 1 << 20, 2
"""Bytes from which a block is asked of the system alone; heaps that threads share."""
SLACK = 48 << 20
"""Bytes for what is not estimated: Python objects, buffers of libraries, pieces of the heap that stay in use."""
LOADING = 2.6
"""Bytes that loading takes for a byte of the model's file: the file, the graph, the copy of one tensor."""
COMPILING = 6.5
"""Bytes that making and compiling a graph takes for a byte of its weights, while it lasts."""
BUILDING = 9.5
"""The same for an engine, whose graph is quantized and written before."""
HOLDING = 2.3
"""Bytes that a compiled graph keeps for a byte of its weights."""
SCRATCH = 8
"""Tensors of the largest size that a runtime and the counting take beside those that are shown."""
CARRIED = 32
"""Batches that go through a segment before the next one is compiled, where memory allows."""


def resident() -> int:
    """Bytes of resident memory of this process, after what is free has been given back to the system.

    Raises:
        InputError: the system does not tell (only Linux does it in this way).
    """
    trim()
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError) as error:
        raise InputError("This system does not tell how much memory a process uses.", "Leave --memory out.") from error
    import resource

    return pages * resource.getpagesize()


def peak() -> int:
    """Bytes of resident memory that this process had at most."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def trim() -> None:
    """Gives free memory back to the system; without it, what was freed still counts as used."""
    gc.collect()
    with suppress(OSError, AttributeError):
        _libc().malloc_trim(0)


@cache
def give_back_early() -> None:
    """Makes the C library return large blocks to the system as soon as they are free, in this process from here on.

    Otherwise its heap keeps them, and what was freed adds to what is asked for next. It costs page faults.
    """
    with suppress(OSError, AttributeError):
        _libc().mallopt(MMAP_THRESHOLD, LARGE)
        _libc().mallopt(TRIM_THRESHOLD, LARGE)
        _libc().mallopt(ARENA_MAX, HEAPS)


@cache
def _libc() -> Any:
    """The C library; only GNU's has malloc_trim."""
    return ctypes.CDLL("libc.so.6")


def check_room(limit: int, needed: float, what: str) -> None:
    """Refuses a step that takes more than is left.

    Args:
        limit: bytes; 0 is no limit.
        needed: bytes that the step takes beside what is used already.
        what: the step, in words: "Loading the model".

    Raises:
        InputError: with the limit that would do.
    """
    if limit and (whole := resident() + needed + SLACK) > limit:
        raise too_small(limit, whole, what)


def check_engines(workspace: Workspace, count: int) -> None:
    """Refuses a limit under which so many engines cannot be there at the same time.

    Raises:
        InputError: with the limit that would do.
    """
    limit = workspace.settings.memory
    if limit:
        workspace.backend.describe()  # loads the library, which counts
        weights = workspace.network.proto.ByteSize()
        what = "Building the engines one by one" if count == 1 else f"{count} engines at the same time"
        check_room(limit, (BUILDING + HOLDING * (count - 1)) * weights, what)


def tell_peak(limit: int, watcher: Watcher) -> None:
    """Says what was really used, where there is a limit."""
    if limit:
        watcher.say(f"The most memory that was used: {shown(peak())} of {shown(limit)}.")


def too_small(limit: int, needed: float, what: str) -> InputError:
    """The error that says how much is needed; the figure is rounded up to the next 16 MiB."""
    enough = -(-int(needed) // (16 << 20)) * 16
    return InputError(
        f"{what} needs about {shown(enough << 20)} of memory; --memory allows {shown(limit)}.",
        f"Give --memory {enough}M or more, or a smaller --batch or --seq-len.",
    )


def cost_of(segment: Segment) -> float:
    """Bytes that a segment takes at most, while it is compiled or while it runs."""
    running = HOLDING * segment.weight_bytes + segment.tensor_bytes + SCRATCH * segment.largest_bytes
    return max(COMPILING * segment.weight_bytes, running)


def fitting_segments(segments: Segments, limit: int, batches: int, kept: float) -> tuple[list[Segment], int]:
    """As few segments as fit into the limit, and how many batches go through one before the next is compiled.

    Args:
        segments: of the network.
        limit: bytes.
        batches: that there are.
        kept: bytes of what is gathered meanwhile: histograms, moments.

    Returns:
        One segment where the whole network fits.

    Raises:
        InputError: the smallest segment does not fit.
    """
    used = resident() + SLACK + kept
    free, whole = limit - used, segments.whole()
    if cost_of(whole) <= free:
        return [whole], 1
    finest = segments.finest()
    carried = max((segments.bytes_of(segment.end) for segment in finest if segment.end), default=0)
    least = max(map(cost_of, finest))
    if least + carried > free:
        raise too_small(limit, used + least + carried, "Collecting activations")
    rows = max(1, min(CARRIED, batches, int((free - least) // max(1, carried))))
    return merged(segments, finest, free - rows * carried), rows


def merged(segments: Segments, finest: Sequence[Segment], room: float) -> list[Segment]:
    """Neighbours put together while they fit into `room` bytes: fewer graphs to compile."""
    found = [finest[0]]
    for segment in finest[1:]:
        together = segments.joined(found[-1], segment)
        if cost_of(together) <= room:
            found[-1] = together
        else:
            found.append(segment)
    return found

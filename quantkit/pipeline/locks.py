"""Several processes on one cache folder: who comes second waits, and then finds what the first one made.

A lock is a file under CACHE/locks that the operating system locks for a process (filelock: flock, or its counterpart on
Windows). It is released when its holder ends, however it ends; an empty file stays and means nothing. Where files
cannot be locked (some network file systems), work is done twice instead of not at all: every file is written whole, so
that nothing else depends on the lock.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quantkit.files import cache_dir, sha256_json, umask
from quantkit.types import Watcher


@contextmanager
def exclusive(name: str, watcher: Watcher, waiting: str) -> Iterator[None]:
    """A block that one process at a time is in, among all that use this cache folder.

    A job takes the lock of its results folder before that of its histograms, so that no two wait for each other.

    Args:
        name: what is locked, the same words in every process.
        watcher: who is told that there is something to wait for.
        waiting: the sentence that says so.
    """
    from filelock import FileLock, Timeout

    path = cache_dir() / "locks" / f"{sha256_json(name)[:24]}.lock"
    lock = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path, mode=0o666 & ~umask())  # older releases of filelock leave the group out
        try:
            lock.acquire(timeout=0)
        except Timeout:
            watcher.say(waiting)
            lock.acquire()
    except (OSError, NotImplementedError):
        lock = None  # a folder that cannot be written to is told when a result is to be written there
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


@contextmanager
def alone_in(folder: Path | None, watcher: Watcher) -> Iterator[None]:
    """A block whose results in `folder` are never mixed with another job's; without a folder there is nothing to mix.

    Jobs with the same folder run one after the other; one with the same arguments then finds what is finished.
    """
    if folder is None:
        yield
        return
    with exclusive(f"results {folder.resolve()}", watcher, f"Another process is writing to {folder}; waiting for it."):
        yield

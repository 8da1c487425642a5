"""A watcher through which tests step in while a job goes on."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager, suppress

from quantkit.report.terminal import SilentWatcher


class Watching(SilentWatcher):
    """A watcher that calls `act(done)` when a stage whose title begins with `title` goes on."""

    def __init__(self, title: str = "", act=lambda done: None):
        self.title, self.act = title, act
        self.seen: list[int] = []
        self.said: list[str] = []

    @contextmanager
    def stage(self, title):
        def progress(done: int, total: int) -> None:
            if title.startswith(self.title):
                self.seen.append(done)
                self.act(done)

        yield progress

    def say(self, message):
        self.said.append(message)


def kill_a_worker(cluster) -> None:
    """Kills one of the workers of a cluster, the way a full memory does."""
    pid = min(cluster.client.run(os.getpid).values())
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)

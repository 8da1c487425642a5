"""What runs on a worker: a function of quantkit's on one shard, and the contents that it needs.

Contents (a model, a table) are known by their SHA-256. A worker holds the last few of them and what was made of them (a
compiled engine); a task that needs one which is not there says so, and the client sends it. So any worker can take any
shard, one that joined a moment ago too, and no path of the client's needs to exist where the worker runs.
"""

from __future__ import annotations

import hashlib
import signal
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

from quantkit.errors import QuantkitError
from quantkit.report.record import cpu_name, versions

MOST_CONTENTS = 12
"""Contents that a worker holds; those that were not used for longest go first."""
MOST_MADE = 3
"""Things made of contents (models, compiled engines) that a worker holds."""

_contents: OrderedDict[str, bytes] = OrderedDict()
_made: OrderedDict[Any, Any] = OrderedDict()
_busy = threading.RLock()
"""One shard at a time in a process: an engine uses all threads that it was given."""


def dask_setup(_: Any) -> None:
    """Dask calls this in a worker that was started with `--preload`: Ctrl-C is for the client, which ends them."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)


@dataclass(frozen=True)
class Held:
    """The contents that a task named, on the worker.

    Attributes:
        keys: name -> SHA-256.
    """

    keys: Mapping[str, str]

    def __getitem__(self, name: str) -> bytes:
        """The content of that name."""
        return _contents[self.keys[name]]

    def __contains__(self, name: object) -> bool:
        return name in self.keys


Function = Callable[..., Any]
"""A module-level function of (Held, *arguments); Dask sends it by its name."""


@dataclass(frozen=True)
class Outcome:
    """What became of a task: a value; or an error as class, message and hint; or the contents missing at a worker."""

    value: Any = None
    error: tuple[str, str, str] | None = None
    missing: tuple[str, ...] = ()
    worker: str = ""
    cpu: str = ""


def attempt(function: Function, expected: Mapping[str, str], keys: Mapping[str, str], arguments: Any) -> Outcome:
    """Runs a function on a shard.

    Args:
        function: see `Function`.
        expected: package -> version that it must have here, so that the bits are those of the client's packages.
        keys: name -> SHA-256 of the contents that the function needs.
        arguments: the other arguments.
    """
    if wrong := differences(expected, facts()["versions"]):
        return Outcome(error=("InputError", *wrong))
    with _busy:
        if missing := tuple(key for key in keys.values() if key not in _contents):
            return Outcome(missing=missing, worker=str(import_module("distributed").get_worker().address))
        for key in keys.values():
            _contents.move_to_end(key)
        try:
            return Outcome(function(Held(keys), *arguments), cpu=facts()["cpu"])
        except QuantkitError as error:
            # As plain text: an exception's class may want other arguments than those it shows.
            return Outcome(error=(type(error).__name__, error.message, error.hint))


def differences(expected: Mapping[str, str], found: Mapping[str, str]) -> tuple[str, str] | None:
    """Sentence and next step when packages that decide bits have other versions than they should; else None."""
    told = [
        f"{name} {found.get(name, 'missing')} (here {number})"
        for name, number in expected.items()
        if found.get(name) != number
    ]
    if not told:
        return None
    return (
        f"A worker has other packages than this process: {', '.join(told)}; its results could differ.",
        "Install the same versions on every worker.",
    )


@cache
def facts() -> dict[str, Any]:
    """What a client wants to know of a worker, looked up once a process."""
    return {"cpu": cpu_name(), "versions": versions()}


def store(key: str, data: bytes) -> bool:
    """Keeps a content; False, and nothing kept, when it is not what its key says."""
    if hashlib.sha256(data).hexdigest() != key:
        return False
    with _busy:
        _contents[key] = data
        while len(_contents) > MOST_CONTENTS:
            _contents.popitem(last=False)
    return True


def forget() -> None:
    """Lets go of everything that is held for a job; another job's is sent again when it is asked for."""
    with _busy:
        _contents.clear()
        while _made:
            _close(_made.popitem()[1])


def made(key: Any, make: Callable[[], Any]) -> Any:
    """What `make` makes, from the last time when it is still there; what has `close` is closed when it has to go."""
    with _busy:
        if key not in _made:
            while len(_made) >= MOST_MADE:
                _close(_made.popitem(last=False)[1])
            _made[key] = make()
        _made.move_to_end(key)
        return _made[key]


def _close(thing: Any) -> None:
    with suppress(AttributeError):
        thing.close()

"""A Dask cluster as quantkit uses it: shards go out, answers come back in any order, workers may die meanwhile.

Dask is imported when a cluster is first used. Whatever a task needs travels with it, or is uploaded by content
(quantkit/distributed/worker.py); no task waits for another one's result, so that a worker that dies costs the shards
that it had in hand, and nothing else.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import queue
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from quantkit import errors
from quantkit.distributed import worker
from quantkit.errors import BackendError, InputError, MissingDependencyError, QuantkitError
from quantkit.report.record import versions

CONNECT_S = 10.0
"""How long a scheduler may take to answer."""
FIRST_S = 10.0
"""How long the first worker of a scheduler may be waited for."""
PATIENCE_S = 60.0
"""How long a job waits for a worker when there is none."""
TICK_S = 2.0
"""How often a job that waits looks whether there still is a worker."""
RESULT_S = 20.0
"""How long the result of a task that is done may take, before one looks whether its worker still is there."""
AHEAD = 3
"""Shards that are out for every thread of the workers: enough that none waits for the client."""
RETRIES = 2
"""How often Dask repeats a task that failed with an error that is none of quantkit's."""
LOOPBACK = "127.0.0.1"
PACKAGES = ("quantkit", "numpy", "onnx")
GO_ON = "The same command goes on with what is already finished."


@dataclass
class Cluster:
    """Workers on this machine, or those of a scheduler, started or reached when first used; a context manager.

    Args:
        workers: number of processes to start on this machine; 0 when there is a `scheduler`.
        scheduler: address of a Dask scheduler, such as tcp://10.0.0.5:8786.
        threads: threads that a task computes with.
        packages: names of the packages whose versions must be the same everywhere.
    """

    workers: int = 0
    scheduler: str = ""
    threads: int = 1
    packages: tuple[str, ...] = PACKAGES
    _client: Any = field(default=None, repr=False)
    _local: Any = field(default=None, repr=False)
    _data: dict[str, bytes] = field(default_factory=dict, repr=False)
    _sent: dict[tuple[str, str], float] = field(default_factory=dict, repr=False)
    _cpus: set[str] = field(default_factory=set, repr=False)

    def check(self) -> None:
        """Fails early: Dask is missing, or the scheduler does not answer. Workers of our own are not started yet.

        Raises:
            MissingDependencyError: Dask is not installed.
            BackendError: the scheduler does not answer, or has no worker.
            InputError: a worker has other versions of packages than this process.
        """
        needed = ("distributed",) if self.scheduler else ("distributed", "cryptography")
        if any(find_spec(name) is None for name in needed):
            raise MissingDependencyError(
                "Work on several processes needs Dask, which is not installed.",
                "pip install 'quantkit[distributed]'",
            )
        if self.scheduler:
            _ = self.client

    @property
    def client(self) -> Any:
        """The distributed.Client; errors as `check`."""
        if self._client is None:
            logging.getLogger("asyncio").addFilter(_no_farewell)
            if not self.scheduler:
                self.check()
            self._client = self._reach() if self.scheduler else self._start()
            try:
                self._greet()
            except BaseException:
                self.close()
                raise
        return self._client

    def as_json(self) -> dict[str, Any]:
        """What a record says of the workers; empty when they were not needed."""
        if not self._cpus:
            return {}
        where = {"scheduler": self.scheduler} if self.scheduler else {"workers": self.workers}
        return {**where, "threads": self.threads, "cpus": sorted(self._cpus)}

    def upload(self, data: bytes) -> str:
        """Takes a content that tasks will need and returns its SHA-256; it goes to the workers when they need it."""
        key = hashlib.sha256(data).hexdigest()
        self._data[key] = data
        return key

    def map(
        self, function: worker.Function, shards: Iterable[Sequence[Any]], keys: Mapping[str, str]
    ) -> Iterator[tuple[int, Any]]:
        """Runs a function on every shard, on whichever worker is free.

        Args:
            function: a module-level function of (Held, *shard).
            shards: arguments, plain values and arrays; read when there is a worker for them.
            keys: name -> SHA-256 of uploaded contents, which the function finds in its `Held`.

        Yields:
            The shard's number and what the function returned, in the order in which they are done; where the function
            raised a QuantkitError, that error in the place of the value.

        Raises:
            BackendError: the scheduler is gone, no worker is left, or a shard ended every worker that it was given to.
        """
        client, done = self.client, queue.SimpleQueue[str]()
        dask = import_module("dask")
        installed = versions()
        expected = {name: installed[name] for name in self.packages if name in installed}
        running: dict[str, tuple[Any, int, Sequence[Any], float]] = {}
        self._send(tuple(keys.values()), self._threads_by_worker())

        def submit(number: int, shard: Sequence[Any]) -> None:
            key = f"{function.__name__}-{uuid.uuid4().hex}"
            # Dask warns of arguments beyond 10 MB, in words that help nobody here.
            arguments = (worker.attempt, function, expected, dict(keys), tuple(shard))
            with dask.config.set({"distributed.admin.large-graph-warning-threshold": "4GiB"}):
                future = self._asked(client.submit, *arguments, key=key, retries=RETRIES, pure=False)
            running[key] = (future, number, shard, time.monotonic())
            future.add_done_callback(lambda ended: done.put(ended.key))

        waiting = enumerate(shards)
        window = AHEAD * max(1, sum(self._threads_by_worker().values()))
        try:
            while True:
                while len(running) < window and (item := next(waiting, None)) is not None:
                    submit(*item)
                if not running:
                    return
                future, number, shard, since = running.pop(self._next(done))
                outcome = self._outcome(future)
                if outcome.missing:
                    self._send(outcome.missing, (outcome.worker,), since)
                    submit(number, shard)
                    continue
                self._cpus |= {outcome.cpu} - {""}
                yield number, _error(*outcome.error) if outcome.error else outcome.value
        finally:
            for future, *_ in running.values():
                _quietly(future.cancel)

    def close(self) -> None:
        """Lets go of the workers; those that were started here end."""
        client, local = self._client, self._local
        self._client = self._local = None
        self._sent.clear()
        if client is not None:
            if local is None:
                _quietly(lambda: client.run(worker.forget, on_error="return"))
            _quietly(client.close)
        if local is not None:
            _quietly(local.close)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> Any:
        """A client of worker processes on this machine, which listen on loopback only.

        A loopback port is open to every user of the machine, and a scheduler does what it is told. So both sides show a
        certificate that is made here, lives in memory and ends with the job.
        """
        distributed = import_module("distributed")
        try:
            self._local = distributed.LocalCluster(
                n_workers=self.workers,
                threads_per_worker=1,
                processes=True,
                host=LOOPBACK,
                # Dask opens its HTTP pages to every network unless an address is given; port 0 is any free one.
                dashboard_address=f"{LOOPBACK}:0",
                worker_dashboard_address=f"{LOOPBACK}:0",
                memory_limit=0,
                preload=worker.__name__,
                silence_logs="CRITICAL",
                security=distributed.Security.temporary(),
            )
            return distributed.Client(self._local, set_as_default=False)
        except (OSError, RuntimeError, TimeoutError) as error:
            raise BackendError(f"{self.workers} worker processes could not be started: {_words(error)}") from error

    def _reach(self) -> Any:
        """A client of the scheduler."""
        distributed = import_module("distributed")
        if self.scheduler.startswith("tls:"):
            self._check_certificates(distributed)
        try:
            return distributed.Client(self.scheduler, timeout=CONNECT_S, set_as_default=False)
        except (OSError, ValueError, RuntimeError, TimeoutError, TypeError) as error:
            raise BackendError(
                f"No Dask scheduler answers at {self.scheduler}: {_words(error)}",
                "Start one with `dask scheduler`, and check the address and the firewall.",
            ) from error

    def _check_certificates(self, distributed: Any) -> None:
        """InputError when Dask's configuration, which is where it looks for them, has no usable certificates."""
        try:
            known = distributed.Security().get_connection_args("client").get("ssl_context")
            why = "" if known else "Dask's configuration names none."
        except OSError as error:
            why = _words(error)
        if why:
            names = " and ".join(f"DASK_DISTRIBUTED__COMM__TLS__{part}" for part in ("CA_FILE", "CLIENT__CERT"))
            raise InputError(
                f"{self.scheduler} needs certificates: {why}", f"Set {names}, and ...CLIENT__KEY, or use tcp://."
            )

    def _greet(self) -> None:
        """Waits for the first worker and looks at what all of them have installed."""
        client = self._client
        try:
            client.wait_for_workers(1, timeout=FIRST_S if self.scheduler else PATIENCE_S)
        except (TimeoutError, asyncio.TimeoutError) as error:
            where = f"The scheduler at {self.scheduler}" if self.scheduler else "The cluster on this machine"
            raise BackendError(f"{where} has no worker.", f"Start one with `dask worker {self.scheduler}`.") from error
        installed = versions()
        expected = {name: installed[name] for name in self.packages if name in installed}
        for found in self._asked(client.run, worker.facts, on_error="return").values():
            if isinstance(found, ImportError):
                raise InputError(f"A worker cannot import quantkit: {_words(found)}", "Install it on every worker.")
            if isinstance(found, Exception):
                continue  # a worker that is leaving
            if wrong := worker.differences(expected, found["versions"]):
                raise InputError(*wrong)
            self._cpus.add(found["cpu"])

    def _threads_by_worker(self) -> dict[str, int]:
        """Address -> threads of every worker that there is now."""
        return dict(self._asked(self._client.nthreads))

    def _send(self, keys: Sequence[str], places: Iterable[str], missed_since: float | None = None) -> None:
        """Sends contents to workers that were not sent them yet, or where they are missing to a task of that time."""
        for key in keys:
            wanted = []
            for place in places:
                last = self._sent.get((place, key))
                if last is None or (missed_since is not None and last < missed_since):
                    wanted.append(place)
            if wanted:
                # A worker that has gone meanwhile is no concern here: its shards go to others.
                run = self._client.run
                self._asked(run, worker.store, key, self._data[key], workers=wanted, on_error="return")
                self._sent |= {(place, key): time.monotonic() for place in wanted}

    def _next(self, done: queue.SimpleQueue[str]) -> str:
        """The key of the next task that is done; errors as `map`."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            with suppress(queue.Empty):
                return done.get(timeout=TICK_S)
            deadline = self._hope(deadline)

    def _outcome(self, future: Any) -> worker.Outcome:
        """What a task that is done has given; errors as `map`."""
        deadline = time.monotonic() + PATIENCE_S
        while future.status not in ("error", "cancelled"):
            try:
                outcome: worker.Outcome = future.result(timeout=RESULT_S)
                return outcome
            except (TimeoutError, asyncio.TimeoutError):
                # The worker may have died with the result, which another one then computes again.
                deadline = self._hope(deadline)
            except Exception as error:
                raise self._given_up(error) from error
        cause = future.exception() if future.status == "error" else ConnectionError("its connection was lost")
        raise self._given_up(cause) from cause

    def _hope(self, deadline: float) -> float:
        """A new deadline (time.monotonic) while there is a worker, the same one while there is none.

        Raises:
            BackendError: the scheduler is gone, or the deadline is over.
        """
        there = bool(self._threads_by_worker())
        if not there and time.monotonic() > deadline:
            raise BackendError(f"There has been no worker for {PATIENCE_S:.0f} s.", f"Start one. {GO_ON}")
        return time.monotonic() + PATIENCE_S if there else deadline

    def _asked(self, action: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """What the scheduler answers; BackendError when it is gone."""
        try:
            return action(*arguments, **options)
        except Exception as error:
            raise self._given_up(ConnectionError(str(error) or type(error).__name__)) from error

    def _given_up(self, error: BaseException) -> BackendError:
        """The error of a task that Dask could not bring to an end."""
        if type(error).__name__ == "KilledWorker":
            return BackendError(
                "Several workers died while they computed the same shard; too little memory is the usual cause.",
                f"Give them more, or use a smaller --batch. {GO_ON}",
            )
        if isinstance(error, OSError) or type(error).__name__ in ("CancelledError", "FutureCancelledError"):
            return BackendError(f"The Dask scheduler is gone: {_words(error)}", f"Start it again. {GO_ON}")
        return BackendError(f"A worker failed: {_words(error)}", GO_ON)


def value_of(outcome: Any) -> Any:
    """What `map` yielded, where errors are to be raised.

    Raises:
        QuantkitError: the function raised it on the worker.
    """
    if isinstance(outcome, QuantkitError):
        raise outcome
    return outcome


def in_order(outcomes: Iterable[tuple[int, Any]]) -> Iterator[Any]:
    """What `map` yields, in the order of the shards.

    Raises:
        QuantkitError: the function raised it on the worker.
    """
    early: dict[int, Any] = {}
    wanted = 0
    for number, outcome in outcomes:
        early[number] = outcome
        while wanted in early:
            yield value_of(early.pop(wanted))
            wanted += 1


def _error(kind: str, message: str, hint: str) -> QuantkitError:
    """The error that a worker has told of."""
    known = getattr(errors, kind, None)
    plain = isinstance(known, type) and issubclass(known, QuantkitError) and known is not errors.UnknownNameError
    made: QuantkitError = known(message, hint) if plain and known is not None else InputError(message, hint)
    return made


def _words(error: BaseException) -> str:
    """An error of Dask's in one sentence."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = text if len(text) <= 300 else text[:297] + "..."
    return text if text.endswith((".", "!", "?")) else text + "."


def _no_farewell(record: logging.LogRecord) -> bool:
    """Drops what asyncio logs of results that nobody waits for any more after a scheduler or worker has gone."""
    return "exception=AllExit()" not in record.getMessage()


def _quietly(action: Callable[[], Any]) -> None:
    """Does something whose failure matters to nobody any more."""
    with suppress(Exception):
        action()

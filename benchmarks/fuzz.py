"""Feeds damaged files to every reader.

    python benchmarks/fuzz.py [--inputs 100000] [--seconds 60] [READER ...]

Each input has to be read, or refused with an error of quantkit's own, within --limit seconds of the processor (six
times that by the clock) and --memory bytes of address space beyond what the process had. Inputs come from the mutators
of tests/fuzzing.py (JSON, protobuf, zip and safetensors aware, and plain bytes), seeded: the same number gives the same
input. A process of its own runs them, so that a crash of native code is seen as well; what failed is printed with the
number and kept in --keep.

    python benchmarks/fuzz.py --atheris --seconds 60 READER

lets atheris (`pip install atheris`) choose the inputs by coverage of quantkit's own code, where it is installed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import types
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from fuzzing import Reader, damaged, readers

from quantkit.errors import QuantkitError

BATCH = 2000
"""Inputs a process: what a reader leaks ends with it, and the first one tells of it."""


class HangError(BaseException):
    """An input that took too long."""


class Alarm:
    """The alarm's handler. On a busy machine a process may wait for long: the processor's time counts.

    Attributes:
        limit: seconds of the processor's time; six times that by the clock, for one that waits for ever.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit

    def start(self) -> None:
        """Begins to count."""
        self.used, self.rung = time.process_time(), 0
        signal.setitimer(signal.ITIMER_REAL, self.limit, self.limit)

    def __call__(self, *_: Any) -> None:
        """Ends what runs when its time is over."""
        self.rung += 1
        if self.rung >= 6 or time.process_time() - self.used >= 0.9 * self.limit:
            raise HangError


def numbered(reader: Reader, seeds: list[bytes], number: int) -> bytes:
    """Input number so-and-so of a reader."""
    return damaged(random.Random(f"{reader.name} {number}"), reader, seeds)


def verdict(reader: Reader, data: bytes, folder: Path, alarm: Alarm) -> str:
    """What the reader did with the input: "read", "refused", or how it failed."""
    alarm.start()
    try:
        reader.read(data, folder)
        return "read"
    except QuantkitError:
        return "refused"
    except HangError:
        return f"FAILED: more than {alarm.limit} s"
    except BaseException as error:  # anything else is what is looked for
        frame = error.__traceback__
        while frame is not None and frame.tb_next is not None:
            frame = frame.tb_next
        where = f"{Path(frame.tb_frame.f_code.co_filename).name}:{frame.tb_lineno}" if frame else ""
        return f"FAILED: {type(error).__name__}: {str(error)[:150]} ({where})"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def batch(reader: Reader, seeds: list[bytes], numbers: range, options: argparse.Namespace, report: int) -> None:
    """Runs inputs in this process; writes counts and failures as JSON lines, the number of each input before it."""
    signal.signal(signal.SIGALRM, alarm := Alarm(options.limit))
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + options.memory, size + options.memory))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libraries write to standard error
    counts: dict[str, int] = {}
    with tempfile.TemporaryDirectory(prefix="fuzz") as name:
        folder = Path(name)
        for number in numbers:
            if time.time() > options.until:
                break
            os.pwrite(report, b"%20d" % number, 0)
            data = numbered(reader, seeds, number)
            said = verdict(reader, data, folder, alarm)
            key = said if said in ("read", "refused") else "failed"
            counts[key] = counts.get(key, 0) + 1
            if key == "failed":
                counts.setdefault("first", number)  # type: ignore[arg-type]
                os.write(report, json.dumps({"number": number, "said": said}).encode() + b"\n")
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    os.write(report, json.dumps({"counts": counts, "rss_kib": used}).encode() + b"\n")


def run(reader: Reader, options: argparse.Namespace) -> dict[str, Any]:
    """All inputs of one reader."""
    seeds = list(reader.seeds())
    with tempfile.TemporaryDirectory(prefix="fuzz") as name:
        for seed in seeds:  # what is imported and compiled is there before the processes fork; good files must be read
            reader.read(seed, Path(name))
    total: dict[str, Any] = {"reader": reader.name, "inputs": 0, "read": 0, "refused": 0, "failed": 0, "rss_mib": 0}
    started, failures = time.time(), []
    options.until = started + options.seconds if options.seconds else float("inf")
    begin = options.start
    while begin < options.start + options.inputs and time.time() < options.until:
        numbers = range(begin, min(begin + BATCH, options.start + options.inputs))
        with tempfile.TemporaryFile() as report:
            os.write(report.fileno(), b" " * 20 + b"\n")
            child = os.fork()
            if child == 0:
                try:
                    batch(reader, seeds, numbers, options, report.fileno())
                finally:
                    os._exit(0)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            report.seek(0)
            last, *lines = report.read().decode().splitlines()
        begin = numbers.stop
        for value in map(json.loads, lines):
            if "counts" in value:
                for key in ("read", "refused", "failed"):
                    total[key] += value["counts"].get(key, 0)
                total["rss_mib"] = max(total["rss_mib"], value["rss_kib"] // 1024)
            else:
                failures.append(value)
        if status or not lines or "counts" not in lines[-1]:
            failures.append({"number": int(last), "said": f"FAILED: the process ended with {status}"})
            total["failed"] += 1
            begin = int(last) + 1
    total["inputs"] = total["read"] + total["refused"] + total["failed"]
    total["seconds"] = round(time.time() - started, 1)
    kinds: dict[str, dict[str, Any]] = {}
    for failure in failures:
        kinds.setdefault(failure["said"], failure)
    for failure in kinds.values():
        print(json.dumps({"reader": reader.name, **failure}), flush=True)
        if options.keep is not None:
            options.keep.mkdir(parents=True, exist_ok=True)
            name = f"{reader.name.replace(':', '-')}-{failure['number']}"
            (options.keep / name).write_bytes(numbered(reader, seeds, failure["number"]))
    return total


def own_functions() -> list[Any]:
    """The functions of quantkit that are loaded; atheris watches their branches."""
    modules = [module for name, module in list(sys.modules.items()) if name.split(".")[0] == "quantkit"]
    scopes = [vars(module) for module in modules]
    scopes += [vars(kind) for scope in scopes for kind in scope.values() if isinstance(kind, type)]
    found = [value for scope in scopes for value in scope.values() if isinstance(value, types.FunctionType)]
    return [f for f in dict.fromkeys(found) if f.__module__.split(".")[0] == "quantkit"]


def with_atheris(reader: Reader, options: argparse.Namespace) -> None:
    """Lets atheris choose the inputs; it ends the process, with an error when it found something."""
    import atheris

    with tempfile.TemporaryDirectory(prefix="corpus") as corpus, tempfile.TemporaryDirectory() as scratch:
        for number, seed in enumerate(reader.seeds()):
            (Path(corpus) / str(number)).write_bytes(seed)
            reader.read(seed, Path(scratch))

        def one(data: bytes) -> None:
            with suppress(QuantkitError):
                reader.read(data, Path(scratch))

        for function in own_functions():
            atheris.instrument_func(function)
        arguments = [f"-max_total_time={int(options.seconds or 60)}", "-rss_limit_mb=4096", "-timeout=60"]
        atheris.Setup([sys.argv[0], *arguments, corpus], one)
        atheris.Fuzz()


def main() -> int:
    """Prints one JSON line a reader; exit code 1 when something failed."""
    known = readers()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("readers", nargs="*", metavar="READER", help=f"of {', '.join(known)}; all by default")
    parser.add_argument("--inputs", type=int, default=100_000, help="inputs a reader")
    parser.add_argument("--seconds", type=float, default=0, help="at most this long a reader; 0 means no limit")
    parser.add_argument("--start", type=int, default=0, help="number of the first input")
    parser.add_argument("--limit", type=float, default=10, help="seconds that one input may take")
    parser.add_argument("--memory", type=int, default=2 << 30, help="bytes of address space beyond the process's own")
    parser.add_argument("--keep", type=Path, default=None, help="folder for inputs that failed")
    parser.add_argument("--atheris", action="store_true", help="let atheris choose the inputs of one reader")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    chosen = [known[name] for name in options.readers] or list(known.values())
    if options.atheris:
        with_atheris(chosen[0], options)
        return 0
    failed = 0
    for reader in chosen:
        total = run(reader, options)
        failed += total["failed"]
        print(json.dumps(total), flush=True)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())

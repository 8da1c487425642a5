"""Runs a job in a process of its own: TensorRT can crash, or be killed for memory, and we must not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import quantkit
import quantkit.errors
from quantkit.backends.trt.options import Job, Outcome
from quantkit.backends.trt.worker import ERROR, INSPECT, JOB, RESULT, STATUS
from quantkit.errors import BackendError, QuantkitError

OUTPUT = "output.txt"
WORKER = "quantkit.backends.trt.worker"
KEPT_OUTPUT = 300

_SIGNALS = {
    signal.SIGSEGV: "a segmentation fault",
    signal.SIGABRT: "an abort",
    signal.SIGKILL: "a kill, most often for want of memory",
    signal.SIGBUS: "a bus error",
    signal.SIGFPE: "an arithmetic fault",
    signal.SIGILL: "an illegal instruction",
    signal.SIGTERM: "a request to end",
}


def run_job(job: Job, folder: Path, *, timeout_s: float | None = None, command: list[str] | None = None) -> Outcome:
    """Writes the job into `folder`, does it in a child process, and reads what came out.

    An engine that is built and then cannot be inspected is a result too, with a note.

    Args:
        job: what to build; files that it names are in the folder already.
        folder: the job's own; the caller reads the plan and the caches from it.
        timeout_s: after how long the child is ended; None waits for ever.
        command: what to run with the folder as last argument; the worker when None.

    Raises:
        QuantkitError: what the child reported, of the class it had there.
        BackendError: the child crashed, was killed or took too long; the sentence names the step.
    """
    (folder / JOB).write_text(json.dumps(job.to_json()))
    code = run_worker(folder, describe(job), timeout_s, command)
    result = read_json(folder / RESULT)
    if result and (code == 0 or last_step(folder) == INSPECT):
        outcome = Outcome.from_json(result)
        if code:
            outcome.notes.append(f"The engine could not be inspected: {error_of(describe(job), folder, code).message}")
        return outcome
    raise error_of(describe(job), folder, code)


def inspect_in_child(folder: Path, *, timeout_s: float | None = None) -> None:
    """Looks into the plan that lies in `folder`, in a child process; see `quantkit.backends.trt.worker`.

    Raises:
        BackendError: the engine does not load or run, or crashed the process.
    """
    if code := run_worker(folder, "engine", timeout_s):
        raise error_of("engine", folder, code)


def run_worker(folder: Path, what: str, timeout_s: float | None, command: list[str] | None = None) -> int:
    """Runs the worker on a folder; its exit code, minus the signal's number when it was killed.

    Raises:
        BackendError: it took too long.
    """
    arguments = [*(command or [sys.executable, "-m", WORKER]), str(folder)]
    with (folder / OUTPUT).open("wb") as output:
        child = subprocess.Popen(arguments, stdout=output, stderr=output, stdin=subprocess.DEVNULL, env=environment())
        try:
            return child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise BackendError(
                f"Building the {what} took longer than {timeout_s:g} s, at the step {last_step(folder)!r}.",
                "Give it more time, or a lower optimization level.",
            ) from None
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()


def environment() -> dict[str, str]:
    """The child's environment: ours, with this very quantkit first on its path."""
    root = str(Path(quantkit.__file__).resolve().parents[1])
    inherited = os.environ.get("PYTHONPATH", "")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([root, inherited] if inherited else [root])}


def error_of(what: str, folder: Path, code: int) -> QuantkitError:
    """The error that a child's end stands for."""
    if told := read_json(folder / ERROR):
        kind = getattr(quantkit.errors, str(told.get("kind")), BackendError)
        message, hint = str(told.get("message", "")), str(told.get("hint", ""))
        if not (isinstance(kind, type) and issubclass(kind, QuantkitError)):
            kind = BackendError
        if kind is quantkit.errors.UnknownNameError:  # its arguments are others; the sentence is all that is left
            kind = quantkit.errors.InputError
        return kind(message, hint)
    step = last_step(folder)
    if code < 0:
        number = signal.Signals(-code)
        how = f"crashed with {_SIGNALS.get(number, number.name)}"
    else:
        how = f"ended with exit code {code}{last_words(folder)}"
    return BackendError(
        f"TensorRT {how} at the step {step!r} of the {what}.",
        "What was computed before is kept. Try a graph of fixed shapes without boolean masks, the network API "
        "(--network api), or another precision.",
    )


def describe(job: Job) -> str:
    """The job in a few words: "int8+fp16 engine (onnx, scales by cache)"."""
    options = job.options
    scales = f", scales by {options.ranges}" if options.ranges else ""
    return f"{options.precision} engine ({options.network}{scales})"


def last_step(folder: Path) -> str:
    """The step that the child was doing."""
    return str((read_json(folder / STATUS) or {}).get("step", "start"))


def last_words(folder: Path) -> str:
    """The end of what the child printed, as the end of a sentence."""
    try:
        lines = (folder / OUTPUT).read_text(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return f" ({lines[-1][-KEPT_OUTPUT:]})" if lines else ""


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object from a file that a dying process may have left half written; None when there is none."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None

"""The building process: `python -m quantkit.backends.trt.worker FOLDER` does the job that lies in the folder.

Read: job.json and the files it names; without job.json, only engine.plan, which is inspected. Written: status.json (the
step that is being done, before it is done), result.json when an engine or a cache is there, inspection.json when the
engine was looked into, or error.json {"kind", "message", "hint"}. Exit code 0 when all went well, 2 when there is an
error; anything else is a crash.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from quantkit.backends.base import first_line
from quantkit.backends.trt.options import Job, Outcome
from quantkit.errors import QuantkitError

JOB, STATUS, RESULT, ERROR, INSPECTION = "job.json", "status.json", "result.json", "error.json", "inspection.json"
INSPECT = "inspect the engine"


def main(folder: Path) -> int:
    """Does the job; the exit code."""
    from quantkit.backends.trt.build import PLAN, run

    started = time.perf_counter()

    def step(name: str) -> None:
        seconds = round(time.perf_counter() - started, 3)
        (folder / STATUS).write_text(json.dumps({"step": name, "seconds": seconds}))

    def leave(outcome: Outcome) -> None:
        outcome.seconds = round(time.perf_counter() - started, 3)
        (folder / RESULT).write_text(json.dumps(outcome.to_json()))
        os._exit(0)

    try:
        wanted = True
        if (folder / JOB).is_file():
            job = Job.from_json(json.loads((folder / JOB).read_text()))
            outcome, wanted = run(job, folder, step, leave), job.inspect
            (folder / RESULT).write_text(json.dumps(outcome.to_json()))
        if wanted and (folder / PLAN).is_file():
            step(INSPECT)
            inspect(folder / PLAN, folder / INSPECTION)
    except QuantkitError as error:
        report(folder, type(error).__name__, error.message, error.hint)
        return 2
    except MemoryError:
        report(
            folder, "BackendError", "There is not enough memory to build the engine.", "Use a smaller largest shape."
        )
        return 2
    except Exception as error:  # the parent has to be told, whatever it is
        report(folder, "BackendError", f"The build failed: {type(error).__name__}: {first_line(error)}", "")
        raise
    return 0


def inspect(plan: Path, out: Path) -> None:
    """Looks into an engine and writes what is found."""
    from quantkit.backends.trt.cuda import device
    from quantkit.backends.trt.inspection import inspect_plan

    out.write_text(json.dumps(inspect_plan(plan.read_bytes(), device()).to_json()))


def report(folder: Path, kind: str, message: str, hint: str) -> None:
    """Writes error.json."""
    (folder / ERROR).write_text(json.dumps({"kind": kind, "message": message, "hint": hint}))


if __name__ == "__main__":
    code = main(Path(sys.argv[1]))
    # TensorRT and CUDA tear down at exit in an order that can crash; everything is on disk by now.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

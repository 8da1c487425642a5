"""What workers do in the tests; a module of its own, so that they can import it."""

from __future__ import annotations

import os
import time

import numpy as np

from quantkit.distributed import worker
from quantkit.errors import CalibrationError, UnknownNameError


def doubled(held, array, wait=0.0):
    time.sleep(wait)
    return 2 * array + (len(held["data"]) if "data" in held else 0)


def process(held, wait):
    time.sleep(wait)
    return os.getpid()


def refuses(held, number):
    if number == 1:
        raise CalibrationError("NaN in a tensor.", "Look for it.")
    if number == 2:
        raise UnknownNameError("backend", "opnvino", ["openvino"])
    return number


def defect(held, number):
    raise ZeroDivisionError(f"shard {number}")


def dies(held, number):
    os._exit(1)


def forgets(held, number):
    """A worker that has lost its contents after it was sent them."""
    found = len(held["data"])
    worker.forget()
    return found + number


def made_once(held, number):
    def make():
        made_once.calls = getattr(made_once, "calls", 0) + 1
        return object()

    return os.getpid(), id(worker.made("thing", make)), np.float32(number)

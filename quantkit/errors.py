"""Everything quantkit raises on purpose.

    QuantkitError                 one sentence, and a hint: the next step
    ├── InputError                what the user gave cannot be used
    │   ├── UnknownNameError      no such task, method, backend ... (did you mean)
    │   ├── DataError             a data set, a file or a row of it
    │   ├── ModelError            weights, config or ONNX graph
    │   └── TableError            a calibration table, a cache or a histogram file
    ├── MissingDependencyError    an extra is not installed
    ├── CalibrationError          the activations cannot be calibrated (NaN, Inf, none at all)
    ├── BackendError              an engine could not be built or run
    └── StorageError              no space, no permission, a damaged file

The command line prints `message` and `hint` and ends with exit code 2; a traceback means a defect in quantkit.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class QuantkitError(Exception):
    """A failure the user can act on.

    Args:
        message: one sentence that says what failed, what came and what was expected.
        hint: the next step, in the imperative; empty when the message already says it.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class InputError(QuantkitError):
    """What the user gave cannot be used."""


class UnknownNameError(InputError):
    """A name that stands for nothing, with the closest names that do.

    Args:
        kind: what the name should have been, in words ("task", "method").
        name: what came.
        known: the names there are.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        close = difflib.get_close_matches(name.lower(), [n.lower() for n in names], n=3, cutoff=0.5)
        guesses = [n for n in names if n.lower() in close]
        hint = f"Did you mean {' or '.join(guesses)}?" if guesses else ""
        super().__init__(f"There is no {kind} {name!r}; known: {', '.join(names)}.", hint)
        self.name = name


class DataError(InputError):
    """A data set, a file of it or a row of it cannot be used."""


class ModelError(InputError):
    """A model folder, its weights, its adapter or its ONNX graph cannot be used."""


class TableError(InputError):
    """A calibration table, a TensorRT cache or a histogram file cannot be used."""


class MissingDependencyError(QuantkitError):
    """A package that this step needs is not installed."""


class CalibrationError(QuantkitError):
    """The activations cannot be calibrated."""


class BackendError(QuantkitError):
    """An engine could not be built, loaded or run."""


class StorageError(QuantkitError):
    """A file could not be written or read back."""

"""JSON as it is meant to be: what a lenient parser would let through is refused."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, NoReturn

from quantkit.errors import TableError

MAX_VALUES = 1 << 22
"""Most values of a JSON file; each can cost a hundred bytes of memory. onnxruntime's histograms have up to 4,097 a
tensor."""


def parse_json(text: str, source: str) -> Any:
    """The value of a JSON text: no NaN, no Infinity, no name twice in an object. `source` names it in messages.

    Raises:
        TableError: the text is something else; the line is named where it can be.
    """
    check_values(text, source)
    try:
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        message = f"{source}, line {error.lineno}: not JSON: {error.msg} (column {error.colno})."
        raise TableError(message, "The file may have been cut short or edited.") from error
    except (ValueError, RecursionError) as error:
        raise TableError(f"{source} is not a calibration table: {error}.") from error


def check_values(text: str, source: str) -> None:
    """Refuses a JSON text of more than MAX_VALUES values, before it is parsed; TableError."""
    if sum(text.count(mark) for mark in ",[{") > MAX_VALUES:
        raise TableError(
            f"{source} has over {MAX_VALUES} JSON values; that is no calibration table.", "Check the path."
        )


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} stands where a finite number is expected")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object as a dict; a name given twice is an error, not the last one's win."""
    result = dict(pairs)
    if len(result) != len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"the name {name!r} stands in it twice")
    return result

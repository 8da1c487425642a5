"""Finished candidates on disk, so that a search that was interrupted goes on where it stopped.

Every result is a file of its own, written whole or not at all, under a key made of everything that decides it. A
result of other data, another model, table, machine or version has another key and is never found.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.files import read_sealed, sha256_json, write_sealed

RULES = 2
"""Part of every key; raised when the same settings come to give other results."""


@dataclass(frozen=True)
class Store:
    """A folder of results.

    Args:
        folder: where the results lie; None keeps nothing.
        identity: JSON value of what decides every result of this search (model, table, data, machine, versions).
    """

    folder: Path | None
    identity: Mapping[str, Any]

    def path(self, question: Mapping[str, Any]) -> Path | None:
        """Where the answer to a question is kept."""
        if self.folder is None:
            return None
        key = sha256_json({"rules": RULES, "identity": dict(self.identity), "question": dict(question)})
        return self.folder / f"{key[:32]}.json"

    def get(self, question: Mapping[str, Any]) -> dict[str, Any] | None:
        """The kept answer; None when there is none, or it cannot be read."""
        path = self.path(question)
        if path is None or not path.is_file():
            return None
        kept = read_sealed(path)
        # The whole question is compared, not its hash alone: a file put there by hand must not answer another one.
        if kept is None or kept.get("question") != json.loads(json.dumps(dict(question))):
            return None
        answer = kept.get("answer")
        return answer if isinstance(answer, dict) else None

    def put(self, question: Mapping[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
        """Keeps an answer, and gives it back."""
        path = self.path(question)
        if path is not None:
            write_sealed(path, {"question": dict(question), "answer": answer})
        return answer

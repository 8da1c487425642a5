"""Environment variables for the length of a block."""

from __future__ import annotations

import os

import pytest

from quantkit.environment import variable


@pytest.mark.parametrize("before", [None, "earlier"])
def test_a_variable_is_put_back(monkeypatch: pytest.MonkeyPatch, before: str | None) -> None:
    monkeypatch.delenv("QUANTKIT_EXAMPLE", raising=False)
    if before is not None:
        monkeypatch.setenv("QUANTKIT_EXAMPLE", before)
    with pytest.raises(RuntimeError), variable("QUANTKIT_EXAMPLE", "within"):
        assert os.environ["QUANTKIT_EXAMPLE"] == "within"
        raise RuntimeError
    assert os.environ.get("QUANTKIT_EXAMPLE") == before

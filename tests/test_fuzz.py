"""Damaged files of every kind: each is read, or refused with an error of our own. benchmarks/fuzz.py runs many more."""

from __future__ import annotations

import random
import signal
import warnings
from contextlib import suppress

import pytest
from fuzzing import damaged, readers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quantkit.errors import QuantkitError
from quantkit.report import html

READERS = readers()
SECONDS = 30
"""What an input may take on a machine that is busy."""


@pytest.fixture(scope="module")
def good():
    """Reader's name -> its good files, made once."""
    return {name: list(reader.seeds()) for name, reader in READERS.items()}


@pytest.fixture(autouse=True)
def no_plotly(monkeypatch):
    """Readers of records leave plotly.js out of their pages; afterwards it is in again."""
    monkeypatch.setattr(html, "plotly_js", html.plotly_js)


@pytest.mark.parametrize("name", READERS)
def test_good_files_are_read(name, good, tmp_path):
    for number, seed in enumerate(good[name]):
        try:
            READERS[name].read(seed, tmp_path)
        except QuantkitError as error:
            pytest.fail(f"{name} {number}: {error}")


@pytest.mark.parametrize("name", READERS)
@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_damaged_files_are_read_or_refused(name, data, good, tmp_path):
    reader = READERS[name]
    content = damaged(random.Random(data.draw(st.integers(0, 2**32))), reader, good[name])

    def hang(*_):
        raise AssertionError(f"more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(SECONDS)
    try:
        with suppress(QuantkitError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reader.read(content, tmp_path)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)

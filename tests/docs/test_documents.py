"""Every command that a document shows is run, and says what the document says."""

from __future__ import annotations

from pathlib import Path

import pytest
from docrun import run_document, unmarked
from prepare import PREPARE

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.parametrize("name", PREPARE)
def test_the_commands_of_a_document_run(name, tmp_path):
    PREPARE[name](tmp_path)
    assert run_document(DOCS / name, tmp_path) > 0


@pytest.mark.parametrize("name", PREPARE)
def test_no_block_is_left_out_without_a_reason(name):
    assert unmarked(DOCS / name) == []

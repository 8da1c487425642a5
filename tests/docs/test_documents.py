"""Every command that a document shows is run, and says what the document says."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from docrun import calls, run_document, unmarked
from prepare import PREPARE

from quantkit.cli.app import app

CHECKOUT = Path(__file__).resolve().parents[2]
DOCS = CHECKOUT / "docs"
GENERATED = "cli.md"


@pytest.mark.parametrize("name", PREPARE)
def test_the_commands_of_a_document_run(name, tmp_path):
    PREPARE[name](tmp_path)
    assert run_document(DOCS / name, tmp_path) > 0


@pytest.mark.parametrize("name", PREPARE)
def test_no_block_is_left_out_without_a_reason(name):
    assert unmarked(DOCS / name) == []


def parse(words: list[str]) -> str:
    """Name of the command that a line calls; its arguments and options are parsed, and nothing is run."""
    command, path = typer.main.get_command(app), []
    while children := getattr(command, "commands", None):
        name = words[len(path)]
        assert name in children, f"there is no command {name}"
        command = children[name]
        path.append(name)
    command.make_context(" ".join(path), words[len(path) :])
    return " ".join(path)


@pytest.mark.parametrize("document", [CHECKOUT / "README.md", *sorted(DOCS.glob("*.md"))], ids=lambda path: path.name)
def test_every_command_that_is_shown_exists_with_its_options(document):
    for place, words in calls(document) if document.name != GENERATED else ():
        try:
            parse(words)
        except Exception as error:
            pytest.fail(f"{place}: quantkit {' '.join(words)}: {getattr(error, 'message', error)}")


def test_commands_that_do_not_exist_are_found():
    assert parse(["table", "diff", "a", "b", "--tolerance", "0.1"]) == "table diff"
    with pytest.raises(AssertionError, match="no command tables"):
        parse(["tables"])
    for words, problem in (
        (["table", "diff", "a"], "MissingParameter"),
        (["run", "--methods", "mse"], "NoSuchOption"),
        (["run", "--batch", "many"], "BadParameter"),
    ):
        with pytest.raises(Exception) as caught:
            parse(words)
        assert type(caught.value).__name__ == problem  # the class's home depends on the version of typer

"""Every command that a document shows is run, and says what the document says; `not_run.py` lists the exceptions."""

from __future__ import annotations

import re
from contextlib import ExitStack

import pytest
import typer
from docrun import CHECKOUT, faults, plain_call, run_document, spans, steps, workplace
from not_run import NOT_RUN
from prepare import PREPARE, Place

from quantkit.cli.app import app

GENERATED = CHECKOUT / "docs" / "cli.md"
ROOMS = ("docs", "benchmarks", "calib_data", "caches", "quantkit", "tests", ".ci")
PLACES = (
    "",
    "docs",
    "benchmarks",
    "benchmarks/gpu",
    "benchmarks/results",
    "calib_data",
    "caches",
    "tests/golden/trt860",
)
DOCUMENTS = {
    (path.name if place in ("", "docs") else f"{place}/{path.name}"): path
    for place in PLACES
    for path in sorted((CHECKOUT / place).glob("*.md"))
    if path != GENERATED
}
WITH_COMMANDS = [name for name, path in DOCUMENTS.items() if steps(path)]


def test_no_document_is_left_out():
    folders = [path for path in CHECKOUT.iterdir() if path.is_dir() and path.name in ROOMS]
    assert {path for folder in folders for path in folder.rglob("*.md")} <= {*DOCUMENTS.values(), GENERATED}
    assert set(PREPARE) <= set(WITH_COMMANDS)


@pytest.mark.parametrize("name", WITH_COMMANDS)
def test_the_commands_of_a_document_run(name, tmp_path):
    with ExitStack() as stack:
        stack.enter_context(workplace(tmp_path))
        place = Place(tmp_path, stack)
        if name in PREPARE:
            PREPARE[name](place)
        exceptions = {command: entry.check for command, entry in NOT_RUN.get(name, {}).items()}
        count = run_document(DOCUMENTS[name], place.names, exceptions, place.ends)
    assert count + len(exceptions) == len(steps(DOCUMENTS[name]))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_block_says_what_it_is(name):
    assert faults(DOCUMENTS[name]) == []


def test_the_list_of_what_is_not_run_names_what_is_there():
    for name, entries in NOT_RUN.items():
        shown = [step.command for step in steps(DOCUMENTS[name])]
        assert [command for command in entries if shown.count(command) != 1] == []
        assert all(len(entry.reason) > 8 and plain_call(command) is None for command, entry in entries.items())


def options_exist(words: list[str]) -> None:
    """Command and options of a mention in a sentence, which may leave arguments out; AssertionError when unknown."""
    command, rest = typer.main.get_command(app), list(words)
    while rest and rest[0] in (children := getattr(command, "commands", {})):
        command = children[rest.pop(0)]
    assert not rest or not getattr(command, "commands", None) or rest[0].startswith("-"), f"no command {rest[0]}"
    known = {"--help", "-h", *(name for parameter in command.params for name in parameter.opts)}
    unknown = [word for word in rest if re.match(r"--?[a-z]", word) and word.partition("=")[0] not in known]
    assert not unknown, f"no option {', '.join(unknown)}"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_commands_in_sentences_exist_with_their_options(name):
    for words in spans(DOCUMENTS[name]):
        try:
            options_exist(words)
        except AssertionError as error:
            pytest.fail(f"quantkit {' '.join(words)}: {error}")


def test_commands_that_do_not_exist_are_found():
    options_exist(["table", "diff"])
    options_exist(["bench", "--backend", "tensorrt"])
    with pytest.raises(AssertionError, match="no command tables"):
        options_exist(["tables"])
    with pytest.raises(AssertionError, match="no option --methods"):
        options_exist(["run", "--methods"])

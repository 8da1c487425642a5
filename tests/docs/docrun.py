"""Runs what the documents show, and compares what they say comes out.

Every fenced block of a document has a language. `console`, `sh` and `python` blocks are run:

    ```console
    $ quantkit table diff old.cache new.cache
    2 equal, 0 different, 0 missing, 0 extra
    ```

- In `console` blocks a line that starts with "$ " is a command (a line that ends in a backslash goes on), what stands
  below it is its output, standard error included. No output below means that it is not compared. A line of "..." stands
  for any number of lines, and "..." inside a line for any text.
- In `sh` blocks every line is a command; output is not compared.
- `python` blocks of a document share their names; output is not compared.
- `<!-- exit 1 -->` on the line before a block: its (last) command ends with that code; every other one with 0.

All commands of a document run in turn in one folder that `prepare.py` fills. Calls of `quantkit` run in this process
(importing onnx and OpenVINO a hundred times would take minutes), everything else in bash, where `quantkit` and `python`
are this checkout's. `not_run.py` lists what is not run, and why.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

CHECKOUT = Path(__file__).resolve().parents[2]
RUNNABLE = ("console", "sh", "python")
SHOWN = ("text", "json", "trt", "ort", "fbs", "ranges", "plan")
"""Languages of blocks that are only to be read."""
TIMEOUT_S = 120

_FENCE = re.compile(
    r"(?:^<!-- exit (?P<exit>\d+) -->\n)?^(?P<tick>```)(?P<language>\w*)[^\n]*\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_COMMAND = re.compile(r"^ *(?:\$ |(?:\S*/)?(?:quantkit|python3?|pip|make|bash|pytest) )", re.MULTILINE)
_SPAN = re.compile(r"(?<!`)`(quantkit [^`]+)`(?!`)")


@dataclass(frozen=True)
class Block:
    """A fenced block of a document.

    Attributes:
        place: file and line, for messages.
        language: what stands after the fence.
        text: what stands in the block.
        exit: the code with which its last command ends.
    """

    place: str
    language: str
    text: str
    exit: int = 0


@dataclass(frozen=True)
class Step:
    """A command of a block.

    Attributes:
        place: file and line of its block.
        language: of its block.
        command: as it is shown, without prompt and without a comment behind it.
        shown: the output that the document shows below it.
        exit: the code with which it ends.
    """

    place: str
    language: str
    command: str
    shown: str = ""
    exit: int = 0


def blocks(document: Path) -> list[Block]:
    """Every fenced block of a Markdown file, in order."""
    text = document.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        place = f"{document.name}:{text.count(chr(10), 0, match.start('tick')) + 1}"
        found.append(Block(place, match["language"], match["text"], int(match["exit"] or 0)))
    return found


def steps(document: Path) -> list[Step]:
    """Every command of a document, in order.

    Raises:
        ValueError: a block that is to be run holds no command.
    """
    found = []
    for block in blocks(document):
        if block.language not in RUNNABLE:
            continue
        commands = list(_commands(block))
        if not commands:
            raise ValueError(f"{block.place}: there is no command in it")
        for number, (command, shown) in enumerate(commands, start=1):
            code = block.exit if number == len(commands) else 0
            found.append(Step(block.place, block.language, command, shown, code))
    return found


def _commands(block: Block) -> Iterator[tuple[str, str]]:
    """The commands of a block, each with the output that is shown below it."""
    if block.language == "python":
        yield block.text, ""
    elif block.language == "console":
        for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
            lines = part.splitlines()
            end = next(i for i, line in enumerate(lines) if not line.endswith("\\"))
            yield "\n".join(lines[: end + 1]), "\n".join(lines[end + 1 :])
    else:
        for line in block.text.replace("\\\n", " ").splitlines():
            if command := re.sub(r"(^| +)# .*", "", line).strip():
                yield command, ""


def faults(document: Path) -> list[str]:
    """Blocks without a language that is known, and commands that stand where none is run."""
    found = []
    for block in blocks(document):
        if block.language not in (*RUNNABLE, *SHOWN):
            found.append(f"{block.place}: a block of {block.language or 'no language'}")
        elif block.language not in RUNNABLE and _COMMAND.search(block.text):
            found.append(f"{block.place}: a command in a block of {block.language}")
    text = _FENCE.sub("", document.read_text(encoding="utf-8"))
    found += [
        f"{document.name}: a command in an indented block: {line.strip()}"
        for line in text.splitlines()
        if line.startswith("    ") and _COMMAND.match(line)
    ]
    return found


def spans(document: Path) -> list[list[str]]:
    """The words of every `quantkit ...` that stands in a sentence."""
    text = _FENCE.sub("", document.read_text(encoding="utf-8"))
    return [shlex.split(match[1].replace("\n", " "))[1:] for match in _SPAN.finditer(text)]


def matches(shown: str, actual: str) -> bool:
    """Whether output is what a document shows of it; blanks at line ends do not count."""
    wanted = [line.rstrip() for line in shown.strip("\n").splitlines()]
    parts = []
    for line in wanted:
        if line == "...":
            parts.append(r"(?:.*\n)*?")
        else:
            parts.append(re.escape(line).replace(re.escape("..."), ".*?") + r"\n")
    lines = "".join(f"{line.rstrip()}\n" for line in actual.strip("\n").splitlines())
    return re.fullmatch("".join(parts), lines) is not None


@contextlib.contextmanager
def workplace(folder: Path) -> Iterator[None]:
    """Makes `folder` the current one; quantkit is this checkout's, 80 columns, no colours, a cache of its own."""
    programs = folder / ".bin"
    programs.mkdir(exist_ok=True)
    for name, call in (("quantkit", "-m quantkit"), ("python", "")):
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {call} "$@"\n')
        (programs / name).chmod(0o755)
    inherited = os.environ.get("PYTHONPATH", "")
    settings = {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(CHECKOUT), *([inherited] if inherited else [])]),
        "PYTHONUNBUFFERED": "1",
        "COLUMNS": "80",
        "NO_COLOR": "1",
        "QUANTKIT_CACHE": str(folder / ".cache"),
    }
    before = Path.cwd()
    with mock.patch.dict(os.environ, settings):
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


def plain_call(command: str) -> list[str] | None:
    """The words of a call of quantkit that needs no shell; None for everything else."""
    lexer = shlex.shlex(command.replace("\\\n", " "), posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words = list(lexer)
    if words[0] != "quantkit" or any(set(word) <= set("();<>|&") for word in words):
        return None
    return words


def call_here(words: list[str]) -> tuple[int, str]:
    """Exit code and output (standard error included) of a call of quantkit in this process."""
    from quantkit.cli.app import main

    output = io.StringIO()
    with (
        mock.patch.object(sys, "argv", words),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(output),
    ):
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return code, output.getvalue()


def call_shell(command: str) -> tuple[int, str]:
    """Exit code and output (standard error included) of a command line."""
    done = subprocess.run(
        ["bash", "-c", command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    return done.returncode, done.stdout


def run_step(step: Step, names: dict[str, Any]) -> None:
    """Runs a command; AssertionError, with its place, when code or output are not those shown."""
    if step.language == "python":
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile(step.command, step.place, "exec"), names)
        except (Exception, SystemExit) as error:
            raise AssertionError(f"{step.place}: {type(error).__name__}: {error}\n{step.command}") from error
        return
    words = plain_call(step.command)
    code, output = call_shell(step.command) if words is None else call_here(words)
    said = f"{step.place}: {step.command}\n{output}"
    assert code == step.exit, f"{said}\nends with {code}, not {step.exit}"
    assert not step.shown.strip() or matches(step.shown, output), f"{said}\nand not\n{step.shown}"


def run_document(
    document: Path,
    names: Mapping[str, Any],
    not_run: Mapping[str, Callable[[str], None]] | None = None,
    ends: Mapping[str, int] | None = None,
) -> int:
    """Runs every command of a document in the current folder; those in `not_run` are checked by what stands there.

    Args:
        document: a Markdown file.
        names: what its Python blocks take for granted.
        not_run: command -> the check that it gets instead.
        ends: command -> the code with which it ends, where that is not the one that the document says.

    Returns:
        How many commands were run.
    """
    instead, shared, count = dict(not_run or {}), dict(names), 0
    for step in steps(document):
        if check := instead.get(step.command):
            check(step.command)
        else:
            run_step(replace(step, exit=(ends or {}).get(step.command, step.exit)), shared)
            count += 1
    return count

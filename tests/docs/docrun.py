"""Runs what a document shows, and compares what it says comes out.

A fenced block is run when the line before it is a comment that says so:

    <!-- run -->
    ```console
    $ quantkit table diff old.cache new.cache
    2 equal, 0 different, 0 missing, 0 extra
    ```

- In `console` blocks a line that starts with "$ " is a command (a line that ends in a backslash goes on), what stands
  below it is its output, standard error included. No output below means that it is not compared. A line of "..." stands
  for any number of lines, and "..." inside a line for any text.
- `sh` and `bash` blocks are scripts, `python` blocks are programs; their output is not compared.
- `<!-- run exit=1 -->`: the (last) command ends with that code; every other one with 0.
- `<!-- not run: REASON -->` says why a block is only to be read.

All blocks of a document run in turn in one folder, in which `quantkit` and `python` are this checkout's.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
RUNNABLE = ("console", "sh", "bash", "python")
TIMEOUT_S = 120

_FENCE = re.compile(
    r"(?:^<!-- (?P<mark>run|not run)(?P<rest>[^\n]*?) -->\n+)?^```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a document.

    Attributes:
        place: file and line, for messages.
        language: what stands after the fence.
        text: what stands in the block.
        mark: "run", "not run" or "" (no comment in front).
        exit: the code with which its last command ends.
    """

    place: str
    language: str
    text: str
    mark: str
    exit: int = 0


def blocks(document: Path) -> list[Block]:
    """Every fenced block of a Markdown file, in order."""
    text = document.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        line = text.count("\n", 0, match.start("language")) + 1
        code = re.search(r"exit=(\d+)", match["rest"] or "")
        mark = match["mark"] or ""
        place = f"{document.name}:{line}"
        found.append(Block(place, match["language"], match["text"], mark, int(code[1]) if code else 0))
    return found


def unmarked(document: Path) -> list[str]:
    """Places of blocks that hold commands and say neither that they are run nor why not."""
    return [block.place for block in blocks(document) if block.language in RUNNABLE and not block.mark]


def steps(block: Block) -> Iterator[tuple[str, str]]:
    """Commands and the output shown below each; one command, without output, where the block is no console."""
    if block.language != "console":
        yield block.text, ""
        return
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        lines = part.splitlines()
        end = next(i for i, line in enumerate(lines) if not line.endswith("\\"))
        yield "\n".join(lines[: end + 1]), "\n".join(lines[end + 1 :])


def calls(document: Path, program: str = "quantkit") -> list[tuple[str, list[str]]]:
    """Place and words of every line in a fenced block that calls the program, marked or not; comments are cut off."""
    found = []
    for block in blocks(document):
        if block.language not in ("", *RUNNABLE) or block.language == "python":
            continue
        for line in block.text.replace("\\\n", " ").splitlines():
            text = line.removeprefix("$ ")
            if text.startswith(f"{program} "):
                found.append((block.place, shlex.split(text, comments=True)[1:]))
    return found


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


def environment(folder: Path) -> dict[str, str]:
    """The environment of the commands: this checkout's quantkit, 80 columns, no colours, a cache of its own."""
    programs = folder / ".bin"
    programs.mkdir(exist_ok=True)
    for name, call in (("quantkit", "-m quantkit"), ("python", "")):
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {call} "$@"\n')
        (programs / name).chmod(0o755)
    inherited = os.environ.get("PYTHONPATH", "")
    return {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(CHECKOUT), *([inherited] if inherited else [])]),
        "PYTHONUNBUFFERED": "1",
        "COLUMNS": "80",
        "NO_COLOR": "1",
        "QUANTKIT_CACHE": str(folder / ".cache"),
    }


def run_block(block: Block, folder: Path, settings: Mapping[str, str]) -> None:
    """Runs a block; AssertionError, with its place, when code or output are not those shown."""
    todo = list(steps(block))
    assert todo, f"{block.place}: there is no command in it"
    for number, (command, shown) in enumerate(todo, start=1):
        call = ["bash", "-c", command] if block.language != "python" else [sys.executable, "-c", command]
        done = subprocess.run(
            *(call,),
            cwd=folder,
            env=dict(settings),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        wanted = block.exit if number == len(todo) else 0
        said = f"{block.place}: {command}\n{done.stdout}"
        assert done.returncode == wanted, f"{said}\nends with {done.returncode}, not {wanted}"
        assert not shown.strip() or matches(shown, done.stdout), f"{said}\nand not\n{shown}"


def run_document(document: Path, folder: Path) -> int:
    """Runs every block that a document marks for it, in a folder; their number."""
    marked = [block for block in blocks(document) if block.mark == "run"]
    settings = environment(folder)
    for block in marked:
        run_block(block, folder, settings)
    return len(marked)

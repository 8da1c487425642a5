"""The reference of all commands, docs/cli.md, made from the commands themselves.

python -m quantkit.cli.reference           # writes docs/cli.md
python -m quantkit.cli.reference --check   # exit code 1 when it is stale; writes nothing
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import typer

from quantkit.cli.app import PROGRAM, app
from quantkit.files import write_text

PLACE = Path("docs") / "cli.md"
COMMAND = "python -m quantkit.cli.reference"
HIDDEN = ("--help", "--install-completion", "--show-completion")
"""Options that every command or program has; the text before the commands speaks of them."""

HEAD = f"""# Command line

All commands and options, as `--help` has them. This file is generated: `{COMMAND}` writes it,
and a test fails when it is stale.

Every command ends with exit code 0 when it did what it was asked, 1 when the answer is no (a table is not valid, two
tables differ, every engine failed), and 2 when it could not be asked (bad input; one sentence and the next step on
standard error). With `--json` standard output is one JSON value and nothing else, errors included. With `--quiet`
there is no progress and no remark, and standard error has nothing but errors. A command whose answer is in a file or
in its exit code then prints nothing; the others print the answer alone: `doctor`, `audit` and `table show`, and
without `--out` `eval`, `bench`, `profile` and `calibrate --study`. Progress and remarks go to standard error. Colours
are left out where `NO_COLOR` is set or standard output is no terminal.

`quantkit --install-completion` sets up completion of commands, options and their values for bash, zsh, fish or
PowerShell, whichever it is started from; `quantkit --show-completion` prints the script instead.
"""


def reference() -> str:
    """The whole text, ending in a line feed."""
    root: Any = typer.main.get_command(app)
    commands = list(_leaves(root, (PROGRAM,)))
    listed = "\n".join(f"| [`{name}`](#{_anchor(name)}) | {_first_sentence(command)} |" for name, command in commands)
    parts = [HEAD, f"| command | what it does |\n| --- | --- |\n{listed}\n", _options_of(root)]
    parts += [_section(name, command) for name, command in commands]
    return "\n".join(part for part in parts if part)


def _leaves(command: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """Full name and command of everything that does something, in the order of --help."""
    children: Mapping[str, Any] = getattr(command, "commands", {})
    if not children:
        yield " ".join(path), command
    for name, child in children.items():
        yield from _leaves(child, (*path, name))


def _anchor(name: str) -> str:
    """The anchor that a Markdown viewer makes of a heading."""
    return name.lower().replace(" ", "-")


def _first_sentence(command: Any) -> str:
    return _paragraphs(command)[0].partition(". ")[0].rstrip(".") + "."


def _paragraphs(command: Any) -> list[str]:
    """The command's help, a text a paragraph."""
    return [" ".join(part.split()) for part in (command.help or "").split("\n\n") if part.strip()]


def _section(name: str, command: Any) -> str:
    """One command: usage, what it does, arguments and options."""
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    words = " ".join(_shown(p) for p in arguments)
    lines = [f"## {name}\n", "```", f"{name} [OPTIONS] {words}".rstrip(), "```\n"]
    lines += [f"{paragraph}\n" for paragraph in _paragraphs(command)]
    if arguments:
        lines.append("| argument | default | meaning |\n| --- | --- | --- |")
        lines += [f"| `{p.name.upper()}` | {_default(p)} | {_cell(p.help)} |" for p in arguments]
        lines.append("")
    return "\n".join([*lines, _options_of(command)])


def _shown(argument: Any) -> str:
    """An argument in the usage line."""
    word = argument.name.upper() + ("..." if argument.nargs == -1 else "")
    return word if argument.required else f"[{word}]"


def _options_of(command: Any) -> str:
    """A table of options for each of their panels, those without one first."""
    panels: dict[str, list[Any]] = {}
    for param in command.params:
        if param.param_type_name == "option" and not param.hidden and not set(param.opts) & set(HIDDEN):
            panels.setdefault(getattr(param, "rich_help_panel", None) or "", []).append(param)
    lines = []
    for panel in sorted(panels, key=bool):
        title = panel or "option"
        lines.append(f"| {title} | default | meaning |\n| --- | --- | --- |")
        lines += [f"| {_flags(p)} | {_default(p)} | {_cell(p.help)} |" for p in panels[panel]]
        lines.append("")
    return "\n".join(lines)


def _flags(option: Any) -> str:
    """The ways to write an option."""
    value = "" if option.is_flag else " VALUE"
    words = ", ".join(f"`{flag}{value}`" for flag in option.opts)
    off = f" / `{option.secondary_opts[0]}`" if option.secondary_opts else ""
    return words + off + (" (repeatable)" if option.multiple else "")


def _default(param: Any) -> str:
    """The default as a reader wants it."""
    if param.required:
        return "required"
    if isinstance(param.show_default, str):
        return _cell(param.show_default)
    value = param.default
    if getattr(param, "is_flag", False) and not param.secondary_opts:
        return ""
    if isinstance(value, bool):
        flag = param.opts[0] if value else param.secondary_opts[0]
        return f"`{flag}`"
    return "" if value in (None, "", [], ()) else f"`{value}`"


def _cell(text: str | None) -> str:
    """Text that may stand in a cell of a table."""
    return (text or "").replace("|", "\\|").replace("\n", " ")


def main(arguments: list[str]) -> int:
    """Writes the file, or checks it; the exit code."""
    text = reference()
    if arguments == ["--check"]:
        fresh = PLACE.is_file() and PLACE.read_text(encoding="utf-8") == text
        typer.echo(f"{PLACE} is {'up to date' if fresh else f'stale: run {COMMAND}'}.")
        return 0 if fresh else 1
    typer.echo(f"{write_text(PLACE, text)} written")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Renaming the tensors of a table, for a model that was exported with other names."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from quantkit.errors import TableError
from quantkit.tables.formats import read_limited
from quantkit.tables.table import CalibrationTable, decode, shorten

ARROW = "=>"
REGEX = "regex:"


@dataclass(frozen=True)
class Rule:
    r"""One rule.

    Args:
        old: a whole name, or a regular expression of which every occurrence is replaced.
        new: what stands there instead; after a regular expression, \1 is its first group.
        regex: whether `old` is a regular expression (Python's `re`).

    Raises:
        TableError: the regular expression, or its replacement, is none.
    """

    old: str
    new: str
    regex: bool = False

    def __post_init__(self) -> None:
        if not self.regex:
            return
        try:
            re.compile(self.old).sub(self.new, "")  # the replacement is parsed whether or not something matches
        except (re.error, RecursionError, OverflowError) as error:
            raise TableError(f"The rule {self!s} is no regular expression with its replacement: {error}.") from error

    def __str__(self) -> str:
        return f"{REGEX + ' ' if self.regex else ''}{self.old} {ARROW} {self.new}"

    def apply(self, name: str) -> str:
        """The name after this rule."""
        if self.regex:
            return re.sub(self.old, self.new, name)
        return self.new if name == self.old else name


@dataclass(frozen=True)
class Renamed:
    """What renaming did.

    Attributes:
        table: the table with the new names, in the same order.
        changed: old name -> new name, of those that changed.
        unused: rules that changed nothing.
    """

    table: CalibrationTable
    changed: dict[str, str]
    unused: tuple[Rule, ...]


def parse_rule(text: str, where: str, *, regex: bool | None = None) -> Rule:
    """The rule in `OLD => NEW` or `regex: PATTERN => NEW`; blanks around the parts do not count.

    Args:
        text: the rule.
        where: starts every message, for example "rules.txt, line 3".
        regex: whether OLD is a regular expression; None looks for the word in front.

    Raises:
        TableError: there is not exactly one arrow, a part is empty, or the expression is none.
    """
    parts = text.split(ARROW)
    if len(parts) != 2:
        raise TableError(f"{where}: expected OLD {ARROW} NEW, found {shorten(text)!r}.")
    old, new = (part.strip() for part in parts)
    is_regex = old.startswith(REGEX) if regex is None else regex
    old = old.removeprefix(REGEX).strip() if regex is None and is_regex else old
    if not old or not (new or is_regex):
        raise TableError(f"{where}: a part of the rule {shorten(text)!r} is empty.")
    try:
        return Rule(old, new, is_regex)
    except TableError as error:
        raise TableError(f"{where}: {error.message}") from error


def parse_rules(text: str, source: str) -> list[Rule]:
    """The rules of a file, a line each; empty lines and lines that start with # are skipped."""
    lines = enumerate(text.splitlines(), start=1)
    return [
        parse_rule(line, f"{source}, line {number}")
        for number, line in lines
        if line.strip() and not line.lstrip().startswith("#")
    ]


def gather_rules(file: Path | None, exact: Iterable[str], regex: Iterable[str]) -> list[Rule]:
    """The rules of a file, then those given one by one, in order.

    Raises:
        TableError: there is none at all, or one that cannot be read; file and line, or the option, are named.
        StorageError: the file cannot be read.
    """
    rules: list[Rule] = []
    if file is not None:
        rules += parse_rules(decode(read_limited(file), str(file)), str(file))
    rules += [parse_rule(text, "--exact", regex=False) for text in exact]
    rules += [parse_rule(text, "--regex", regex=True) for text in regex]
    if not rules:
        raise TableError("There is no rule to rename by.", "Give --rules, --exact or --regex.")
    return rules


def rename(table: CalibrationTable, rules: Iterable[Rule]) -> Renamed:
    """Applies the rules in order, each to what the ones before it made.

    Raises:
        TableError: two tensors would have the same name (both are named), or one would have none.
    """
    ordered = tuple(rules)
    used: set[Rule] = set()
    source: dict[str, str] = {}
    for name in table.names:
        new = name
        for rule in ordered:
            after = rule.apply(new)
            if after != new:
                used.add(rule)
            new = after
        if not new:
            raise TableError(f"The rules leave no name for {name!r}.")
        if new in source:
            raise TableError(
                f"{source[new]!r} and {name!r} would both be called {new!r}.", "Make the rules tell them apart."
            )
        source[new] = name
    entries = {new: table.entries[old] for new, old in source.items()}
    renamed = CalibrationTable(entries, table.algorithm, table.parameters, table.provenance)
    changed = {old: new for new, old in source.items() if old != new}
    return Renamed(renamed, changed, tuple(rule for rule in ordered if rule not in used))

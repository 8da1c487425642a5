"""A table from names that users type to the things behind them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any, Generic, TypeVar, cast

from quantkit.errors import UnknownNameError

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """Name -> thing, where a thing may be given as "module:attribute" and is imported when first asked for.

    Args:
        kind: what the names stand for, in words; used in error messages.
        entries: the things, or where they are.
    """

    def __init__(self, kind: str, entries: Mapping[str, T | str]) -> None:
        self._kind = kind
        self._entries: dict[str, Any] = dict(entries)

    def register(self, name: str, thing: T | str) -> None:
        """Adds a name; a name that is taken raises ValueError."""
        if name in self._entries:
            raise ValueError(f"{self._kind} {name!r} is registered already")
        self._entries[name] = thing

    def __getitem__(self, name: str) -> T:
        if name not in self._entries:
            raise UnknownNameError(self._kind, name, self._entries)
        entry = self._entries[name]
        if isinstance(entry, str):
            module, _, attribute = entry.partition(":")
            entry = self._entries[name] = getattr(import_module(module), attribute)
        return cast(T, entry)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

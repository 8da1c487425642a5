"""Sizes of memory as people write and read them."""

from __future__ import annotations

import re

from quantkit.errors import InputError

UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
DECIMAL = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,6})?) ?([KMGT]?)(I?B?)", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes of "4G", "4GiB" (2**30 each), "4GB" (10**9), "900M" or a plain number; 0 for an empty text.

    Raises:
        InputError: it is no size.
    """
    if not text.strip():
        return 0
    match = SIZE.fullmatch(text.strip())
    unit = match[2].upper() if match else ""
    if match is None or (match[3] and not unit and match[3].upper() != "B"):
        raise InputError(f"--memory is {text!r}, which is no size.", "Give one such as 4G, 1.5GiB or 900M.")
    factor = DECIMAL[f"{unit}B"] if unit and match[3].upper() == "B" else UNITS[unit]
    size = int(float(match[1]) * factor)
    if size == 0:
        raise InputError("--memory is 0; expected a size above that.", "Leave it out for no limit.")
    return size


def shown(size: float) -> str:
    """A number of bytes for people: "1.4 GiB", "310 MiB"."""
    return f"{size / 2**30:.2f} GiB" if size >= 1 << 30 else f"{-(-int(size) // (1 << 20))} MiB"

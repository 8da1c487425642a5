"""Prints a constraints file: the lowest version that the installed quantkit admits of every package it names.

Read from the installed package, so the bounds stand in pyproject.toml alone. Of the extras, what the tests need counts.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import requires

EXTRAS = ("", "dev")


def main() -> int:
    """Prints the constraints; the exit code is 1 when a requirement has no lower bound."""
    for requirement in requires("quantkit") or ():
        package, _, condition = requirement.partition(";")
        name, bound = re.match(r"[\w.-]+", package), re.search(r">=\s*([\w.]+)", package)
        if name is None or bound is None:
            print(f"There is no lower bound in {requirement!r}.", file=sys.stderr)
            return 1
        extra = re.search(r"extra == ['\"](\w+)['\"]", condition)
        if (extra[1] if extra else "") in EXTRAS:
            print(f"{name[0]}=={bound[1]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

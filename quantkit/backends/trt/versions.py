"""TensorRT version numbers."""

from __future__ import annotations

import re
from typing import NamedTuple

from quantkit.errors import BackendError
from quantkit.tables.trt_text import header_number

_NUMBER = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?")


class Version(NamedTuple):
    """A TensorRT version; compares like the tuple it is."""

    major: int
    minor: int
    patch: int = 0

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"

    @property
    def number(self) -> int:
        """The version as calibration caches write it: 8600 for 8.6.0, 100300 for 10.3.0."""
        return header_number(*self)


def parse_version(text: str) -> Version:
    """The version in a string such as "8.6.0" or "10.3.0.post1".

    Raises:
        BackendError: it does not start with a version number.
    """
    match = _NUMBER.match(text)
    if match is None:
        raise BackendError(f"TensorRT calls its version {text!r}; expected a number such as 8.6.0.")
    return Version(int(match[1]), int(match[2]), int(match[3] or 0))

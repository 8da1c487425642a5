"""Colours of the page: legible, and told apart by readers who see no red or no green."""

from __future__ import annotations

import re
from itertools import combinations

import numpy as np
import pytest

from quantkit.report.html import asset

# What dichromats see of linear RGB (F. Vienot, H. Brettel, J. D. Mollon, 1999).
SIGHT = {
    "normal": np.eye(3),
    "no red": [[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]],
    "no green": [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]],
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def themes():
    """Light and dark: variable -> (3,) sRGB in [0, 1]."""
    blocks = re.findall(r"^:root[^{]*\{(.*?)\}", asset("report.css"), re.MULTILINE | re.DOTALL)
    found = [dict(re.findall(r"--([\w-]+): #([0-9a-f]{6})", block)) for block in blocks]
    return {
        name: {key: np.array([int(value[i : i + 2], 16) for i in (0, 2, 4)]) / 255 for key, value in block.items()}
        for name, block in zip(("light", "dark"), found, strict=True)
    }


def linear(rgb):
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(rgb, sight):
    x, y, z = TO_XYZ @ np.clip(np.asarray(SIGHT[sight]) @ linear(rgb), 0, 1) / [0.9505, 1, 1.089]
    fx, fy, fz = (t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116 for t in (x, y, z))
    return np.array([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)])


def contrast(first, second):
    """WCAG's ratio of luminances."""
    high, low = sorted((float(TO_XYZ[1] @ linear(c)) for c in (first, second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_is_legible(theme):
    colours = themes()[theme]
    for ink in ("ink", "soft", "good", "bad", "accent"):
        for paper in ("paper", "card"):
            assert contrast(colours[ink], colours[paper]) >= 4.5, (ink, paper)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("sight", SIGHT)
def test_colours_are_told_apart(theme, sight):
    colours = {name: lab(rgb, sight) for name, rgb in themes()[theme].items()}
    for group, least in (
        (("c-fp32", "c-fp16", "c-int8"), 20),
        (("good", "bad", "soft"), 12),
        ([f"m{i}" for i in range(6)], 15),
    ):
        for a, b in combinations(group, 2):
            assert np.linalg.norm(colours[a] - colours[b]) >= least, (a, b)

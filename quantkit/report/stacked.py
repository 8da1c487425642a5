"""Stacked bars as SVG: a picture without a plotting library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

COLOURS = ("#31688e", "#d1495b", "#9aa5b1", "#edae49", "#66a182")
WIDTH, BAR, GAP, LEFT, RIGHT, TOP, BOTTOM = 860, 22, 12, 210, 90, 46, 30


def stacked_bars(title: str, parts: Sequence[str], bars: Mapping[str, Mapping[str, float]], unit: str) -> str:
    """Horizontal stacked bars, one a name, each with its parts' shares and its total.

    Args:
        title: above the picture.
        parts: names of the parts, in the order of stacking.
        bars: bar's name -> part -> value; a part that is missing is 0.
        unit: of the values.
    """
    longest = max((sum(bar.get(part, 0.0) for part in parts) for bar in bars.values()), default=0.0) or 1.0
    scale = (WIDTH - LEFT - RIGHT) / longest
    height = TOP + len(bars) * (BAR + GAP) + BOTTOM
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="12" y="22" font-size="15" font-weight="bold">{escape(title)}</text>',
    ]
    for row, (name, bar) in enumerate(bars.items()):
        y, x = TOP + row * (BAR + GAP), float(LEFT)
        total = sum(bar.get(part, 0.0) for part in parts)
        lines.append(f'<text x="{LEFT - 8}" y="{y + 15}" text-anchor="end">{escape(name)}</text>')
        for part, colour in zip(parts, _colours(len(parts)), strict=True):
            value = bar.get(part, 0.0)
            wide = value * scale
            lines.append(f'<rect x="{x:.1f}" y="{y}" width="{wide:.1f}" height="{BAR}" fill="{colour}"/>')
            if wide > 34:  # a share is only written where there is room for it
                share = f"{100 * value / total:.0f} %"
                lines.append(
                    f'<text x="{x + wide / 2:.1f}" y="{y + 15}" fill="#fff" text-anchor="middle">{share}</text>'
                )
            x += wide
        lines.append(f'<text x="{x + 6:.1f}" y="{y + 15}">{total:.4g} {escape(unit)}</text>')
    x = float(LEFT)
    for part, colour in zip(parts, _colours(len(parts)), strict=True):
        y = height - BOTTOM + 6
        lines.append(f'<rect x="{x:.1f}" y="{y}" width="12" height="12" fill="{colour}"/>')
        lines.append(f'<text x="{x + 17:.1f}" y="{y + 10}">{escape(part)}</text>')
        x += 30 + 7.5 * len(part)
    return "\n".join([*lines, "</svg>", ""])


def _colours(count: int) -> list[str]:
    """That many colours."""
    return [COLOURS[i % len(COLOURS)] for i in range(count)]

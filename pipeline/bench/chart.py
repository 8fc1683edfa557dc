"""A bar chart as SVG, drawn by hand: for the docs, which must not need a library for a picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

_BAR, _GAP, _TOP, _LABELS, _WIDTH, _FIGURES = 22, 12, 64, 190, 420, 210
_COLOURS = ("#2f6f9f", "#b9cfdf")
_OWN_COLOURS = ("#c2571a", "#eec9ad")


@dataclass(frozen=True, slots=True)
class Bar:
    """One line: parts that lie end to end, a whisker from low to high, and what to write behind.

    ``is_own`` sets it off by colour.
    """

    label: str
    parts: tuple[float, ...]
    note: str
    low: float = 0.0
    high: float = 0.0
    is_own: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """Bars on one scale, from zero to the longest."""

    title: str
    subtitle: str
    bars: Sequence[Bar]


def svg(panels: Sequence[Panel]) -> str:
    """The panels under one another."""
    top, drawn = 0, list[str]()
    for panel in panels:
        drawn += _panel(panel, top)
        top += _TOP + len(panel.bars) * (_BAR + _GAP) + _GAP
    width = _LABELS + _WIDTH + _FIGURES
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {top}" width="{width}" '
            f'height="{top}" font-family="system-ui, sans-serif" font-size="13" fill="#222">',
            f'<rect width="{width}" height="{top}" fill="#fff"/>',
            *drawn,
            "</svg>",
            "",
        ]
    )


def _panel(panel: Panel, top: int) -> list[str]:
    longest = max(max(sum(bar.parts), bar.high) for bar in panel.bars) or 1.0
    lines = [
        f'<text x="16" y="{top + 28}" font-size="16" font-weight="600">'
        f"{escape(panel.title)}</text>",
        f'<text x="16" y="{top + 48}" fill="#666">{escape(panel.subtitle)}</text>',
    ]
    for index, bar in enumerate(panel.bars):
        lines += _bar(bar, top + _TOP + index * (_BAR + _GAP), _WIDTH / longest)
    return lines


def _bar(bar: Bar, y: int, scale: float) -> list[str]:
    middle = y + _BAR / 2
    weight = ' font-weight="600"' if bar.is_own else ""
    lines = [
        f'<text x="{_LABELS - 8}" y="{middle + 4:.1f}" text-anchor="end"{weight}>'
        f"{escape(bar.label)}</text>"
    ]
    x = float(_LABELS)
    for part, colour in zip(bar.parts, _OWN_COLOURS if bar.is_own else _COLOURS, strict=False):
        lines.append(
            f'<rect x="{x:.1f}" y="{y}" width="{max(part * scale, 0.5):.1f}" height="{_BAR}" '
            f'fill="{colour}"/>'
        )
        x += part * scale
    if bar.high > bar.low:
        low, high = _LABELS + bar.low * scale, _LABELS + bar.high * scale
        x = max(x, high)
        lines.append(
            f'<path d="M{low:.1f} {middle}H{high:.1f}M{low:.1f} {middle - 4}v8'
            f'M{high:.1f} {middle - 4}v8" stroke="#222" fill="none"/>'
        )
    lines.append(f'<text x="{x + 8:.1f}" y="{middle + 4:.1f}">{escape(bar.note)}</text>')
    return lines

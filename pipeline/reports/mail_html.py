"""HTML for mail clients: tables, inline styles, no images, no scripts, nothing fetched.

A page is a single column that fills a narrow window and stops growing at 640 pixels. Every text
that is put in is escaped here, and only here.
"""

from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

WIDTH_PX = 640

_FONT = "font-family:-apple-system,'Segoe UI',Roboto,Helvetica,Arial,sans-serif;"
_INK, _QUIET, _LINE, _BAR, _TRACK = "#1c2430", "#5a6675", "#dfe4ea", "#2f6f8f", "#eef1f4"
_CELL = f"padding:7px 0;border-top:1px solid {_LINE};vertical-align:top;"
_PERCENT = 100


class Bar(NamedTuple):
    """A row with a bar: what it is, its amount, a line under it, and its share in percent."""

    label: str
    amount: str
    note: str
    percent: int


def page(title: str, parts: Iterable[str]) -> str:
    """The whole document; ``parts`` come from the functions below."""
    rows = "".join(f"<tr><td>{part}</td></tr>\n" for part in parts)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light"><meta name="supported-color-schemes" '
        f'content="light"><title>{escape(title)}</title></head>\n'
        f'<body style="margin:0;padding:0;background:#f4f6f8;color:{_INK};{_FONT}'
        'font-size:15px;line-height:1.45;">\n'
        '<table role="presentation" width="100%" cellpadding="0" cellspacing="0" border="0" '
        'style="background:#f4f6f8;"><tr><td align="center" style="padding:16px 8px;">\n'
        '<table role="presentation" width="100%" cellpadding="0" cellspacing="0" border="0" '
        f'style="max-width:{WIDTH_PX}px;background:#ffffff;border:1px solid {_LINE};'
        'border-radius:6px;text-align:left;"><tr><td style="padding:20px 18px;">\n'
        '<table role="presentation" width="100%" cellpadding="0" cellspacing="0" border="0">\n'
        f"{rows}</table>\n</td></tr></table>\n</td></tr></table>\n</body></html>\n"
    )


def heading(title: str, under: str = "") -> str:
    """The first lines of a page."""
    below = _paragraph(under, _QUIET, "2px 0 0") if under else ""
    return f'<h1 style="margin:0;font-size:21px;line-height:1.25;">{escape(title)}</h1>{below}'


def section(title: str) -> str:
    """The title of what follows."""
    return f'<h2 style="margin:24px 0 6px;font-size:16px;">{escape(title)}</h2>'


def paragraph(text: str) -> str:
    """Running text."""
    return _paragraph(text, _INK, "12px 0 16px")


def small_print(text: str) -> str:
    """What is good to know."""
    return _paragraph(text, _QUIET, "14px 0 0", "font-size:13px;")


def figure(label: str, amount: str, note: str) -> str:
    """One figure that stands out."""
    return (
        f'<p style="margin:16px 0 0;color:{_QUIET};font-size:13px;">{escape(label)}</p>'
        f'<p style="margin:0;font-size:26px;font-weight:600;line-height:1.25;">{escape(amount)}</p>'
        f'<p style="margin:0;color:{_QUIET};font-size:13px;">{escape(note)}</p>'
    )


def bars(rows: Sequence[Bar], none: str) -> str:
    """Rows with a bar each; ``none`` says that there are none."""
    if not rows:
        return _paragraph(none, _QUIET, "4px 0 0")
    return _table("".join(map(_bar_row, rows)))


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """Names and values, a line each."""
    return _table(
        "".join(
            f'<tr><td style="{_CELL}color:{_QUIET};width:38%;padding-right:10px;">{escape(name)}'
            f'</td><td style="{_CELL}word-break:break-word;">{escape(value)}</td></tr>\n'
            for name, value in rows
        )
    )


def _bar_row(row: Bar) -> str:
    percent = min(_PERCENT, max(0, row.percent))
    filled = (
        f'<td width="{percent}%" style="background:{_BAR};height:6px;line-height:6px;'
        'font-size:1px;border-radius:3px;">&nbsp;</td>'
    )
    rest = (
        f'<td width="{_PERCENT - percent}%" style="height:6px;line-height:6px;font-size:1px;">'
        "&nbsp;</td>"
    )
    bar = _bar_table((filled if percent else "") + (rest if percent < _PERCENT else ""))
    return (
        f'<tr><td style="{_CELL}word-break:break-word;padding-right:10px;">{escape(row.label)}</td>'
        f'<td align="right" style="{_CELL}white-space:nowrap;font-weight:600;">'
        f"{escape(row.amount)}</td></tr>\n"
        f'<tr><td colspan="2" style="padding:0 0 2px;">{bar}</td></tr>\n'
        f'<tr><td colspan="2" style="padding:0 0 9px;color:{_QUIET};font-size:13px;">'
        f"{escape(row.note)}</td></tr>\n"
    )


def _bar_table(cells: str) -> str:
    return (
        '<table role="presentation" width="100%" cellpadding="0" cellspacing="0" border="0" '
        f'style="background:{_TRACK};border-radius:3px;"><tr>{cells}</tr></table>'
    )


def _table(rows: str) -> str:
    return (
        '<table width="100%" cellpadding="0" cellspacing="0" border="0" '
        f'style="border-bottom:1px solid {_LINE};font-size:15px;">\n{rows}</table>'
    )


def _paragraph(text: str, colour: str, margin: str, more: str = "") -> str:
    return f'<p style="margin:{margin};color:{colour};{more}">{escape(text)}</p>'

"""How results reach the user: tables on stdout, JSON with ``--json``, progress on stderr."""

import json
import re
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from decimal import Decimal

import click

as_json = click.option("--json", "json_wanted", is_flag=True, help="Print JSON.")
"""Adds ``--json``, handed on as ``json_wanted``."""


_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """``text`` on one line, without characters that a terminal would obey: ids and messages come
    from others."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def print_json(value: object) -> None:
    """One JSON document on one line; money and times as strings."""
    click.echo(json.dumps(value, ensure_ascii=False, default=_plain))


def _plain(value: object) -> str:
    if isinstance(value, Decimal):
        return decimal_text(value)
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    return str(value)


def decimal_text(value: Decimal) -> str:
    """A decimal without exponent and without trailing zeros after the point."""
    text = format(value, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def print_table(rows: Sequence[Mapping[str, object]], columns: Sequence[str]) -> None:
    """Rows under their column names, numbers to the right. An absent or null value is ``-``."""
    texts = [[_cell(row.get(column)) for column in columns] for row in rows]
    widths = [
        max(len(column), *(len(line[index]) for line in texts)) if texts else len(column)
        for index, column in enumerate(columns)
    ]
    numeric = [
        all(_is_number(row.get(column)) for row in rows) and bool(rows) for column in columns
    ]
    for line in [list(columns), *texts]:
        parts = [
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(line, widths, numeric, strict=True)
        ]
        click.echo("  ".join(parts).rstrip())


def _cell(value: object) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return printable(_plain(value))


def _is_number(value: object) -> bool:
    if isinstance(value, bool):
        return False
    if isinstance(value, str):
        return value.replace(".", "", 1).replace("-", "", 1).isdigit()
    return value is None or isinstance(value, int | Decimal)


@contextmanager
def progress(label: str, total: int | None = None) -> Generator[Callable[[int], None]]:
    """Report work as it goes: a bar on a terminal, otherwise a plain line per tenth.

    Yields a function that takes the amount done so far. Everything goes to stderr.
    """
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(label, total=total)
            yield lambda done: bar.update(task, completed=done)
        return
    tenth = 0

    def report(done: int) -> None:
        nonlocal tenth
        reached = done * 10 // total if total else done // 100_000
        if reached > tenth:
            tenth = reached
            of_total = f" of {total}" if total else ""
            click.echo(f"{label}: {done}{of_total}", err=True)

    yield report

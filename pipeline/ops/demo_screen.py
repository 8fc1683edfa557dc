"""What the demo shows: rich tables on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table


class Screen:
    """Writes steps and tables to stdout; nothing when ``quiet``."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._started_s = time.monotonic()
        self._console = Console() if sys.stdout.isatty() else None

    @property
    def elapsed_s(self) -> float:
        """Seconds since the screen was made."""
        return time.monotonic() - self._started_s

    def step(self, text: str) -> None:
        """One line about what happens, with the time since the start."""
        self._line(f"{self.elapsed_s:6.1f} s  {text}", style="bold")

    def line(self, text: str) -> None:
        """One line of a result."""
        self._line(text)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """A table; columns that hold only numbers are aligned to the right."""
        if self._quiet:
            return
        texts = [[_shown(value) for value in row] for row in rows]
        numeric = [
            bool(rows) and all(isinstance(row[at], int | float) for row in rows)
            for at in range(len(columns))
        ]
        if self._console is not None:
            table = Table(title=title, title_justify="left")
            for column, right in zip(columns, numeric, strict=True):
                table.add_column(column, justify="right" if right else "left")
            for row in texts:
                table.add_row(*(text.replace("[", r"\[") for text in row))
            self._console.print(table)
            return
        print(f"\n{title}")
        widths = [max(map(len, column)) for column in zip(columns, *texts, strict=True)]
        for row in [list(columns), *texts]:
            cells = [
                text.rjust(width) if right else text.ljust(width)
                for text, width, right in zip(row, widths, numeric, strict=True)
            ]
            print("  ".join(cells).rstrip())
        sys.stdout.flush()

    def _line(self, text: str, style: str | None = None) -> None:
        if self._quiet:
            return
        if self._console is not None:
            self._console.print(text, style=style, markup=False, highlight=False)
        else:
            print(text, flush=True)


def _shown(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.1f}" if isinstance(value, float) else str(value)

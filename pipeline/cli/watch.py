"""``watch``: budget states as they change."""

import asyncio
import contextlib
import itertools
import shutil
import sys
import threading
import time
from collections.abc import AsyncGenerator, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from pipeline.cli.context import run_async
from pipeline.cli.output import as_json, print_json, print_table, printable
from pipeline.core.errors import TallyportError

if TYPE_CHECKING:
    from rich.table import Table

    from pipeline.core.budgets import StateRecord, StateTable
    from producers.transports.transport import Transport

_COLUMNS = ("scope", "unit", "period", "status", "used", "remaining", "hard_cap", "resets_at")
_STYLES = {
    "hard-cap-exceeded": "bold red",
    "soft-cap-exceeded": "yellow",
    "ok": "green",
    "disabled": "dim",
}
_QUEUED = 1_000
_AGAIN_S = 0.5
_JOIN_S = 5.0
_TABLE_MARGIN = 6
_LEFT_OUT_FIRST = ("resets_at", "remaining", "hard_cap", "used")
_SCOPE_WIDTH = 22
"""A longer scope goes on in the next line, rather than that a column is left out for it."""
_NARROWEST = 60
"""Columns of a terminal in which scope, unit, period and status have room."""


class _Change(NamedTuple):
    """A new state under ``key``; None when it was taken away."""

    key: str
    record: "StateRecord | None"


_Record = tuple[bytes | str, bytes | None]


class _Told(NamedTuple):
    """Records of states; ``is_whole`` where they are all that there are."""

    is_whole: bool
    records: list[_Record]


@click.command()
@click.argument("scopes", nargs=-1, metavar="[SCOPE]...")
@click.option("--once", is_flag=True, help="Print the states as they are now and end.")
@as_json
def watch(scopes: tuple[str, ...], once: bool, json_wanted: bool) -> None:
    """Follow the states of all budgets, or of the SCOPEs given, until Ctrl-C.

    They come over HTTP where TALLYPORT_API_URL is set, else from Kafka.

    A table on a terminal of 60 columns or more, one line per change elsewhere. With --json one
    object per change, the states as they are now first; a state that was taken away has
    "deleted": true.
    """
    from pipeline.core.scopes import parse_scope

    wanted = {parse_scope(scope) for scope in scopes}
    try:
        run_async(_watch(wanted, once, json_wanted))
    except KeyboardInterrupt:
        if once:
            raise


async def _watch(wanted: set[str], once: bool, json_wanted: bool) -> None:
    from pipeline.cli.transports import connected

    board = _Board(await connected(), wanted)
    changes = board.follow()
    try:
        await anext(changes)
        if once and not json_wanted:
            print_table([_fields(record) for record in _ranked(board.table)], _COLUMNS)
        elif json_wanted or not _has_room():
            _print_changes([_Change("", record) for record in board.table.records()], json_wanted)
        if once:
            return
        if json_wanted or not _has_room():
            async for changed in changes:
                _print_changes(changed, json_wanted)
        else:
            await _show_table(board, changes)
    finally:
        await changes.aclose()


class _Board:
    """The states as the SDK's transport tells them, and what changed; see ``StateTaker``.

    ``table`` belongs to the event loop; what the follower's thread takes, it hands over.
    """

    def __init__(self, transport: "Transport", wanted: set[str]) -> None:
        from pipeline.core.budgets import StateTable

        self.table = StateTable()
        self._transport = transport
        self._wanted = wanted
        self._stop = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._queue = asyncio.Queue[_Told | TallyportError](_QUEUED)
        self._is_reading = True
        self._gathered: list[_Record] = []
        self._has_told = False

    async def follow(self) -> AsyncGenerator[list[_Change]]:
        """First, once, all states that are there; then every change.

        Raises ``TallyportError`` where they cannot be had; later it waits for them to come back.
        """
        thread = threading.Thread(target=self._run, name="states", daemon=True)
        thread.start()
        try:
            while True:
                told = await self._queue.get()
                if isinstance(told, TallyportError):
                    raise told
                yield self._apply(told)
        finally:
            self._stop.set()
            await asyncio.to_thread(self._transport.close)
            await asyncio.to_thread(thread.join, _JOIN_S)

    def _apply(self, told: "_Told") -> list[_Change]:
        from pipeline.core.budgets import StateTable

        before = {record.state.key: record for record in self.table.records()}
        if told.is_whole:
            self.table = StateTable()
        changes = [change for record in told.records if (change := self._put(*record))]
        if not told.is_whole:
            return changes
        now = {record.state.key: record for record in self.table.records()}
        changed = [_Change(key, new) for key, new in now.items() if before.get(key) != new]
        return changed + [_Change(key, None) for key in before.keys() - now.keys()]

    def _put(self, key: bytes | str, value: bytes | None) -> _Change | None:
        from pipeline.core.errors import CorruptRecord, InvalidField
        from pipeline.core.scopes import parse_key

        text = key.decode(errors="replace") if isinstance(key, bytes) else key
        try:
            if self._wanted and parse_key(text).scope not in self._wanted:
                return None
            record = self.table.put(key, value)
        except (CorruptRecord, InvalidField):  # as in the SDK, the last readable one stays
            return None
        return _Change(text, record) if record or value is None else None

    # -- in the follower's thread --------------------------------------------------------------

    def begin(self, partitions: int) -> None:
        """See ``StateTaker``."""
        del partitions
        self._is_reading, self._gathered = True, []

    def take(self, partition: int, key: bytes | str, value: bytes | None) -> None:
        """See ``StateTaker``."""
        from pipeline.core.budgets import is_heartbeat

        del partition
        if is_heartbeat(key):
            return
        if self._is_reading:
            self._gathered.append((key, value))
        else:
            self._tell(_Told(False, [(key, value)]))

    def caught_up(self, partitions: int | None = None) -> None:
        """See ``StateTaker``."""
        del partitions
        if self._is_reading:
            self._is_reading, self._has_told = False, True
            self._tell(_Told(True, self._gathered))

    def _run(self) -> None:
        from producers.transports.transport import Unavailable

        [follower] = self._transport.followers(self, None)
        while not self._stop.is_set():
            try:
                follower(self._stop)
            except Unavailable as error:
                if not self._has_told:
                    self._tell(TallyportError(str(error)))
                    return
            self._stop.wait(_AGAIN_S)

    def _tell(self, told: "_Told | TallyportError") -> None:
        with contextlib.suppress(RuntimeError):  # the loop is gone: nobody listens any more
            put = asyncio.run_coroutine_threadsafe(self._queue.put(told), self._loop)
            while not self._stop.is_set():
                with contextlib.suppress(TimeoutError):
                    put.result(_AGAIN_S)
                    return
            put.cancel()


def _fields(record: "StateRecord") -> dict[str, Any]:
    from pipeline.core.budgets import state_fields

    return state_fields(*record)


def _print_changes(changes: Iterable[_Change], json_wanted: bool) -> None:
    from pipeline.core.scopes import format_scope, parse_key

    for key, record in changes:
        if record is None:
            scope, unit, period = parse_key(key)
            fields = {"scope": format_scope(scope), "unit": unit, "period": period, "deleted": True}
        else:
            fields = _fields(record)
        if json_wanted:
            print_json(fields)
        elif record is None:
            click.echo(printable(f"{key} deleted"))
        else:
            limit = "" if fields["hard_cap"] is None else f" of {fields['hard_cap']}"
            line = f"{fields['scope']} {fields['unit']} {fields['period']}: {fields['status']}, "
            click.echo(printable(f"{line}used {fields['used']}{limit}"))
    sys.stdout.flush()


def _ranked(table: "StateTable") -> list["StateRecord"]:
    """Exceeded budgets first, then by the share of the hard cap that is used."""
    order = list(_STYLES)

    def rank(record: "StateRecord") -> tuple[int, float, str]:
        state = record.state
        share = state.used / state.hard_cap if state.hard_cap else 0.0
        return order.index(state.status), -share, state.key

    return sorted(table.records(), key=rank)


def _has_room() -> bool:
    """Whether a table can be shown."""
    return sys.stdout.isatty() and shutil.get_terminal_size().columns >= _NARROWEST


async def _show_table(board: _Board, changes: AsyncGenerator[list[_Change]]) -> None:
    from rich.console import Console
    from rich.live import Live

    console = Console()

    def drawn() -> "Table":
        return states_table(board.table, console.width, console.height)

    with Live(drawn(), console=console, screen=True) as live:
        async for changed in changes:
            if changed:
                live.update(drawn())
            await asyncio.sleep(0)


def states_table(table: "StateTable", width: int, height: int) -> "Table":
    """The states in so many columns and lines of a terminal, those that matter most first.

    Where it is narrow, columns are left out, and a long scope goes on in the next line: neither a
    scope nor a status is cut.
    """
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    records = _ranked(table)
    rows = [
        {name: printable(_shown(value)) for name, value in _fields(record).items()}
        for record in records[: max(1, height - _TABLE_MARGIN)]
    ]
    widths = {
        column: max(len(column), *(cell_len(row[column]) for row in rows)) if rows else len(column)
        for column in _COLUMNS
    }
    columns = _columns_within(width, widths)
    scope_width = max(1, width - _width_of(columns, {**widths, "scope": 0}))
    lines = itertools.accumulate(-(-cell_len(row["scope"]) // scope_width) for row in rows)
    rows = [row for row, end in zip(rows, lines, strict=True) if end <= height - _TABLE_MARGIN]
    title = f"{len(records)} budget states at {time.strftime('%H:%M:%S')}"
    if len(rows) < len(records):
        title += f", the first {len(rows)} shown"
    drawn = Table(title=title, expand=True)
    for column in columns:
        right = column in _COLUMNS[4:7]
        drawn.add_column(
            column,
            justify="right" if right else "left",
            no_wrap=column != "scope",
            overflow="fold",
        )
    for row in rows:
        # As text: an id is no markup.
        drawn.add_row(*(Text(row[column]) for column in columns), style=_STYLES[row["status"]])
    return drawn


def _shown(value: object) -> str:
    return "-" if value is None else str(value)


def _columns_within(width: int, widths: Mapping[str, int]) -> list[str]:
    columns: list[str] = [*_COLUMNS]
    wanted = {**widths, "scope": min(widths["scope"], _SCOPE_WIDTH)}
    for column in _LEFT_OUT_FIRST:
        if _width_of(columns, wanted) <= width:
            break
        columns.remove(column)
    return columns


def _width_of(columns: Iterable[str], widths: Mapping[str, int]) -> int:
    """With the lines between them and a space at each side."""
    return sum(widths[column] + 3 for column in columns) + 1

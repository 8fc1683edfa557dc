"""Marks on days whose rows may be changing: whoever inserts or changes rows writes them first.

A rollup of a day counts only while the day has exactly the marks that were there before the
rollup was built, so a mark in time is all it takes to make the day be summed from the ledger again.
"""

import time
import uuid
from collections.abc import Callable, Collection
from datetime import UTC, date, datetime

from clickhouse_connect.driver.client import Client

from pipeline.ledger.manifests import INSERT_SETTINGS

MARK_HOLDS_S = 10.0
"""A mark this young need not be written again before the next insert."""
QUIET_S = 30.0
"""A day is rolled up when it got no mark for so long: the time that an insert may take."""

_COLUMNS = ("day", "owner", "number", "marked_at")


class DayMarks:
    """The marks of one process, under a name that nobody else has. Not for several threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._owner = uuid.uuid4().hex
        self._clock = clock
        self._numbers: dict[date, int] = {}
        self._marked_s: dict[date, float] = {}

    def before_change(self, client: Client, days: Collection[date]) -> None:
        """Marks those of ``days`` that have no fresh mark of ours. Raises ClickHouse's errors."""
        now_s = self._clock()
        self._write(
            client,
            [day for day in days if now_s - self._marked_s.get(day, -QUIET_S) > MARK_HOLDS_S],
        )

    def after_change(self, client: Client, days: Collection[date]) -> None:
        """Marks once more what took so long that somebody may have thought the day quiet."""
        now_s = self._clock()
        self._write(
            client,
            [day for day in days if now_s - self._marked_s.get(day, -QUIET_S) > QUIET_S / 2],
        )

    def forget(self) -> None:
        """Takes no mark for fresh: a failed insert may still be carried out, nobody knows when."""
        self._marked_s.clear()

    def _write(self, client: Client, days: Collection[date]) -> None:
        if not days:
            return
        now_s, marked_at = self._clock(), datetime.now(UTC)
        rows: list[list[object]] = []
        for day in sorted(days):
            # Used up even if the insert fails: it may have been carried out all the same.
            self._numbers[day] = self._numbers.get(day, 0) + 1
            rows.append([day, self._owner, self._numbers[day], marked_at])
        client.insert("day_marks", rows, column_names=_COLUMNS, settings=INSERT_SETTINGS)
        for day in days:
            self._marked_s[day] = now_s

"""Closing days: their sums are kept as a generation that counts while nobody marks the day again.

Closing one day:

1. Write that a generation of it is being built.
2. Build it, one insert for each rollup table, from the ledger as it is.
3. Write the day's marks, as they were before 1, into the generation's row: from here on it counts,
   unless somebody has marked the day meanwhile.
4. Later, when no reader can be using them any more, drop the rows of generations that do not count.

A crash anywhere leaves at most rows that do not count; 4 finds them by what 1 wrote. Two processes
that close the same day at once build two generations of the same sums.
"""

import logging
import secrets
import time
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime
from typing import Any, NamedTuple

from clickhouse_connect.driver.client import Client

from pipeline import faults, metrics
from pipeline.ledger.day_marks import QUIET_S
from pipeline.ledger.manifests import INSERT_SETTINGS

TURN_S = 5.0
"""A turn begins no further day after so long."""
DROP_AFTER_S = 600
"""No reader uses a generation for longer after another one took its place."""
GIVEN_UP_AFTER_S = 3_600
"""A generation that is not complete by then never will be."""
DROP_EVERY_S = 600.0
DROP_MOST = 1_000

ROLLUPS = {
    "rollup_daily": "SELECT * FROM entries_daily WHERE day = {day:Date}",
    "rollup_users": "SELECT * FROM entries_users WHERE day = {day:Date}",
    "rollup_ports": "SELECT * FROM entries_ports WHERE day = {day:Date}",
    "rollup_charges": (
        "SELECT * FROM entries_charges WHERE day = {day:Date} "
        "AND (port_id, user_id, provider, model, currency) IN ("
        "SELECT port_id, user_id, provider, model, currency FROM entries_charges "
        "WHERE day = {day:Date} AND restated)"
    ),
}
"""Each rollup table and what one day of it consists of."""

# Others come first: one thread, little memory, and no more than ten minutes.
_GENTLE: dict[str, Any] = {
    "max_threads": 1,
    "max_memory_usage": 2 << 30,
    "max_bytes_before_external_group_by": 512 << 20,
    "max_execution_time": 600,
    "async_insert": 0,
}
_OPEN_DAYS = """
SELECT day, marks FROM marked_days
WHERE day < toDate(now('UTC')) AND day IN (SELECT day FROM day_states WHERE generation = 0)
ORDER BY day DESC
"""
# Rows that came without a mark: a restored backup, a hand-made insert.
_MARK_UNMARKED = """
INSERT INTO day_marks (day, owner, number, marked_at)
SELECT DISTINCT toDate(occurred_at) AS day, 'found', 1, now64(3, 'UTC') FROM ledger_entries
WHERE day NOT IN (SELECT day FROM day_marks)
"""
_BUILD = "INSERT INTO {table} SELECT {{generation:UInt64}}, rows.* FROM ({rows}) AS rows"
_CLOSING_COLUMNS = ("day", "generation", "marks", "written_at")
# live.generation is 0 on an open day: what counted last is kept until something else does.
_DROPPABLE = """
SELECT c.day, c.generation
FROM (SELECT day, generation, max(marks) AS marks FROM day_closings GROUP BY day, generation) AS c
INNER JOIN day_states AS live ON live.day = c.day
WHERE c.generation != live.generation AND if(
    c.marks = 0,
    c.generation < {given_up:UInt64},
    c.generation < live.generation AND live.generation < {settled:UInt64})
ORDER BY c.day, c.generation LIMIT {limit:UInt32}
"""
_DROP = (
    "ALTER TABLE {table} DELETE WHERE (day, generation) IN {{dropped:Array(Tuple(Date, UInt64))}}"
)
_MS_BITS = 20

_log = logging.getLogger(__name__)


class _Open(NamedTuple):
    marks: int
    since_s: float


class Roller:
    """Closes days that have gone quiet. Its methods block; one object for one process."""

    def __init__(
        self, *, quiet_s: float = QUIET_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._quiet_s = quiet_s
        self._clock = clock
        self._first = True
        self._open: dict[date, _Open] = {}
        self._next_drop_s = clock()

    def turn(self, client: Client) -> int:
        """Closes past days without a new mark for ``quiet_s``, newest first; returns how many.

        Bounded in time: what is left waits for the next turn. The first turn also marks days that
        somebody filled without a mark. Raises ClickHouse's errors.
        """
        if self._first:
            client.command(_MARK_UNMARKED)
            self._first = False
        closed = 0
        started_s = self._clock()
        for day, marks in self._quiet_days(client):
            if self._clock() - started_s > TURN_S:
                break
            close_day(client, day, marks)
            closed += 1
        if self._clock() >= self._next_drop_s:
            drop_generations(client)
            self._next_drop_s = self._clock() + DROP_EVERY_S
        return closed

    def _quiet_days(self, client: Client) -> list[tuple[date, int]]:
        now_s = self._clock()
        found = [(day, int(marks)) for day, marks in client.query(_OPEN_DAYS).result_rows]
        before, self._open = self._open, {}
        for day, marks in found:
            known = before.get(day)
            same = known is not None and known.marks == marks
            self._open[day] = known if known and same else _Open(marks, now_s)
        metrics.ROLLUP_OPEN_DAYS.set(len(found))
        return [
            (day, marks) for day, marks in found if now_s - self._open[day].since_s >= self._quiet_s
        ]


def close_day(client: Client, day: date, marks: int) -> None:
    """Rolls up ``day``. The result counts while ``marks`` are exactly the day's marks."""
    generation = _generation_at(time.time()) | secrets.randbits(_MS_BITS)
    faults.point("rollup-before-begin")
    _write_closing(client, day, generation, 0)
    faults.point("rollup-after-begin")
    with metrics.ROLLUP_SECONDS.time():
        for table, rows in ROLLUPS.items():
            client.command(
                _BUILD.format(table=table, rows=rows),
                parameters={"day": day, "generation": generation},
                settings=_GENTLE,
            )
            faults.point("rollup-after-build")
    _write_closing(client, day, generation, marks)
    faults.point("rollup-after-closing")
    _log.info("%s is rolled up", day)


def drop_generations(
    client: Client,
    *,
    drop_after_s: float = DROP_AFTER_S,
    given_up_after_s: float = GIVEN_UP_AFTER_S,
) -> int:
    """Step 4: drops generations that no reader uses any more; returns how many."""
    now_s = time.time()
    found = client.query(
        _DROPPABLE,
        parameters={
            "settled": _generation_at(now_s - drop_after_s),
            "given_up": _generation_at(now_s - given_up_after_s),
            "limit": DROP_MOST,
        },
    ).result_rows
    if found:
        _drop(client, found)
    return len(found)


def _drop(client: Client, generations: Sequence[Sequence[Any]]) -> None:
    dropped = [(day, int(generation)) for day, generation in generations]
    for table in (*ROLLUPS, "day_closings"):
        client.command(
            _DROP.format(table=table),
            parameters={"dropped": dropped},
            settings={"mutations_sync": 1},
        )
        faults.point("rollup-after-drop")


def _write_closing(client: Client, day: date, generation: int, marks: int) -> None:
    row = [day, generation, marks, datetime.now(UTC)]
    client.insert("day_closings", [row], column_names=_CLOSING_COLUMNS, settings=INSERT_SETTINGS)


def _generation_at(time_s: float) -> int:
    """The lowest generation that can be begun at that time: later ones have higher numbers."""
    return int(time_s * 1000) << _MS_BITS

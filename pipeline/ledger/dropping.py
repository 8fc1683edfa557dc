"""Dropping an exported month from the ledger.

The order of side effects, behind the export itself and the question whether anybody needs the
month (a fault point lies between each pair):

1. Mark the month's days: daily views sum them from the ledger.
2. Register the month as leaving, with its counts and the digest of its file.
3. Move its entries out of the ledger into a table ``leaving_MONTH``, all of them in one rename.
4. Hold what was moved against the file, entry by entry.
5. Register it as dropped.
6. Drop what was moved, and the month's rollups.

A crash anywhere is gone on with by the next run: what is leaving is marked and moved back, and the
month is exported anew; what is dropped is dropped for good. What was inserted between export and
move differs from the file in 4 and is moved back, too.
"""

from pathlib import Path

from clickhouse_connect.driver.client import Client

from pipeline.core.errors import Refused
from pipeline.faults import point
from pipeline.ledger.day_marks import DayMarks
from pipeline.ledger.dropped import (
    DROPPED,
    KEPT,
    LEAVING,
    Source,
    register,
    registered,
    sources_of,
)
from pipeline.ledger.export import Content, month_content
from pipeline.ledger.months import Month, days_held
from pipeline.ledger.rollup import ROLLUPS

_CREATE = "CREATE TABLE IF NOT EXISTS {table} AS ledger_entries"
_MOVE = "ALTER TABLE {source} MOVE PARTITION {month} TO TABLE {target}"
_DROP = "ALTER TABLE {table} DROP PARTITION {month}"


def finish_interrupted(client: Client, month: Month) -> None:
    """Brings a drop that was cut short to an end, one way or the other."""
    known = registered(client, month)
    if known is None or known.state == KEPT:
        return
    client.command(_CREATE.format(table=_leaving(month)))
    if known.state == DROPPED:
        _drop_for_good(client, month)
        return
    _move_back(client, month)
    content = Content(known.entries, known.cost_nano, known.digest)
    register(client, month, KEPT, sources_of(client, month), known.file, content)


def drop_month(client: Client, month: Month, file: Path, exported: Content) -> list[Source]:
    """Steps 1 to 6; returns where the dropped entries had come from.

    Raises ``Refused``, with everything back in its place, when the ledger no longer holds exactly
    what is in ``file``.
    """
    sources = sources_of(client, month)
    DayMarks().before_change(client, list(days_held(client, month)))
    point("drop-marked")
    register(client, month, LEAVING, sources, str(file), exported)
    point("drop-registered")
    leaving = _leaving(month)
    client.command(_CREATE.format(table=leaving))
    client.command(_MOVE.format(source="ledger_entries", month=month.number, target=leaving))
    point("drop-moved")
    moved = month_content(client, month, leaving)
    if moved != exported:
        _move_back(client, month)
        register(client, month, KEPT, sources, str(file), exported)
        raise Refused(
            f"the ledger's entries of {month} have changed since they were exported "
            f"({exported.rows:,} then, {moved.rows:,} now); nothing was dropped, export it again"
        )
    point("drop-verified")
    register(client, month, DROPPED, sources, str(file), exported)
    point("drop-decided")
    _drop_for_good(client, month)
    point("drop-dropped")
    return sources


def _leaving(month: Month) -> str:
    return f"leaving_{month.number}"


def _move_back(client: Client, month: Month) -> None:
    """What is back in the ledger must not be missing in a rollup that was built meanwhile."""
    leaving = _leaving(month)
    DayMarks().before_change(client, list(days_held(client, month, leaving)))
    client.command(_MOVE.format(source=leaving, month=month.number, target="ledger_entries"))
    client.command(f"DROP TABLE {leaving}")


def _drop_for_good(client: Client, month: Month) -> None:
    """Step 6. The rollups' generations do not count any more since step 1."""
    for table in ROLLUPS:
        client.command(_DROP.format(table=table, month=month.number))
    client.command(f"DROP TABLE {_leaving(month)}")

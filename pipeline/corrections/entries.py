"""What the ledger says of the events that corrections name."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from clickhouse_connect.driver.client import Client

from pipeline.core.blocks import EVENT_COLUMNS
from pipeline.core.corrections import Entry, Standing, added_up
from pipeline.core.events import Event
from pipeline.core.windows import format_ms

PARAMETER_BYTES = 16_000
"""Of ids in one statement: they travel in its address."""

_EXPRESSIONS = {"occurred_at_us": "toUnixTimestamp64Micro(occurred_at)"}
_COLUMNS = ", ".join(_EXPRESSIONS.get(name, name) for name in EVENT_COLUMNS)
ENTRY_COLUMNS = (
    f"{_COLUMNS}, entry_no, requests, unpriced_requests, cost_nano, rate_id, price_status, currency"
)
"""What ``entry_of`` takes."""
_ENTRIES = f"""
SELECT {ENTRY_COLUMNS} FROM ledger_entries
WHERE (port_id, event_id) IN {{keys:Array(Tuple(String, String))}}
"""
_ON_DAYS = " AND toDate(occurred_at) IN {days:Array(Date)}"
_KNOWN_IDS = """
SELECT DISTINCT correction_id FROM ledger_entries
WHERE entry_no > 0 AND correction_id IN {ids:Array(String)}
"""
_REACHED = """
SELECT partition, max(next_offset) FROM sink_manifests
WHERE epoch = {epoch:UInt32} AND topic = {topic:String} GROUP BY partition
"""

EventKey = tuple[str, str]
"""port_id, event_id."""


class LedgerEntry(NamedTuple):
    """An entry as it stands, and the currency of its cost."""

    entry: Entry
    currency: str


def entry_of(row: Sequence[Any]) -> LedgerEntry:
    """A row of ``ENTRY_COLUMNS``."""
    width = len(EVENT_COLUMNS)
    values: dict[str, Any] = dict(zip(EVENT_COLUMNS, row[:width], strict=True))
    values["tags"] = dict(values["tags"])
    event = Event(**values)
    entry_no, requests, unpriced, cost_nano, rate_id, status, currency = row[width:]
    estimated = bool(event.estimated)
    entry = Entry(event, entry_no, requests, unpriced, cost_nano, rate_id, status, estimated)
    return LedgerEntry(entry, currency)


def standing_of(
    entries: Iterable[LedgerEntry], more: Iterable[Entry] = (), day: str = ""
) -> Standing | None:
    """How an event stands after all its entries, each taken once; None without a first one.

    ``more`` are entries that the ledger may not have yet. An id that came again after the dedupe
    horizon is another event of another day: the one of ``day`` is meant, or else the last.
    """
    by_day: dict[str, dict[int, LedgerEntry]] = defaultdict(dict)
    for found in entries:
        by_day[_day_of(found.entry)][found.entry.entry_no] = found
    days = [one for one, of_day in by_day.items() if 0 in of_day]
    if not days:
        return None
    meant = day if day in days else max(days)
    numbered = by_day[meant]
    first = numbered.pop(0)
    start = Standing(
        event=first.entry.event,
        entry_no=0,
        requests=first.entry.requests,
        cost_nano=first.entry.cost_nano,
        rate_id=first.entry.rate_id,
        status=first.entry.status,
        currency=first.currency,
        first_estimated=first.entry.estimated,
    )
    deltas = {entry.entry_no: entry for entry in more if _day_of(entry) == meant}
    deltas |= {number: found.entry for number, found in numbered.items()}
    return added_up(start, [deltas[number] for number in sorted(deltas)])


def _day_of(entry: Entry) -> str:
    return format_ms(entry.event.occurred_at_us // 1000)[:10]


def entries_of(client: Client, keys: Mapping[EventKey, str]) -> dict[EventKey, list[LedgerEntry]]:
    """All entries of these events, without those that have none.

    ``keys`` maps each to the day on which its sender says it occurred (``2026-11-22``), or to an
    empty string. What is not found on its day is looked for everywhere.
    """
    found: dict[EventKey, list[LedgerEntry]] = defaultdict(list)
    dated = [key for key, day in keys.items() if day]
    for part in _parts(dated):
        days = sorted({keys[key] for key in part})
        _collect(client, _ENTRIES + _ON_DAYS, {"keys": list(part), "days": days}, found)
    for part in _parts([key for key in keys if key not in found]):
        _collect(client, _ENTRIES, {"keys": list(part)}, found)
    return dict(found)


def known_correction_ids(client: Client, ids: Collection[str]) -> set[str]:
    """Which of these corrections the ledger has taken."""
    known: set[str] = set()
    for part in _parts([(one,) for one in ids]):
        parameters = {"ids": [one for (one,) in part]}
        known |= {
            str(row[0]) for row in client.query(_KNOWN_IDS, parameters=parameters).result_rows
        }
    return known


def reached(client: Client, topic: str, epoch: int) -> dict[int, int]:
    """By partition of ``topic``: up to where the ledger has taken it in."""
    rows = client.query(_REACHED, parameters={"epoch": epoch, "topic": topic}).result_rows
    return {int(partition): int(offset) for partition, offset in rows}


def _collect(
    client: Client,
    statement: str,
    parameters: dict[str, Any],
    found: dict[EventKey, list[LedgerEntry]],
) -> None:
    for row in client.query(statement, parameters=parameters).result_rows:
        one = entry_of(row)
        found[one.entry.event.port_id, one.entry.event.event_id].append(one)


def _parts(keys: Sequence[tuple[str, ...]]) -> Iterator[Sequence[Any]]:
    """The keys in runs that fit into the parameters of one statement."""
    start, size = 0, 0
    for at, key in enumerate(keys):
        own = sum(len(text.encode()) for text in key) + 10
        if size and size + own > PARAMETER_BYTES:
            yield keys[start:at]
            start, size = at, 0
        size += own
    if start < len(keys):
        yield keys[start:]

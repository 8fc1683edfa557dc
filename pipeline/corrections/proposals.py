"""Which corrections are to be sent: of named events, or of all that are priced wrongly."""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from hashlib import blake2b
from typing import Any, NamedTuple

from clickhouse_connect.driver.client import Client

from pipeline.core.corrections import Correction, Entry, Standing, resolve
from pipeline.core.prices import PriceVersion
from pipeline.core.rejections import UNKNOWN_EVENT, Rejection
from pipeline.core.windows import format_ms
from pipeline.corrections.entries import (
    ENTRY_COLUMNS,
    EventKey,
    LedgerEntry,
    entries_of,
    entry_of,
    standing_of,
)

PAGE_ENTRIES = 5_000
_DAYS = """
SELECT DISTINCT toDate(occurred_at) AS day FROM ledger_entries
WHERE {where} ORDER BY day
"""
_PAGE = f"""
SELECT {ENTRY_COLUMNS} FROM ledger_entries
WHERE toDate(occurred_at) = {{{{day:Date}}}}
AND (port_id > {{{{port_id:String}}}}
    OR (port_id = {{{{port_id:String}}}} AND event_id > {{{{event_id:String}}}}))
AND {{where}}
ORDER BY port_id, event_id, entry_no LIMIT {{{{entries:UInt32}}}}
"""
_COUNT = "SELECT countIf(entry_no = 0) FROM ledger_entries WHERE {where}"


class Proposal(NamedTuple):
    """A correction, how its event stands, and the entry it is expected to become."""

    correction: Correction
    before: Standing
    entry: Entry


@dataclass(frozen=True)
class Selection:
    """The events of a bulk correction: of ``start`` ≤ occurred_at < ``end``, and these names."""

    start: datetime
    end: datetime
    port_id: str | None = None
    provider: str | None = None
    model: str | None = None

    def where(self) -> tuple[str, dict[str, Any]]:
        """The condition, and the values bound to it."""
        text = "%Y-%m-%d %H:%M:%S.%f"
        parameters: dict[str, Any] = {
            "start": self.start.astimezone(UTC).strftime(text),
            "end": self.end.astimezone(UTC).strftime(text),
        }
        conditions = [
            "occurred_at >= {start:DateTime64(6, 'UTC')}",
            "occurred_at < {end:DateTime64(6, 'UTC')}",
        ]
        for name, bound in (
            ("port_id", "only_port"), ("provider", "provider"), ("model", "model"),
        ):  # fmt: skip
            value: str | None = getattr(self, name)
            if value is not None:
                conditions.append(f"{name} = {{{bound}:String}}")
                parameters[bound] = value
        return " AND ".join(conditions), parameters


@dataclass(slots=True)
class Left:
    """Events that a bulk correction leaves as they are, by why."""

    void: int = 0
    unchanged: int = 0
    without_price: int = 0
    refused: int = 0

    def add(self, other: "Left") -> None:
        """Adds those of another page."""
        for name in _LEFT:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def to_json(self) -> dict[str, int]:
        """By why, as plain values."""
        return {name: getattr(self, name) for name in _LEFT}

    def line(self) -> str:
        """In words."""
        return (
            f"left as they are: {self.unchanged} priced right, {self.without_price} without any "
            f"price, {self.void} void, {self.refused} that the rate cannot price"
        )


_LEFT = ("void", "unchanged", "without_price", "refused")


def propose(
    client: Client, corrections: Sequence[Correction], prices: PriceVersion
) -> list[Proposal | tuple[Correction, Rejection]]:
    """What each of a few corrections would become, each as if the others were not there."""
    entries: dict[tuple[EventKey, str], list[LedgerEntry]] = {}
    for day in {correction.day for correction in corrections}:
        keys = {(c.port_id, c.event_id): day for c in corrections if c.day == day}
        entries |= {(key, day): of_event for key, of_event in entries_of(client, keys).items()}
    found: list[Proposal | tuple[Correction, Rejection]] = []
    for correction in corrections:
        key = (correction.port_id, correction.event_id)
        standing = standing_of(entries.get((key, correction.day), ()), day=correction.day)
        if standing is None:
            detail = f"event_id: port {correction.port_id} has no such event in the ledger"
            found.append((correction, Rejection(UNKNOWN_EVENT, detail)))
            continue
        resolved = resolve(correction, standing, prices)
        if isinstance(resolved, Rejection):
            found.append((correction, resolved))
        else:
            found.append(Proposal(correction, standing, resolved[0]))
    return found


def count_events(client: Client, selection: Selection) -> int:
    """How many events there are to look at."""
    where, parameters = selection.where()
    [(count,)] = client.query(_COUNT.format(where=where), parameters=parameters).result_rows
    return int(count)


def reprices(
    client: Client, selection: Selection, prices: PriceVersion, rate_id: str | None, reason: str
) -> Generator[tuple[int, list[Proposal], Left]]:
    """Page after page: how many events were looked at, which change, and why others do not.

    Without ``rate_id`` each event gets the price that the rules give it now; one that they leave
    unpriced gets that of a matching rate that began later. An event's correction has the same id
    whenever it is proposed, until it was carried out: sent twice it counts once.
    """
    for standings in _pages(client, selection):
        left, proposals = Left(), list[Proposal]()
        for standing in standings:
            proposal = _reprice(standing, prices, rate_id, reason, left)
            if proposal is not None:
                proposals.append(proposal)
        yield len(standings), proposals, left


def _reprice(
    standing: Standing, prices: PriceVersion, rate_id: str | None, reason: str, left: Left
) -> Proposal | None:
    if standing.is_void:
        left.void += 1
        return None
    wanted = rate_id if rate_id is not None else _rate_by_rules(standing, prices)
    if wanted is None:
        left.without_price += 1
        return None
    correction = _correction(standing, wanted, reason)
    resolved = resolve(correction, standing, prices)
    if isinstance(resolved, Rejection):
        left.refused += 1
        return None
    entry, after = resolved
    same_rate = rate_id is None or after.rate_id == standing.rate_id
    if after.cost_nano == standing.cost_nano and same_rate:
        left.unchanged += 1
        return None
    return Proposal(correction, standing, entry)


def _rate_by_rules(standing: Standing, prices: PriceVersion) -> str | None:
    """The rate that the rules choose now, or else one that began later; None without any."""
    price = prices.price(standing.event)
    if price.cost_nano is not None:
        return price.rate_id
    return prices.later_rate(standing.event)


def _correction(standing: Standing, rate_id: str, reason: str) -> Correction:
    event = standing.event
    day = format_ms(event.occurred_at_us // 1000)[:10]
    parts = (event.port_id, event.event_id, day, rate_id, str(standing.entry_no))
    identity = "".join(f"{len(part)}:{part}" for part in parts).encode()
    digest = blake2b(identity, digest_size=16).hexdigest()
    return Correction(
        f"reprice-{digest}", event.port_id, event.event_id, "reprice", reason, {}, rate_id, "", day
    )


def _pages(client: Client, selection: Selection) -> Iterator[list[Standing]]:
    """The events of the selection, a page at a time, each with all its entries."""
    where, parameters = selection.where()
    days = client.query(_DAYS.format(where=where), parameters=parameters).result_rows
    for (day,) in days:
        last, limit = ("", ""), PAGE_ENTRIES
        while True:
            rows = _page(client, where, parameters, day, last, limit)
            is_last = len(rows) < limit
            events = _by_event(rows)
            if not is_last:
                # The last event may have more entries; one with more than a page gets a larger one.
                cut = next(reversed(events))
                events.pop(cut)
                if not events:
                    limit *= 2
                    continue
            if events:
                last = next(reversed(events))
                found = (standing_of(entries) for entries in events.values())
                yield [standing for standing in found if standing is not None]
            if is_last:
                break


def _page(
    client: Client,
    where: str,
    parameters: dict[str, Any],
    day: date,
    after: EventKey,
    limit: int,
) -> list[LedgerEntry]:
    more = {"day": day, "port_id": after[0], "event_id": after[1], "entries": limit}
    rows = client.query(_PAGE.format(where=where), parameters={**parameters, **more}).result_rows
    return [entry_of(row) for row in rows]


def _by_event(rows: Sequence[LedgerEntry]) -> dict[EventKey, list[LedgerEntry]]:
    found: dict[EventKey, list[LedgerEntry]] = {}
    for row in rows:
        event = row.entry.event
        found.setdefault((event.port_id, event.event_id), []).append(row)
    return found

"""The events of one user, page by page, newest first.

A user's rows lie scattered over all days and ports, and the ledger is sorted by those. The daily
sums know on which days and ports the user has any, so a page reads only the days it shows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, NamedTuple

from clickhouse_connect.driver.client import Client

from pipeline.ledger.filters import UsageFilters, asked, rows
from pipeline.ledger.queries import named_query

MAX_PAGE = 1_000
MAX_DAYS = 10_000
_AFTER_EVERYTHING = 2**63


class EventPlace(NamedTuple):
    """Where an entry stands in the order of pages."""

    occurred_at: datetime
    port_id: str
    event_id: str
    entry_no: int


@dataclass(frozen=True)
class EventPage:
    """Entries of a user. ``total`` counts all of them; ``next`` is where the next page begins
    behind, None on the last one."""

    events: list[dict[str, Any]]
    total: int
    next: EventPlace | None


def user_events(
    client: Client,
    user_id: str,
    limit: int,
    after: EventPlace | None = None,
    filters: UsageFilters | None = None,
) -> EventPage:
    """At most ``limit`` (up to 1,000) entries of a user that come after ``after``.

    ``filters`` may name ports, a billing scope and whole days; other filters do not count here.
    """
    limit = min(limit, MAX_PAGE)
    given = filters or UsageFilters()
    chosen = UsageFilters(
        user_id=user_id,
        port_id=given.port_id,
        ports=given.ports,
        billing_scope=given.billing_scope,
        start=_day_start(given.start),
        end=_day_start(given.end),
    )
    found = asked(chosen)
    days = rows(
        client,
        named_query("user_days", where=found.where),
        {**found.parameters, "limit": MAX_DAYS},
    )
    wanted = _page_days(days, limit + 1, after)
    events = _read(client, chosen, wanted, limit + 1, after) if wanted else []
    more = len(events) > limit
    events = events[:limit]
    return EventPage(
        events, sum(int(day["entries"]) for day in days), _place(events[-1]) if more else None
    )


def _page_days(
    days: Sequence[dict[str, Any]], count: int, after: EventPlace | None
) -> list[dict[str, Any]]:
    """The days that hold ``count`` entries behind ``after``, which itself may use up its day."""
    first = None if after is None else after.occurred_at.astimezone(UTC).date()
    wanted: list[dict[str, Any]] = []
    held = 0
    for day in days:
        if first is not None and day["date"] > first:
            continue
        wanted.append(day)
        held += 0 if day["date"] == first else int(day["entries"])
        if held >= count:
            break
    return wanted


def _read(
    client: Client,
    chosen: UsageFilters,
    days: Sequence[dict[str, Any]],
    limit: int,
    after: EventPlace | None,
) -> list[dict[str, Any]]:
    last: date = days[0]["date"]
    at = after or EventPlace(_start_of(last + timedelta(days=1)), "", "", _AFTER_EVERYTHING)
    found = asked(replace(chosen, start=None, end=None), entries=True)
    parameters = {
        **found.parameters,
        "first_day": days[-1]["date"],
        "end_day": last + timedelta(days=1),
        "ports": sorted({port for day in days for port in day["ports"]}),
        "at": at.occurred_at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f"),
        "port_id_at": at.port_id,
        "event_id_at": at.event_id,
        "entry_no_at": at.entry_no,
        "limit": limit,
    }
    return rows(client, named_query("user_events", where=found.where), parameters)


def _place(event: dict[str, Any]) -> EventPlace:
    return EventPlace(
        event["occurred_at"], event["port_id"], event["event_id"], int(event["entry_no"])
    )


def _day_start(at: datetime | None) -> datetime | None:
    return None if at is None else _start_of(at.astimezone(UTC).date())


def _start_of(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)

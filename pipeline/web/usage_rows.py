"""What the queries on usage have in common: filters from a request, and rows on the wire."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

from starlette.requests import Request

from pipeline.core.errors import InvalidField
from pipeline.core.event_fields import BILLING_SCOPES, KINDS
from pipeline.core.money import format_decimal, format_nano
from pipeline.ledger.filters import UsageFilters
from pipeline.web.gate import Caller
from pipeline.web.problems import Problem
from pipeline.web.query import choice, moment

FILTERS = (
    "port_id", "user_id", "organization_id", "group_id", "service", "feature", "kind", "provider",
    "model", "billing_scope",
)  # fmt: skip
SPAN = ("from", "to")
MAX_VALUE_LENGTH = 256
FIRST_YEAR, LAST_YEAR = 1971, 2148

Row = dict[str, Any]

NOTHING: Row = {
    "requests": 0,
    "total_tokens": 0,
    "cost": "0",
    "cost_nano": 0,
    "unpriced_requests": 0,
    "estimated_requests": 0,
}
"""What nobody used anything in costs: that is known, so it is 0 and not null."""


def filters_of(request: Request, caller: Caller) -> UsageFilters:
    """The filters of a request, within what the caller may see.

    Raises ``InvalidField``, and ``Problem`` 403 for a port that is not the caller's.
    """
    choice(request, "kind", KINDS)
    choice(request, "billing_scope", BILLING_SCOPES)
    values: dict[str, str] = {}
    for name in FILTERS:
        text = request.query_params.get(name)
        if text is not None:
            if len(text) > MAX_VALUE_LENGTH or "\0" in text:
                raise InvalidField(name, f"must be a text of at most {MAX_VALUE_LENGTH} characters")
            values[name] = text
    start, end = instant(request, "from"), instant(request, "to")
    if start is not None and end is not None and start > end:
        raise InvalidField("to", "must not lie before from")
    if "port_id" in values and not caller.may_see_port(values["port_id"]):
        raise Problem(403, "port_id: this key is for other ports")
    return UsageFilters(**values, ports=ports_of(caller), start=start, end=end)


def ports_of(caller: Caller) -> tuple[str, ...] | None:
    """The ports that a caller is limited to."""
    return None if caller.ports is None else tuple(sorted(caller.ports))


def instant(request: Request, name: str) -> datetime | None:
    """The time under ``name``, within what the ledger's columns can hold."""
    at = moment(request, name)
    if at is not None and not FIRST_YEAR <= at.year <= LAST_YEAR:
        raise InvalidField(name, f"must lie in the years {FIRST_YEAR} to {LAST_YEAR}")
    return at


def midnight(day: date) -> datetime:
    """The start of a UTC day."""
    return datetime.combine(day, time(), UTC)


def plain(row: Mapping[str, Any]) -> Row:
    """A row of the ledger as JSON has it: amounts as decimal strings, times after RFC 3339."""
    return {name: _plain(value) for name, value in row.items()}


def rfc3339(at: datetime | None) -> str | None:
    """An instant in UTC with milliseconds; None stays None."""
    if at is None:
        return None
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def of_currency(rows: Iterable[Mapping[str, Any]], currency: str) -> Row:
    """The sum of the rows in ``currency``, without any what nothing costs; others beside it."""
    sums = sum_rows(rows)
    found = sums.pop(currency, None) or {**NOTHING, "currency": currency}
    others = [sums[name] for name in sorted(sums)]
    return {**found, "other_currencies": others} if others else found


def sum_rows(rows: Iterable[Mapping[str, Any]]) -> dict[str, Row]:
    """By currency the sum of rows of the ledger. A cost is null where none of them has a price."""
    sums: dict[str, Row] = {}
    for row in rows:
        found = sums.setdefault(
            row["currency"], {**NOTHING, "cost_nano": None, "currency": row["currency"]}
        )
        for name in ("requests", "total_tokens", "unpriced_requests", "estimated_requests"):
            found[name] += int(row[name])
        if row["cost_nano"] is not None:
            found["cost_nano"] = (found["cost_nano"] or 0) + int(row["cost_nano"])
    for found in sums.values():
        nano = found["cost_nano"]
        found["cost"] = None if nano is None else format_nano(nano)
    return sums


def to_csv(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """The rows as CSV with a head line; null is an empty field."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow(["" if row[name] is None else row[name] for name in columns])
    return text.getvalue()


def last_days(today: date, days: int) -> tuple[date, date]:
    """The first of the last ``days`` days, today among them, and the day after today."""
    return today - timedelta(days=days - 1), today + timedelta(days=1)


def _plain(value: Any) -> Any:
    if isinstance(value, Decimal):
        return format_decimal(value)
    if isinstance(value, datetime):
        text = value.astimezone(UTC).isoformat(timespec="microseconds")
        return text.replace("+00:00", "Z")
    if isinstance(value, date):
        return value.isoformat()
    return value

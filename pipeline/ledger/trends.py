"""Usage over time: series without gaps, a month beside the one before, and what a request costs."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, time
from typing import Any

from clickhouse_connect.driver.client import Client

from pipeline.core.errors import InvalidField
from pipeline.ledger.filters import UsageFilters, asked, dimension, rows, split_by
from pipeline.ledger.queries import named_query

MAX_SERIES_ROWS = 100_000


def daily_series(
    client: Client, filters: UsageFilters, first_day: date, end_day: date, currency: str
) -> list[dict[str, Any]]:
    """One row for each day from ``first_day`` to before ``end_day``, days without usage included.

    There is a row for ``currency`` on every day, and for any other one that occurs. ``org_cost``
    and ``user_cost`` are what the two billing scopes pay for. Times in ``filters`` do not count.
    """
    spanned = replace(filters, start=_midnight(first_day), end=_midnight(end_day))
    found = asked(spanned, ["day", "billing_scope"])
    sql = named_query("daily_series", source=found.source, where=found.where)
    parameters = {"first_day": first_day, "end_day": end_day, "currency": currency}
    return rows(client, sql, {**found.parameters, **parameters, "limit": MAX_SERIES_ROWS})


def month_on_month(
    client: Client, filters: UsageFilters, month: date, by: Sequence[str] = (), limit: int = 1_000
) -> list[dict[str, Any]]:
    """The month that ``month`` lies in beside the one before, the largest change of cost first.

    ``change_pct`` is in hundredths of a percent's precision, cut; None where the month before cost
    nothing or either has no price at all. The times in ``filters`` do not count.
    """
    names = _names(by)
    found = asked(replace(filters, start=None, end=None), ["day", *names])
    _only_days(found.source)
    sql = named_query("month_on_month", source=found.source, where=found.where, **split_by(names))
    parameters = {**found.parameters, "month": month.replace(day=1), "limit": limit}
    return rows(client, sql, parameters)


def cost_percentiles(
    client: Client, filters: UsageFilters, by: Sequence[str] = ("model",), limit: int = 1_000
) -> list[dict[str, Any]]:
    """``p50``, ``p90``, ``p99`` and ``most`` of the cost of one request, by ``by``.

    A percentile p of n priced requests is number ⌊p·n⌋ of them, counted from 0 in order of cost.
    """
    names = _names(by)
    found = asked(filters, names, entries=True)
    sql = named_query("cost_percentiles", source=found.source, where=found.where, **split_by(names))
    return rows(client, sql, {**found.parameters, "limit": limit})


def focus_charges(
    client: Client, first_day: date, end_day: date, limit: int = 1_000_000
) -> list[dict[str, Any]]:
    """Charges in the columns of FOCUS 1.0."""
    parameters = {"first_day": first_day, "end_day": end_day, "limit": limit}
    return rows(client, named_query("focus"), parameters)


def _names(by: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(dimension(name) for name in by))


def _only_days(source: str) -> None:
    if source.startswith("("):
        raise InvalidField("by", "months are compared by what the daily views have")


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)

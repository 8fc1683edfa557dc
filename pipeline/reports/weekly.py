"""Reads the figures of the weekly report from the ledger: some twenty queries, each
bounded."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from clickhouse_connect.driver.client import Client

from pipeline.core.policies import Policy
from pipeline.ledger.budget_outlook import closest_to_caps
from pipeline.ledger.filters import UsageFilters
from pipeline.ledger.usage import top, usage_report
from pipeline.reports.figures import (
    CLOSEST_BUDGETS,
    NOTHING,
    TOP_USERS,
    WEEK_DAYS,
    Budgets,
    Compared,
    WeeklyFigures,
    compared,
    rolling_span,
    spent_of,
    total_of,
)

MAX_ROWS = 1_000
_CURRENCIES = 10


def read_weekly(
    client: Client,
    first_day: date,
    now: datetime,
    currency: str,
    policies: Iterable[Policy] | None,
) -> WeeklyFigures:
    """The report on the week from ``first_day`` (a Monday), as the ledger has it at ``now``.

    Amounts are those in ``currency``. ``policies`` are those in force, None where they are not
    known; their budgets are as of ``now``, whichever week it is. Raises what the driver raises.
    """
    end_day = first_day + timedelta(days=WEEK_DAYS)
    week = _span(first_day, end_day)
    before = _span(first_day - timedelta(days=WEEK_DAYS), first_day)
    rolling_first_day, rolling_end_day = rolling_span(first_day, now.astimezone(UTC).date())
    split = ("kind", "billing_scope")
    rows = usage_report(client, week, split, MAX_ROWS)
    rows_before = usage_report(client, before, split, MAX_ROWS)
    month = usage_report(client, _span(rolling_first_day, rolling_end_day), (), MAX_ROWS)
    seen = {row["currency"] for row in (*rows, *rows_before, *month)}
    ours, ours_before = _in(currency, rows), _in(currency, rows_before)
    kinds = compared(ours, ours_before, "kind")
    return WeeklyFigures(
        currency,
        first_day,
        end_day,
        rolling_first_day,
        rolling_end_day,
        total_of(kinds),
        next((spent_of(row) for row in _in(currency, month)), NOTHING),
        compared(ours, ours_before, "billing_scope"),
        kinds,
        _top_users(client, week, before, currency),
        tuple(sorted(seen - {currency, ""})),
        None if policies is None else _budgets(client, policies, now, currency),
    )


def _budgets(client: Client, policies: Iterable[Policy], now: datetime, currency: str) -> Budgets:
    now_ms = int(now.timestamp() * 1000)
    return Budgets(
        now_ms, tuple(closest_to_caps(client, policies, now_ms, currency, CLOSEST_BUDGETS))
    )


def _top_users(
    client: Client, week: UsageFilters, before: UsageFilters, currency: str
) -> tuple[Compared, ...]:
    """The dearest users, with what each of them used in the week before."""
    found = _in(currency, top(client, "user", week, TOP_USERS * _CURRENCIES))[:TOP_USERS]
    lines: list[Compared] = []
    for row in found:
        earlier = usage_report(client, replace(before, user_id=row["user"]), (), _CURRENCIES)
        was = next((spent_of(one) for one in _in(currency, earlier)), NOTHING)
        lines.append(Compared(row["user"], spent_of(row), was))
    return tuple(lines)


def _in(currency: str, rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [row for row in rows if row["currency"] == currency]


def _span(first_day: date, end_day: date) -> UsageFilters:
    start, end = (datetime.combine(day, time(), UTC) for day in (first_day, end_day))
    return UsageFilters(start=start, end=end)

"""The named queries as they are asked: over the year, over 30 days, and about single users."""

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta

from clickhouse_connect.driver.client import Client

from pipeline.core.policies import policy_from_object
from pipeline.ledger.budget_actuals import budgets_against_actual
from pipeline.ledger.filters import UsageFilters
from pipeline.ledger.trends import cost_percentiles, daily_series, focus_charges, month_on_month
from pipeline.ledger.usage import (
    as_of,
    ledger_totals,
    top,
    unpriced_events,
    unpriced_models,
    usage_report,
)
from pipeline.ledger.user_events import user_events

PORT, USER = "port-7", "user-7-3"
_POLICIES = [
    {"scope": "port:*", "unit": "tokens", "period": "month", "hard_cap": 10**9},
    {"scope": "user:*", "unit": "cost", "period": "rolling-30d", "hard_cap": "100"},
    {"scope": "all", "unit": "cost", "period": "month", "hard_cap": "100000"},
]


def asked_queries(client: Client, days: int) -> dict[str, Callable[[], object]]:
    """What is asked, by a name that says of which range."""
    today = datetime.now(UTC).date()
    end, year, month = _midnight(today, 1), _midnight(today, 1 - days), _midnight(today, -29)
    now_ms = int(datetime.now(UTC).timestamp() * 1000)
    policies = [policy_from_object(policy) for policy in _POLICIES]
    everything = UsageFilters(start=year, end=end)
    recent = UsageFilters(start=month, end=end)
    of_port = UsageFilters(port_id=PORT, start=year, end=end)
    shifted = timedelta(hours=1)  # not on a midnight: only the entries can say
    entries = UsageFilters(start=month + shifted, end=end + shifted)
    last_month = today.replace(day=1) - timedelta(days=1)
    return {
        "usage by model, year": lambda: usage_report(client, everything, ["model"]),
        "usage by port and month, year": lambda: usage_report(
            client, everything, ["port", "month"], 10_000
        ),
        "usage by user, year": lambda: usage_report(client, everything, ["user"], 10_000),
        "usage by service and day, 30 days": lambda: usage_report(
            client, recent, ["service", "day"]
        ),
        "usage of one port by day, year": lambda: usage_report(client, of_port, ["day"]),
        "usage by hour, 30 days of entries": lambda: usage_report(client, entries, ["hour"]),
        "top users, year": lambda: top(client, "user", everything),
        "daily_series, 30 days": lambda: daily_series(
            client, UsageFilters(), month.date(), end.date(), "USD"
        ),
        "daily_series, year": lambda: daily_series(
            client, UsageFilters(), year.date(), end.date(), "USD"
        ),
        "month_on_month by model": lambda: month_on_month(
            client, UsageFilters(), last_month.replace(day=1), ["model"]
        ),
        "cost_percentiles, 30 days of entries": lambda: cost_percentiles(client, recent),
        "unpriced_events, 30 days": lambda: unpriced_events(client, recent),
        "unpriced_models, year": lambda: unpriced_models(client, everything),
        "totals": lambda: ledger_totals(client),
        "budgets against actual": lambda: budgets_against_actual(client, policies, now_ms, "USD"),
        "user_events, first page": lambda: user_events(client, USER, 50),
        "focus, 30 days": lambda: focus_charges(client, month.date(), end.date()),
        "as_of": lambda: as_of(client),
    }


def _midnight(day: date, days: int) -> datetime:
    moved = day + timedelta(days=days)
    return datetime(moved.year, moved.month, moved.day, tzinfo=UTC)

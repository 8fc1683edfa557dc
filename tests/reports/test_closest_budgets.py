"""Budgets and their forecasts in the report, from a real ledger with days that are known."""

from collections.abc import Iterator
from datetime import UTC, date, datetime
from typing import Any

import pytest
from clickhouse_connect.driver.client import Client

from pipeline.core.policies import Extra, Policy
from pipeline.ledger.budget_outlook import budget_days
from pipeline.ledger.client import connect
from pipeline.ledger.columns import by_month, entries_table
from pipeline.ledger.day_marks import DayMarks
from pipeline.reports.rendering import as_json, as_text
from pipeline.reports.weekly import read_weekly
from tests import ledger_fixture
from tests.ledger.priced_blocks import block, row
from tests.stream.conftest import migrated_database

N = 10**9
NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
NOW_MS = int(NOW.timestamp()) * 1000
OLD_MONDAY = date(2026, 10, 5)
WEEK = range(19, 26)
"""The seven complete days before, in November."""

Row = tuple[Any, ...]


def used(day: int, port: str, tokens: int, cost_nano: int | None, **fields: Any) -> Row:
    at = datetime(2026, 11, day, 15, tzinfo=UTC)
    return row(
        event_id=f"{port}-{day}-{fields}",
        occurred_at_us=int(at.timestamp()) * 1_000_000,
        port_id=port,
        input_tokens=tokens,
        cost_nano=cost_nano,
        price_status="unpriced" if cost_nano is None else "priced",
        **{"billing_scope": "org", **fields},
    )


DOLLARS = [
    # A dollar and 100 tokens a day; users pay two dollars more, and one call has no price.
    *(used(day, "steady", 100, N) for day in WEEK),
    *(used(day, "steady", 0, 2 * N, billing_scope="user", user_id="u1") for day in WEEK),
    used(25, "steady", 0, None, feature="new"),
    *(used(day, "wild", 30, 0) for day in WEEK),
    *(used(day, "off", 900, 9 * N) for day in WEEK),
    *(used(day, "*", 1, 0) for day in WEEK),
    used(20, "spike", 500, 0),
]
EUROS = [used(day, "steady", 0, 50 * N, feature="abroad") for day in WEEK]
POLICIES = (
    Policy("port:steady", "cost", "month", hard_cap=10 * N),
    Policy("user:u1", "cost", "month", hard_cap=100 * N, extra=Extra(60 * N, NOW_MS + 1)),
    Policy("port:*", "tokens", "month", hard_cap=1_000),
    Policy("port:off", "tokens", "month", enabled=False, hard_cap=1),
    Policy("port:free", "tokens", "month"),
    Policy("org:*", "cost", "day", enabled=False, hard_cap=0),
    Policy("all", "tokens", "rolling-30d", hard_cap=10**9),
    Policy("all", "tokens", "day", hard_cap=10**6),
)


@pytest.fixture(scope="module")
def client(ledger_server: ledger_fixture.LedgerAddress) -> Iterator[Client]:
    for address in migrated_database(ledger_server):
        client = connect(address)
        for partition, (rows, currency) in enumerate(((DOLLARS, "USD"), (EUROS, "EUR"))):
            blocks = [block(rows, 0, len(rows), partition=partition)]
            for part in by_month(entries_table(blocks, currency)):
                DayMarks().before_change(client, {date(2026, 11, day) for day in WEEK})
                client.insert_arrow("ledger_entries", part)
        yield client
        client.close()


def shown(budget: dict[str, Any]) -> tuple[Any, ...]:
    coming = budget["forecast"]
    amounts = (budget["used"], budget["hard_cap"])
    return (budget["scope"], budget["unit"], *amounts, coming["outlook"], coming["at"])


def test_those_closest_to_their_caps_and_when_they_are_reached(client: Client) -> None:
    figures = read_weekly(client, OLD_MONDAY, NOW, "USD", POLICIES)
    told = as_json(figures)
    assert told["budgets_as_of"] == "2026-11-26T12:00:00.000Z"
    assert [shown(budget) for budget in told["budgets"]] == [
        # Three dollars at one a day, from noon.
        ("port:steady", "cost", "7", "10", "on-date", "2026-11-29T12:00:00.000Z"),
        # Three hundred at a hundred a day.
        ("port:steady", "tokens", 700, 1_000, "on-date", "2026-11-29T12:00:00.000Z"),
        ("port:spike", "tokens", 500, 1_000, "too-few-days", None),
        ("port:wild", "tokens", 210, 1_000, "not-before-the-period-ends", None),
        ("user:u1", "cost", "14", "160", "not-before-the-period-ends", None),
    ]  # fmt: skip
    assert [b["forecast"]["per_day"] for b in told["budgets"]] == ["1", 100, None, 30, "2"]
    text = as_text(figures)
    assert "2026-10-05 to 2026-10-11" in text
    assert "USD 7.00 of USD 10.00 per month, 1 call without a price" in text
    assert text.count("At this pace the cap is reached on 2026-11-29.") == 2
    assert "Budgets and forecasts are as of 2026-11-26 (UTC)." in text


def test_an_id_that_is_a_star_is_no_wildcard(client: Client) -> None:
    policies = [Policy("port:*", "tokens", period, hard_cap=10) for period in ("day", "month")]
    figures = read_weekly(client, OLD_MONDAY, NOW, "USD", policies)
    (star,) = [b for b in as_json(figures)["budgets"] if b["scope"] == "port:*"]
    assert (star["used"], star["hard_cap"], star["forecast"]["per_day"]) == (7, 10, 1)


def test_the_days_of_a_budget(client: Client) -> None:
    first = datetime(2026, 11, 19, tzinfo=UTC).timestamp() // 86_400

    def days(scope: str, unit: str, *ports: str) -> dict[int, int]:
        daily = budget_days(client, scope, unit, NOW_MS, "USD", ports or None)
        return {int(day - first): amount for day, amount in daily.items() if amount}

    assert days("port:steady", "cost") == dict.fromkeys(range(7), N)
    assert days("user:u1", "cost") == dict.fromkeys(range(7), 2 * N)
    assert days("all", "cost") == dict.fromkeys(range(7), 10 * N)
    assert days("all", "tokens", "wild", "spike") == {
        day: 30 + 500 * (day == 1) for day in range(7)
    }
    assert days("group:nobody", "tokens") == {}


def test_without_policies_nothing_is_asked_and_nothing_is_told(client: Client) -> None:
    assert as_json(read_weekly(client, OLD_MONDAY, NOW, "USD", None))["budgets"] is None
    assert as_json(read_weekly(client, OLD_MONDAY, NOW, "USD", ()))["budgets"] == []

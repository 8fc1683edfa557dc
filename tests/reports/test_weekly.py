"""The figures of a week from a real ledger, against a recount in plain Python."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, date, datetime
from typing import Any

import pytest
from clickhouse_connect.driver.client import Client

from pipeline.ledger.client import connect
from pipeline.ledger.columns import by_month, entries_table
from pipeline.ledger.day_marks import DayMarks
from pipeline.reports.figures import NOTHING, Compared, Spent, WeeklyFigures
from pipeline.reports.weekly import read_weekly
from tests import ledger_fixture
from tests.ledger.priced_blocks import START_US, chain, dicts
from tests.stream.conftest import migrated_database

# Events lie from Sunday 29 November to Wednesday 2 December 2026.
MONDAY, TODAY = date(2026, 11, 30), date(2026, 12, 7)
NOW = datetime(2026, 12, 7, 7, tzinfo=UTC)
IN_DOLLARS, IN_EUROS = chain(1, 25), chain(2, 3, partition=1)
Event = dict[str, Any]


@pytest.fixture(scope="module")
def client(ledger_server: ledger_fixture.LedgerAddress) -> Iterator[Client]:
    for address in migrated_database(ledger_server):
        client = connect(address)
        for blocks, currency in ((IN_DOLLARS, "USD"), (IN_EUROS, "EUR")):
            for part in by_month(entries_table(blocks, currency)):
                days = {day(event) for event in dicts(blocks)}
                DayMarks().before_change(client, days)
                client.insert_arrow("ledger_entries", part)
        yield client
        client.close()


@pytest.fixture(scope="module")
def figures(client: Client) -> WeeklyFigures:
    return read_weekly(client, MONDAY, NOW, "USD", None)


def day(event: Event) -> date:
    return datetime.fromtimestamp(event["occurred_at_us"] // 1_000_000, UTC).date()


def summed(events: Iterable[Event], by: Callable[[Event], str]) -> dict[str, Spent]:
    found: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        found[by(event)].append(event)
    return {key: spent(rows) for key, rows in found.items()}


def spent(rows: list[Event]) -> Spent:
    costs = [row["cost_nano"] for row in rows if row["cost_nano"] is not None]
    return Spent(
        sum(costs) if costs else None,
        len(rows),
        sum(row["input_tokens"] + row["output_tokens"] for row in rows),
        sum(row["cost_nano"] is None for row in rows),
    )


def two_weeks(by: Callable[[Event], str]) -> dict[str, Compared]:
    events = list(dicts(IN_DOLLARS))
    assert min(event["occurred_at_us"] for event in events) < START_US + 86_400_000_000
    week = summed((event for event in events if day(event) >= MONDAY), by)
    before = summed((event for event in events if day(event) < MONDAY), by)
    return {
        key: Compared(key, week.get(key, NOTHING), before.get(key, NOTHING))
        for key in week.keys() | before.keys()
    }


def test_the_week_and_the_one_before(figures: WeeklyFigures) -> None:
    whole = two_weeks(lambda _: "")[""]
    assert figures.total == whole
    assert whole.week.unpriced > 0
    assert whole.before.requests > 0
    assert (figures.first_day, figures.end_day) == (MONDAY, TODAY)


def test_by_kind_and_by_who_pays(figures: WeeklyFigures) -> None:
    assert {line.key: line for line in figures.kinds} == two_weeks(lambda e: e["kind"])
    assert {line.key: line for line in figures.by_payer} == two_weeks(lambda e: e["billing_scope"])
    costs = [line.week.cost_nano or 0 for line in figures.kinds]
    assert costs == sorted(costs, reverse=True)


def test_top_users(figures: WeeklyFigures) -> None:
    users = two_weeks(lambda event: event["user_id"])
    del users[""]
    dearest = sorted(users.values(), key=lambda line: -(line.week.cost_nano or 0))
    assert list(figures.users) == dearest
    assert len(dearest) == 3


def test_thirty_days(figures: WeeklyFigures) -> None:
    assert figures.rolling == spent(list(dicts(IN_DOLLARS)))
    assert (figures.rolling_first_day, figures.rolling_end_day) == (
        date(2026, 11, 8),
        date(2026, 12, 8),
    )


def test_other_currencies_are_named_and_not_added(figures: WeeklyFigures) -> None:
    assert figures.other_currencies == ("EUR",)


def test_a_week_without_usage(client: Client) -> None:
    empty = read_weekly(client, date(2025, 1, 6), NOW, "USD", ())
    assert (empty.total.week, empty.total.before, empty.rolling) == (NOTHING, NOTHING, NOTHING)
    assert (empty.kinds, empty.users, empty.other_currencies) == ((), (), ())

"""Which alerts the states of budgets call for."""

from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from pipeline.core.budgets import State, StateRecord, state_of
from pipeline.core.policies import Policy, policy_from_object
from pipeline.core.scopes import RecordKey
from pipeline.core.windows import DAY_MS, parse_ms, window
from pipeline.notices.book import NoticeBook
from pipeline.notices.budget_alerts import BudgetAlerts
from pipeline.notices.budget_lines import (
    OverLines,
    budget_draft,
    crossed,
    lines_to_tell,
    policy_of,
    told_period_ms,
)
from pipeline.notices.destinations import Destinations
from pipeline.notices.notice import Draft, claimed, notice_json
from pipeline.settings import load_settings

NOW_MS = parse_ms("2026-11-22T10:00:00Z")


def policy(**changes: Any) -> Policy:
    return policy_from_object(
        {"scope": "port:harbor-7", "unit": "tokens", "period": "month", **changes}
    )


def state(given: Policy, used: int, scope: str | None = None, now_ms: int = NOW_MS) -> State:
    return state_of(given, scope or given.scope, window(given.period, now_ms), used, 0, now_ms)


def lines(given: Policy, used: int) -> list[tuple[str, int]]:
    return [tuple(one) for one in crossed(state(given, used), given, NOW_MS)]


def drafts(
    given: Policy, at: State, now_ms: int = NOW_MS, names: Mapping[str, str] | None = None
) -> list[Draft]:
    record = StateRecord(at, 1, NOW_MS)
    assert policy_of(at, {given.key: given}) == given
    return [
        budget_draft(record, line, now_ms, "USD", names or {}, given.notify)
        for line in lines_to_tell(at, given, now_ms, lambda _: True)
    ]


@pytest.mark.parametrize(
    ("caps", "used", "expected"),
    [
        ({"soft_cap": 50, "hard_cap": 100}, 50, []),
        ({"soft_cap": 50, "hard_cap": 100}, 51, [("soft", 50)]),
        ({"soft_cap": 50, "hard_cap": 100}, 100, [("soft", 50), ("hard", 100)]),
        ({"soft_cap": 50}, 900, [("soft", 50)]),
        ({"hard_cap": 100}, 80, []),
        ({"hard_cap": 100}, 81, [("soft", 80)]),
        ({"hard_cap": 100, "warn_threshold_pct": 100}, 100, [("hard", 100)]),
        ({"hard_cap": 100, "warn_threshold_pct": 100}, 101, [("hard", 100)]),
        ({"soft_cap": 100, "hard_cap": 100}, 120, [("hard", 100)]),
        ({"hard_cap": 0}, 1, [("hard", 0)]),
        ({"soft_cap": 50, "hard_cap": 100, "enabled": False}, 60, []),
        ({}, 10**9, []),
        (
            {"hard_cap": 100, "extra": {"amount": 100, "until": "2026-12-01T00:00:00Z"}},
            161,
            [("soft", 160)],
        ),
    ],
)
def test_lines_that_are_crossed(
    caps: dict[str, Any], used: int, expected: list[tuple[str, int]]
) -> None:
    given = policy(**caps)
    over = OverLines()
    over.take(RecordKey(given.scope, "tokens", "month"), StateRecord(state(given, used), 1, NOW_MS))
    assert bool(over.unseen(9)) == bool(expected)
    if expected:
        assert lines(given, used) == expected


def test_an_alert_is_named_by_policy_period_line_and_amount() -> None:
    given = policy(soft_cap=50, hard_cap=100, notify=["mailto:a@b.c"])
    soft, hard = drafts(given, state(given, 100))
    assert soft.id == "budget|port:harbor-7|tokens|month|2026-11-01|soft|50"
    assert hard.id == "budget|port:harbor-7|tokens|month|2026-11-01|hard|100"
    assert (soft.type, hard.type) == ("budget.soft_line", "budget.hard_cap")
    assert soft.covers == {"budget|port:harbor-7|tokens|month|2026-11-01|soft": 50}
    assert soft.to == hard.to == ("mailto:a@b.c",)
    assert hard.keep_until_ms > window("month", NOW_MS).resets_at_ms
    told = hard.message.data
    assert told["type"] == "budget.hard_cap"
    assert told["data"]["state"]["used"] == 100
    assert "100 tokens of 100 tokens per month" in hard.message.subject


def test_a_raised_cap_is_another_line_and_a_lowered_one_is_not() -> None:
    at = {amount: drafts(policy(hard_cap=amount), state(policy(hard_cap=amount), 200))[-1].covers
          for amount in (100, 150, 200)}  # fmt: skip
    (name,) = at[100]
    assert [covers[name] for covers in at.values()] == [100, 150, 200]


def test_the_next_period_is_told_anew() -> None:
    given = policy(hard_cap=100, period="day")
    today, tomorrow = (
        drafts(given, state(given, 100, now_ms=NOW_MS + days * DAY_MS), now_ms=NOW_MS)[-1].id
        for days in (0, 1)
    )
    assert today != tomorrow


def test_rolling_days_are_told_once_a_month() -> None:
    given = policy(hard_cap=100, period="rolling-30d")
    starts = [told_period_ms(state(given, 100, now_ms=NOW_MS + days * DAY_MS)) for days in range(9)]
    assert starts == [parse_ms("2026-11-01T00:00:00Z")] * 9
    assert told_period_ms(state(given, 1, now_ms=NOW_MS + 9 * DAY_MS)) == parse_ms(
        "2026-12-01T00:00:00Z"
    )


def test_nothing_is_told_of_a_period_that_is_over() -> None:
    given = policy(hard_cap=100, period="day")
    assert drafts(given, state(given, 100), now_ms=NOW_MS + DAY_MS) == []


def test_an_id_under_a_wildcard_is_told_to_whom_the_wildcard_names() -> None:
    given = policy(scope="user:*", unit="cost", hard_cap="2.50", notify=["https://x.example"])
    at = state(given, 2_600_000_000, "user:a|b")
    *_, hard = drafts(given, at, names={"user:a|b": "Ann <b>"})
    assert hard.id.startswith("budget|user:a%7Cb|cost|month|")
    assert hard.to == ("https://x.example",)
    assert "Ann <b> (user:a|b)" in hard.message.subject
    assert "USD 2.6 of USD 2.5" in hard.message.subject
    assert "<b>" not in hard.message.html
    assert "Ann &lt;b&gt; (user:a|b)" in hard.message.html
    assert hard.message.data["data"]["line_amount"] == "2.5"


def test_a_state_counts_as_seen_only_when_it_was_told() -> None:
    over, given = OverLines(), policy(hard_cap=100)
    key = RecordKey(given.scope, "tokens", "month")
    record = StateRecord(state(given, 100), 1, NOW_MS)
    over.take(key, record)
    assert over.unseen(9) == over.unseen(9) == [(key, record)]
    over.seen(key)
    assert over.unseen(9) == []
    over.take(key, record)
    assert over.unseen(9) == [(key, record)]
    over.take(key, record._replace(state=msgspec.structs.replace(record.state, status="ok")))
    assert over.unseen(9) == []
    over.take(key, record)
    over.take(key, None)
    assert over.unseen(9) == []


def test_one_that_waits_keeps_no_other_waiting() -> None:
    over, given = OverLines(), policy(hard_cap=100)
    keys = [RecordKey(f"port:p{number}", "tokens", "month") for number in range(3)]
    for key in keys:
        over.take(key, StateRecord(state(given, 100, key.scope), 1, NOW_MS))
    assert [key for key, _ in over.unseen(2)] == keys[:2]
    over.postpone(keys[0])
    assert [key for key, _ in over.unseen(9)] == [*keys[1:], keys[0]]


async def test_alerts_wait_for_policies_and_states_and_come_until_they_are_told() -> None:
    given = policy(soft_cap=50, hard_cap=100)
    over, book = OverLines(), NoticeBook()
    known: list[dict[str, Policy] | None] = [None]
    alerts = BudgetAlerts(
        over,
        Destinations(load_settings({"TALLYPORT_WEBHOOK_URL": "https://hooks.example"})),
        "USD",
        policies=lambda: known[0],
        names=dict,
        now_ms=lambda: NOW_MS,
    )
    over.take(RecordKey(given.scope, "tokens", "month"), StateRecord(state(given, 100), 1, NOW_MS))
    assert await alerts.look(book, NOW_MS) == []
    known[0] = {}
    assert await alerts.look(book, NOW_MS) == []
    known[0] = {given.key: given}
    soft, hard = await alerts.look(book, NOW_MS)
    assert await alerts.look(book, NOW_MS) == [soft, hard]
    for told in (soft, hard):
        value = notice_json(claimed(told, (), NOW_MS))
        book.apply(f"notice|{told.id}".encode(), value)
    assert await alerts.look(book, NOW_MS) == []
    assert over.unseen(9) == []


async def test_nobody_to_tell_is_nothing_to_remember() -> None:
    given, over = policy(hard_cap=100), OverLines()
    alerts = BudgetAlerts(
        over,
        Destinations(load_settings({})),
        "USD",
        policies=lambda: {given.key: given},
        names=dict,
        now_ms=lambda: NOW_MS,
    )
    over.take(RecordKey(given.scope, "tokens", "month"), StateRecord(state(given, 100), 1, NOW_MS))
    assert await alerts.look(NoticeBook(), NOW_MS) == []
    assert over.unseen(9) == []

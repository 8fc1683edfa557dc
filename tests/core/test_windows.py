"""Windows of whole UTC days, against the calendar; and the text form of instants."""

from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import InvalidField
from pipeline.core.scopes import PERIODS
from pipeline.core.windows import (
    DAY_MS,
    Window,
    format_boundary,
    format_ms,
    next_midnight_ms,
    oldest_day_needed,
    parse_ms,
    window,
)

instants = st.integers(0, 4_000_000_000_000)


def day_number(text: str) -> int:
    return (date.fromisoformat(text) - date(1970, 1, 1)).days


@pytest.mark.parametrize(
    ("period", "now", "start", "end"),
    [
        ("day", "2026-11-22T23:59:59.999Z", "2026-11-22", "2026-11-23"),
        ("day", "2026-11-23T00:00:00Z", "2026-11-23", "2026-11-24"),
        ("week", "2026-11-22T23:59:59.999Z", "2026-11-16", "2026-11-23"),
        ("week", "2026-11-23T00:00:00Z", "2026-11-23", "2026-11-30"),
        ("month", "2026-11-30T23:59:59.999Z", "2026-11-01", "2026-12-01"),
        ("month", "2026-12-31T12:00:00Z", "2026-12-01", "2027-01-01"),
        ("month", "2028-02-29T00:00:00Z", "2028-02-01", "2028-03-01"),
        ("rolling-30d", "2026-11-22T10:15:03.120Z", "2026-10-24", "2026-11-23"),
    ],
)
def test_window(period: str, now: str, start: str, end: str) -> None:
    start_day, end_day = day_number(start), day_number(end)
    expected = Window(start_day, end_day, start_day * DAY_MS, end_day * DAY_MS)
    assert window(period, parse_ms(now)) == expected


@given(instants)
def test_windows_hold_now_and_reset_at_a_midnight_in_the_future(now_ms: int) -> None:
    today = datetime.fromtimestamp(now_ms // 1000, UTC).date()
    for period in PERIODS:
        span = window(period, now_ms)
        assert span.start_day <= now_ms // DAY_MS < span.end_day
        assert span.start_ms == span.start_day * DAY_MS
        assert now_ms < next_midnight_ms(now_ms) <= span.resets_at_ms
        assert window(period, span.resets_at_ms).start_day > span.start_day
    first_days = [date(1970, 1, 1) + timedelta(window(p, now_ms).start_day) for p in PERIODS]
    assert first_days == [
        today,
        today - timedelta(today.weekday()),
        today.replace(day=1),
        today - timedelta(29),
    ]
    oldest = date(1970, 1, 1) + timedelta(oldest_day_needed(now_ms))
    assert oldest == min(first_days)


def test_the_month_may_reach_further_back_than_thirty_days() -> None:
    assert oldest_day_needed(parse_ms("2026-12-31T00:00:00Z")) == day_number("2026-12-01")
    assert oldest_day_needed(parse_ms("2026-11-22T00:00:00Z")) == day_number("2026-10-24")


def test_an_unknown_period_is_refused() -> None:
    with pytest.raises(InvalidField):
        window("year", 0)


@given(instants)
def test_text_of_instants_comes_back(now_ms: int) -> None:
    assert parse_ms(format_ms(now_ms)) == now_ms
    assert parse_ms(format_boundary(now_ms)) == now_ms
    assert ("." in format_boundary(now_ms)) == (now_ms % 1000 != 0)


def test_text_of_instants() -> None:
    now_ms = parse_ms("2026-11-22T10:15:03.120Z")
    assert format_ms(now_ms) == "2026-11-22T10:15:03.120Z"
    assert format_ms(now_ms - 120) == "2026-11-22T10:15:03.000Z"
    assert format_boundary(now_ms - 120) == "2026-11-22T10:15:03Z"
    assert parse_ms("2026-11-22T11:15:03.1209999+01:00") == now_ms
    assert parse_ms("2026-11-22t10:15:03.12z") == now_ms


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-22",
        "2026-11-22T10:15:03",
        "2026-02-30T00:00:00Z",
        "2026-11-22T24:00:00Z",
        "2026-11-22T10:15Z",
        "2026-11-22T10:15:03.Z",
        "2026-11-22T10:15:03+25:00",
        "now",
        "",
    ],
)
def test_what_is_no_instant_is_refused(text: str) -> None:
    with pytest.raises(InvalidField) as caught:
        parse_ms(text, "until")
    assert caught.value.field == "until"

"""Forecasts of series whose answer is known by other means."""

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.forecast import Forecast, forecast, forecast_fields, forecast_text
from pipeline.core.windows import DAY_MS, ROLLING_DAYS, window


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


NOW = ms("2026-11-12T12:00:00")
TODAY = NOW // DAY_MS


def steady(amount: int, days: int) -> dict[int, int]:
    return {TODAY - back: amount for back in range(1, days + 1)}


def test_a_steady_pace_reaches_the_cap_on_the_day_one_counts_by_hand() -> None:
    # 100 a day; 350 are missing: half a day of today, three whole ones, and then noon.
    found = forecast(650, 1000, steady(100, 7), "month", NOW)
    assert found == Forecast("on-date", NOW + 7 * DAY_MS // 2, 100, 7)
    assert found.at_ms == ms("2026-11-16T00:00:00")
    text = forecast_text(found, "2026-11-16")
    assert text == "at this pace the cap is reached on 2026-11-16"


def test_on_the_wire_it_is_a_day_an_instant_and_a_pace() -> None:
    found = forecast(650, 1000, steady(100, 7), "month", NOW)
    told = {
        "outlook": "on-date",
        "date": "2026-11-16",
        "at": "2026-11-16T00:00:00.000Z",
        "per_day": 100,
        "days": 7,
        "text": "at this pace the cap is reached on 2026-11-16",
    }
    assert forecast_fields(found, "tokens") == told
    assert forecast_fields(found, "cost") == {**told, "per_day": "0.0000001"}
    nothing = {"date": None, "at": None, "per_day": None, "days": 0}
    for unit in ("tokens", "cost"):
        assert forecast_fields(Forecast("reached"), unit) == {
            "outlook": "reached", **nothing, "text": "the hard cap is reached",
        }  # fmt: skip


def test_a_cap_that_lies_beyond_the_period_is_not_reached_in_it() -> None:
    # 18.5 days are left of November: 1,850.
    assert forecast(0, 1850, steady(100, 7), "month", NOW).outlook == "on-date"
    late = forecast(0, 1851, steady(100, 7), "month", NOW)
    assert (late.outlook, late.at_ms) == ("not-before-the-period-ends", None)
    week = forecast(0, 351, steady(100, 7), "week", NOW)  # Thursday noon: 3.5 days are left
    assert week.outlook == "not-before-the-period-ends"
    assert forecast(0, 350, steady(100, 7), "week", NOW).outlook == "on-date"
    assert forecast(50, 100, steady(100, 7), "day", NOW).at_ms == ms("2026-11-13T00:00:00")


def test_only_the_last_complete_days_make_the_pace() -> None:
    daily = {**steady(100, 7), **{TODAY - back: 9_000 for back in range(8, 30)}, TODAY: 50_000}
    assert forecast(0, 400, daily, "month", NOW).per_day == 100


def test_rolling_days_fall_out_while_others_come() -> None:
    # As much falls out each midnight as comes in a day, so what is used stays what it is.
    even = steady(100, ROLLING_DAYS)
    used = 100 * (ROLLING_DAYS - 1)
    found = forecast(used, 100 * ROLLING_DAYS + 1, even, "rolling-30d", NOW)
    assert found.outlook == "not-before-the-period-ends"
    # Nothing falls out for weeks: it grows as in a month.
    young = forecast(700, 1000, steady(100, 7), "rolling-30d", NOW)
    assert young.at_ms == NOW + 3 * DAY_MS
    # 1,000 fall out at the first midnight, after 50 came: 950 + 50 - 1,000, and then 100 a day.
    old = {**steady(100, 7), TODAY - 29: 1_000}
    assert forecast(950, 1001, old, "rolling-30d", NOW).at_ms == ms("2026-11-23T00:14:24")


def test_it_says_nothing_where_the_days_are_too_thin() -> None:
    assert forecast(5, None, steady(100, 7), "month", NOW) == Forecast("no-cap")
    assert forecast(5, 5, steady(100, 7), "month", NOW) == Forecast("reached")
    assert forecast(0, 0, {}, "month", NOW) == Forecast("reached")
    assert forecast(0, 10, {}, "month", NOW).outlook == "too-few-days"
    assert forecast(0, 10, {TODAY: 5}, "month", NOW).outlook == "too-few-days"
    assert forecast(0, 10, steady(1, 2), "month", NOW).outlook == "too-few-days"
    gaps = {TODAY - 1: 5, TODAY - 6: 5}
    assert forecast(0, 10, gaps, "month", NOW).outlook == "too-few-days"
    assert forecast(0, 10, steady(1, 3), "month", NOW).outlook == "on-date"
    spike = {**steady(1, 7), TODAY - 3: 1_000}
    assert forecast(0, 10, spike, "month", NOW).outlook == "too-uneven"
    assert "one day" in forecast_text(forecast(0, 10, spike, "month", NOW))


def test_quiet_days_count_into_the_pace() -> None:
    daily = {TODAY - 1: 10, TODAY - 3: 10, TODAY - 7: 10}
    assert forecast(0, 100, daily, "month", NOW).per_day == 30 // 7


@given(
    used=st.integers(0, 10**15),
    missing=st.integers(1, 10**15),
    amounts=st.lists(st.integers(0, 10**14), min_size=30, max_size=30),
    period=st.sampled_from(["day", "week", "month"]),
    at=st.integers(0, 400 * DAY_MS),
)
def test_in_a_calendar_period_the_instant_is_the_division(
    used: int, missing: int, amounts: list[int], period: str, at: int
) -> None:
    now_ms = NOW + at
    today = now_ms // DAY_MS
    daily = {today - back: amount for back, amount in enumerate(amounts, 1)}
    found = forecast(used, used + missing, daily, period, now_ms)
    if found.outlook in ("too-few-days", "too-uneven"):
        return
    total = sum(amounts[: found.days])
    at_ms = now_ms + -(-missing * found.days * DAY_MS // total)
    if at_ms <= window(period, now_ms).resets_at_ms:
        assert found.at_ms == at_ms
    else:
        assert found.outlook == "not-before-the-period-ends"

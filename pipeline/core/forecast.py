"""When a budget's hard cap is reached if use goes on as in the last days. Pure and in integers.

The pace is the mean of the last complete days, at most ``PACE_DAYS`` of them, counted from the
first day with any use. Nothing is said where that is no pace: too few days, or a single day that
makes up most of it. For a calendar period the amount grows by the pace until the period ends; for
rolling 30 days each midnight also takes away what was used on the day that falls out.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from pipeline.core.budgets import State
from pipeline.core.money import format_nano
from pipeline.core.windows import DAY_MS, ROLLING_DAYS, format_ms, window

PACE_DAYS = 7
LEAST_DAYS = 3
"""So many complete days, and so many of them with use, make a pace."""
MOST_OF_IT = (3, 4)
"""One day with more than this share of all the use is no pace."""

Outlook = Literal[
    "no-cap", "reached", "too-few-days", "too-uneven", "not-before-the-period-ends", "on-date"
]


class Forecast(NamedTuple):
    """``at_ms`` is when the cap is reached (outlook ``on-date`` only, else None).

    ``per_day`` is the pace, rounded down, and ``days`` on how many days it rests; None and 0
    where there is none.
    """

    outlook: Outlook
    at_ms: int | None = None
    per_day: int | None = None
    days: int = 0


class BudgetOutlook(NamedTuple):
    """A budget as it is, and when its hard cap is reached at the pace of the last days."""

    state: State
    forecast: Forecast


def forecast(
    used: int, hard_cap: int | None, daily: Mapping[int, int], period: str, now_ms: int
) -> Forecast:
    """When ``used`` grows to ``hard_cap`` at the pace of ``daily``.

    ``daily`` holds the amounts of days (since 1970, UTC); a missing day was one without use.
    Rolling 30 days need the last 30 of them, everything else ``PACE_DAYS``. The present day does
    not count for the pace: it is not over.
    """
    if hard_cap is None:
        return Forecast("no-cap")
    if used >= hard_cap:
        return Forecast("reached")
    total, days, refusal = _pace(daily, now_ms // DAY_MS)
    if refusal is not None:
        return Forecast(refusal, None, None, days)
    falling_out = daily if period == "rolling-30d" else {}
    at_ms = _reached_ms(hard_cap - used, total, days, falling_out, period, now_ms)
    outlook: Outlook = "not-before-the-period-ends" if at_ms is None else "on-date"
    return Forecast(outlook, at_ms, total // days, days)


def _pace(daily: Mapping[int, int], today: int) -> tuple[int, int, Outlook | None]:
    """The amount of the last complete days, their number, and why they are no pace."""
    seen = [day for day, amount in daily.items() if amount > 0 and day < today]
    if not seen:
        return 0, 0, "too-few-days"
    first = max(min(seen), today - PACE_DAYS)
    amounts = [max(0, daily.get(day, 0)) for day in range(first, today)]
    total, days = sum(amounts), len(amounts)
    if sum(amount > 0 for amount in amounts) < LEAST_DAYS:
        return total, days, "too-few-days"
    share, whole = MOST_OF_IT
    if max(amounts) * whole > total * share:
        return total, days, "too-uneven"
    return total, days, None


def _reached_ms(
    missing: int,
    total: int,
    days: int,
    falling_out: Mapping[int, int],
    period: str,
    now_ms: int,
) -> int | None:
    """The instant at which ``missing`` has been used at ``total`` in ``days`` days; else None.

    Everything is counted in shares of 1/(days · a day's milliseconds) of a unit, so it is exact.
    """
    scale = days * DAY_MS
    left = missing * scale
    end_ms = window(period, now_ms).resets_at_ms
    if period == "rolling-30d":
        end_ms += (ROLLING_DAYS - 1) * DAY_MS  # then every day in it is one at this pace
    at_ms = now_ms
    while at_ms < end_ms:
        day = at_ms // DAY_MS
        midnight_ms = min((day + 1) * DAY_MS, end_ms)
        if left <= total * (midnight_ms - at_ms):
            return at_ms + -(-left // total)
        left -= total * (midnight_ms - at_ms)
        at_ms = midnight_ms
        left += max(0, falling_out.get(day + 1 - ROLLING_DAYS, 0)) * scale
    return None


def forecast_text(found: Forecast, date: str | None = None) -> str:
    """What the forecast says, in one sentence; ``date`` is the day of ``at_ms``."""
    days = f"{found.days} complete day{'' if found.days == 1 else 's'}"
    return {
        "no-cap": "there is no hard cap to reach",
        "reached": "the hard cap is reached",
        "too-few-days": f"no forecast: {days} of the last {PACE_DAYS} with use are too few",
        "too-uneven": "no forecast: one day made up most of the last days' use",
        "not-before-the-period-ends": "at this pace the cap is not reached in this period",
        "on-date": f"at this pace the cap is reached on {date}",
    }[found.outlook]


def forecast_fields(found: Forecast, unit: str) -> dict[str, Any]:
    """The forecast as on the wire; ``date`` and ``at`` are UTC."""
    at = None if found.at_ms is None else format_ms(found.at_ms)
    per_day = found.per_day
    return {
        "outlook": found.outlook,
        "date": at and at[:10],
        "at": at,
        "per_day": format_nano(per_day) if per_day is not None and unit == "cost" else per_day,
        "days": found.days,
        "text": forecast_text(found, at and at[:10]),
    }

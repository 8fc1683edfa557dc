"""The periods of budgets as windows of whole UTC days, and the text form of instants.

Times are milliseconds since 1970 UTC, days are days since 1970-01-01 UTC.
"""

import re
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import NamedTuple

from pipeline.core.errors import InvalidField
from pipeline.core.scopes import PERIODS

DAY_MS = 86_400_000
ROLLING_DAYS = 30

_EPOCH_ORDINAL = date(1970, 1, 1).toordinal()
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_RFC_3339 = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d+))?([Zz]|[+-]\d\d:\d\d)", re.ASCII
)


class Window(NamedTuple):
    """The days ``start_day`` ≤ day < ``end_day``, and when the next window takes over.

    ``resets_at_ms`` is the start of ``end_day`` for every period.
    """

    start_day: int
    end_day: int
    start_ms: int
    resets_at_ms: int


def window(period: str, now_ms: int) -> Window:
    """The window of ``period`` that is running at ``now_ms``."""
    return _window(period, now_ms // DAY_MS)


def oldest_day_needed(now_ms: int) -> int:
    """The first day that any period's window covers at ``now_ms``."""
    return min(window(period, now_ms).start_day for period in PERIODS)


def next_midnight_ms(now_ms: int) -> int:
    """The first UTC midnight after ``now_ms``: no window changes before it."""
    return (now_ms // DAY_MS + 1) * DAY_MS


@lru_cache(maxsize=1024)
def format_ms(instant_ms: int) -> str:
    """RFC 3339 with milliseconds: ``2026-11-22T10:15:03.120Z``."""
    seconds, milliseconds = divmod(instant_ms, 1000)
    return f"{_format_seconds(seconds)}.{milliseconds:03d}Z"


@lru_cache(maxsize=1024)
def format_boundary(instant_ms: int) -> str:
    """RFC 3339 without a fraction where there is none: ``2026-11-01T00:00:00Z``."""
    seconds, milliseconds = divmod(instant_ms, 1000)
    fraction = f".{milliseconds:03d}" if milliseconds else ""
    return f"{_format_seconds(seconds)}{fraction}Z"


@lru_cache(maxsize=1024)
def parse_ms(text: str, field: str = "time") -> int:
    """The milliseconds of an RFC 3339 time with an offset; digits beyond them are cut.

    Raises ``InvalidField`` naming ``field``.
    """
    match = _RFC_3339.fullmatch(text)
    if match is None:
        raise InvalidField(field, f"must be an RFC 3339 time with an offset, not {text!r}")
    day, clock, fraction, offset = match.groups()
    zone = "+00:00" if offset in "Zz" else offset
    try:
        instant = datetime.fromisoformat(f"{day}T{clock}{zone}") - _EPOCH
    except (ValueError, OverflowError):
        raise InvalidField(field, f"{text!r} is no time") from None
    milliseconds = int((fraction or "0").ljust(3, "0")[:3])
    return (instant // timedelta(seconds=1)) * 1000 + milliseconds


@lru_cache(maxsize=256)
def _window(period: str, today: int) -> Window:
    start_day, end_day = _days(period, today)
    return Window(start_day, end_day, start_day * DAY_MS, end_day * DAY_MS)


def _days(period: str, today: int) -> tuple[int, int]:
    if period == "day":
        return today, today + 1
    if period == "week":
        # 1970-01-01 was a Thursday.
        monday = today - (today + 3) % 7
        return monday, monday + 7
    if period == "month":
        first = date.fromordinal(today + _EPOCH_ORDINAL).replace(day=1)
        after = (first + timedelta(days=31)).replace(day=1)
        return first.toordinal() - _EPOCH_ORDINAL, after.toordinal() - _EPOCH_ORDINAL
    if period == "rolling-30d":
        return today - ROLLING_DAYS + 1, today + 1
    raise InvalidField("period", f"must be one of {', '.join(PERIODS)}, not {period!r}")


def _format_seconds(seconds: int) -> str:
    return (_EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S")

"""RFC 3339 times as microseconds since 1970 UTC."""

import re
from datetime import date
from functools import lru_cache

_US = 1_000_000
_DAY_S = 86_400
_UNIX_DAY = date(1970, 1, 1).toordinal()
_TIME = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt](\d\d):(\d\d):(\d\d)(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII
)


class NoInstant(ValueError):
    """The text is no RFC 3339 time with an offset."""


def parse_instant(text: str) -> int:
    """Microseconds since 1970 UTC, what is finer is cut; raises ``NoInstant``."""
    found = _TIME.fullmatch(text)
    if found is None:
        raise NoInstant(text)
    year, month, day, hour_text, minute_text, second_text, fraction, zone = found.groups()
    hour, minute, second = int(hour_text), int(minute_text), int(second_text)
    if hour > 23 or minute > 59 or second > 60:
        raise NoInstant(text)
    minute_s = _day(year, month, day) * _DAY_S + hour * 3600 + minute * 60 - _shift_s(zone)
    if second == 60:
        return _leap_second(minute_s)
    return (minute_s + second) * _US + int((fraction or ".0")[1:7].ljust(6, "0"))


def _shift_s(zone: str) -> int:
    if zone in "Zz":
        return 0
    hours, minutes = int(zone[1:3]), int(zone[4:])
    if hours > 23 or minutes > 59:
        raise NoInstant(zone)
    return (hours * 3600 + minutes * 60) * (-1 if zone[0] == "-" else 1)


@lru_cache(maxsize=4_096)
def _day(year_text: str, month: str, day: str) -> int:
    # Python's calendar starts at year 1, RFC 3339's at 0; 400 years are always 146,097 days.
    year = int(year_text)
    try:
        shifted = date(year + 400 if year == 0 else year, int(month), int(day)).toordinal()
    except ValueError:
        raise NoInstant(f"{year_text}-{month}-{day}") from None
    return shifted - (146_097 if year == 0 else 0) - _UNIX_DAY


def _leap_second(minute_s: int) -> int:
    """23:59:60 UTC at a month's end, as that day's last microsecond."""
    days, rest_s = divmod(minute_s + 60, _DAY_S)
    following = days + _UNIX_DAY
    if rest_s or not 1 <= following <= date.max.toordinal():
        raise NoInstant("a leap second within a minute or day")
    if date.fromordinal(following).day != 1:
        raise NoInstant("a leap second within a month")
    return (minute_s + 60) * _US - 1

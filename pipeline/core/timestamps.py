"""RFC 3339 times as microseconds since 1970 UTC."""

import re
from datetime import date
from typing import Final

US_PER_SECOND: Final = 1_000_000
US_PER_MINUTE: Final = 60 * US_PER_SECOND
US_PER_HOUR: Final = 60 * US_PER_MINUTE
US_PER_DAY: Final = 24 * US_PER_HOUR

_RFC3339: Final = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt]([0-9]{2}):([0-9]{2}):([0-9]{2})"
    r"(?:\.([0-9]+))?(?:[Zz]|([+-])([0-9]{2}):([0-9]{2}))"
)
_EPOCH_DAY: Final = date(1970, 1, 1).toordinal()
_DAYS_IN_400_YEARS: Final = 146_097

_SECOND_CHARS: Final = len("2026-01-01T00:00:00")
_UTC: Final = "+00:00"
_MICROSECOND_DIGITS: Final = 6
# Events come about in the order of their times; beyond the bound the cache starts anew.
_SECOND_CACHE_SIZE: Final = 16_384
_seconds_us: dict[str, int] = {}


def parse_rfc3339_us(text: str) -> int | None:
    """Microseconds since 1970 UTC (negative before), or None when ``text`` is no RFC 3339 time.

    An offset is required. More than six fractional digits are cut, not rounded. Second 60 is
    read where UTC can have a leap second (23:59:60 on the last day of a month) and becomes the
    last microsecond of that day, so that it stays in the period it belongs to.
    """
    second_us = _seconds_us.get(text[:_SECOND_CHARS])
    if second_us is None:
        return _parse_strictly(text)
    # The usual forms; whatever else follows a second that is known is read strictly.
    if text[-1] == "Z":
        fraction = text[_SECOND_CHARS:-1]
    elif text.endswith(_UTC):
        fraction = text[_SECOND_CHARS : -len(_UTC)]
    else:
        return _parse_strictly(text)
    digits = fraction[1:]
    if (
        len(digits) != _MICROSECOND_DIGITS
        or fraction[0] != "."
        or not (digits.isascii() and digits.isdigit())
    ):
        return _parse_strictly(text)
    return second_us + int(digits)


def _parse_strictly(text: str) -> int | None:
    match = _RFC3339.fullmatch(text)
    if match is None:
        return None
    year, month, day, hour, minute, second = map(int, match.group(1, 2, 3, 4, 5, 6))
    fraction, sign, offset_hours, offset_minutes = match.group(7, 8, 9, 10)
    day_number = _day_number(year, month, day)
    if day_number is None or hour > 23 or minute > 59 or second > 60:
        return None
    minute_us = day_number * US_PER_DAY + (hour * 60 + minute) * US_PER_MINUTE
    if sign is not None:
        if int(offset_hours) > 23 or int(offset_minutes) > 59:
            return None
        offset_us = (int(offset_hours) * 60 + int(offset_minutes)) * US_PER_MINUTE
        minute_us += offset_us if sign == "-" else -offset_us
    if second == 60:
        return _leap_second_us(minute_us)
    second_us = minute_us + second * US_PER_SECOND
    if sign is None:
        _remember_second(text[:_SECOND_CHARS], second_us)
    fraction_us = int(fraction[:6].ljust(6, "0")) if fraction else 0
    return second_us + fraction_us


def _day_number(year: int, month: int, day: int) -> int | None:
    """Days since 1970-01-01; None when there is no such day. RFC 3339 has a year 0000."""
    try:
        if year == 0:
            return date(400, month, day).toordinal() - _DAYS_IN_400_YEARS - _EPOCH_DAY
        return date(year, month, day).toordinal() - _EPOCH_DAY
    except ValueError:
        return None


def _leap_second_us(minute_us: int) -> int | None:
    """The last microsecond of the UTC day whose last minute starts at ``minute_us``, or None."""
    next_day, rest_us = divmod(minute_us + US_PER_MINUTE, US_PER_DAY)
    next_ordinal = next_day + _EPOCH_DAY
    if rest_us or not 1 <= next_ordinal <= date.max.toordinal():
        return None
    if date.fromordinal(next_ordinal).day != 1:
        return None
    return minute_us + US_PER_MINUTE - 1


def _remember_second(prefix: str, second_us: int) -> None:
    if len(_seconds_us) >= _SECOND_CACHE_SIZE:
        _seconds_us.clear()
    _seconds_us[prefix] = second_us

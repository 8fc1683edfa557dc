"""UTC months of the ledger: how they are written, which days they have, what they hold."""

import re
from collections.abc import Iterator
from datetime import date, timedelta
from typing import NamedTuple

from clickhouse_connect.driver.client import Client

from pipeline.core.errors import InvalidField

_TEXT = re.compile(r"(\d{4})-(\d\d)", re.ASCII)
_MOST_YEAR = 2105
"""The last one whose months a ledger can partition by."""
_DAYS = (
    "SELECT DISTINCT toDate(occurred_at) AS day FROM {table} "
    "WHERE toYYYYMM(occurred_at) = {{month:UInt32}} ORDER BY day"
)


class Month(NamedTuple):
    """A calendar month, UTC."""

    year: int
    month: int

    def __str__(self) -> str:
        return f"{self.year:04d}-{self.month:02d}"

    @property
    def number(self) -> int:
        """``202608``, as ClickHouse names the partition."""
        return self.year * 100 + self.month

    @property
    def first_day(self) -> date:
        return date(self.year, self.month, 1)

    @property
    def end_day(self) -> date:
        """The first day after it."""
        return (self.first_day + timedelta(days=31)).replace(day=1)


def parse_month(text: str) -> Month:
    """Raises ``InvalidField`` for what is no month like ``2026-08``."""
    match = _TEXT.fullmatch(text)
    if match is None or not 1 <= int(match[2]) <= 12 or not 1970 <= int(match[1]) <= _MOST_YEAR:
        raise InvalidField("MONTH", f"must be a month like 2026-08, not {text!r}")
    return Month(int(match[1]), int(match[2]))


def month_of_number(number: int) -> Month:
    """The month of ``Month.number``."""
    return Month(number // 100, number % 100)


def days_held(client: Client, month: Month, table: str = "ledger_entries") -> Iterator[date]:
    """The days of the month that have entries, in order."""
    found = client.query(_DAYS.format(table=table), parameters={"month": month.number})
    return (day for (day,) in found.result_rows)

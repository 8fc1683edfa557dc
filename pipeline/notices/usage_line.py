"""The usage alert: when the deployment's cost over 30 days reaches a line, once a calendar month.

It asks the ledger, so no policy on ``all`` is needed. Like the cost budget of ``all`` it counts
what the organisation pays for.
"""

import asyncio
from datetime import UTC, datetime, time, timedelta
from decimal import Decimal
from typing import Final

from pipeline.core.money import NANO_PER_UNIT, format_nano
from pipeline.core.windows import format_boundary, window
from pipeline.ledger.client import ledger_reader
from pipeline.ledger.filters import UsageFilters
from pipeline.ledger.usage import usage_report
from pipeline.notices.book import NoticeBook
from pipeline.notices.letters import letter
from pipeline.notices.notice import DAY_MS, Draft
from pipeline.settings import Settings

KEEP_DAYS: Final = 8
TYPE: Final = "usage.alert"
_CURRENCIES = 100


class UsageLine:
    """Looks whether the line is reached, until it was told in the running month."""

    name = "usage alert"
    every_s = 5.0

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._line_nano = line_nano(settings.usage_alert)

    async def look(self, book: NoticeBook, now_ms: int) -> list[Draft]:
        """The alert when it is due. Raises ``LedgerError`` or ``ConfigurationError``."""
        covers = month_cover(now_ms)
        if not self._line_nano or not book.is_news(covers):
            return []
        used_nano = await asyncio.to_thread(self._used_nano, now_ms)
        if used_nano is None or used_nano < self._line_nano:
            return []
        return [usage_draft(used_nano, self._line_nano, self._settings.currency, now_ms)]

    def _used_nano(self, now_ms: int) -> int | None:
        currency = self._settings.currency
        wanted = rolling_filters(now_ms)
        with ledger_reader(self._settings) as client:
            found = usage_report(client, wanted, (), _CURRENCIES)
        costs = [row["cost_nano"] for row in found if row["currency"] == currency]
        return next((int(cost) for cost in costs if cost is not None), None)


def line_nano(amount: Decimal) -> int:
    """The setting in nanos; 0 is off."""
    return int(amount * NANO_PER_UNIT)


def month_cover(now_ms: int) -> dict[str, int]:
    """What an alert of the running month covers."""
    return {f"usage|{format_boundary(window('month', now_ms).start_ms)[:7]}": 0}


def rolling_filters(now_ms: int) -> UsageFilters:
    """Today and the 29 days before, as far as the organisation pays."""
    today = datetime.fromtimestamp(now_ms / 1000, UTC).date()
    start, end = (datetime.combine(today + timedelta(days=days), time(), UTC) for days in (-29, 1))
    return UsageFilters(billing_scope="org", start=start, end=end)


def usage_draft(used_nano: int, line_nano: int, currency: str, now_ms: int) -> Draft:
    """The alert."""
    covers = month_cover(now_ms)
    used, line = (f"{currency} {format_nano(nano)}" for nano in (used_nano, line_nano))
    month = window("month", now_ms)
    message = letter(
        TYPE,
        f"AI usage has reached {used} in 30 days",
        f"The cost of the whole deployment over the last 30 days has reached {line}. "
        "This is told once a calendar month.",
        [("Cost of 30 days", used), ("Line", line)],
        now_ms,
        {
            "used": format_nano(used_nano),
            "line_amount": format_nano(line_nano),
            "currency": currency,
            "period": "rolling-30d",
        },
    )
    return Draft(next(iter(covers)), TYPE, covers, month.resets_at_ms + KEEP_DAYS * DAY_MS, message)

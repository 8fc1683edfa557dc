"""Models that were used and have no price: each is told once a calendar month."""

import asyncio
import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime, time, timedelta
from typing import Any, Final

from pipeline.core.windows import format_boundary, window
from pipeline.ledger.client import ledger_reader
from pipeline.ledger.filters import UsageFilters
from pipeline.ledger.usage import unpriced_models
from pipeline.notices.book import NoticeBook
from pipeline.notices.letters import letter
from pipeline.notices.notice import DAY_MS, Draft
from pipeline.settings import Settings

KEEP_DAYS: Final = 8
LOOK_BACK_DAYS: Final = 8
MAX_MODELS: Final = 200
TYPE: Final = "price.missing"
_SHOWN = 20


class UnpricedModels:
    """Looks through the last days; what is new there goes into one alert."""

    name = "unpriced models"
    every_s = 10.0

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def look(self, book: NoticeBook, now_ms: int) -> list[Draft]:
        """The alert when there is any. Raises ``LedgerError`` or ``ConfigurationError``."""
        found = await asyncio.to_thread(self._read, now_ms)
        news = [row for row in found if book.is_news({cover_of(row, now_ms): 0})]
        return [unpriced_draft(news, now_ms)] if news else []

    def _read(self, now_ms: int) -> list[dict[str, Any]]:
        today = datetime.fromtimestamp(now_ms / 1000, UTC).date()
        start, end = (
            datetime.combine(today + timedelta(days=days), time(), UTC)
            for days in (-LOOK_BACK_DAYS, 2)
        )
        with ledger_reader(self._settings) as client:
            return unpriced_models(client, UsageFilters(start=start, end=end), MAX_MODELS)


def cover_of(row: dict[str, Any], now_ms: int) -> str:
    """What an alert on one model covers in the running month."""
    month = format_boundary(window("month", now_ms).start_ms)[:7]
    return f"unpriced|{month}|{json.dumps([row['provider'], row['model']])}"


def unpriced_draft(rows: Sequence[dict[str, Any]], now_ms: int) -> Draft:
    """One alert on all of ``rows``."""
    covers = {cover_of(row, now_ms): 0 for row in rows}
    digest = hashlib.blake2b("\n".join(sorted(covers)).encode(), digest_size=8).hexdigest()
    month = window("month", now_ms)
    shown = [f"{row['provider']} {row['model']}" for row in rows[:_SHOWN]]
    more = f", and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
    facts = [
        (f"{int(row['unpriced_requests']):,} requests", name)
        for row, name in zip(rows, shown, strict=False)
    ]
    message = letter(
        TYPE,
        f"No price for {shown[0]}" if len(rows) == 1 else f"No price for {len(rows)} models",
        "Their tokens count, their cost is unknown and in no total. Set a rate with `tallyport "
        f"prices set`; it prices what comes from then on{more}.",
        facts,
        now_ms,
        {
            "models": [
                {
                    "provider": row["provider"],
                    "model": row["model"],
                    "unpriced_requests": int(row["unpriced_requests"]),
                }
                for row in rows
            ]
        },
    )
    draft_id = f"unpriced|{format_boundary(month.start_ms)[:7]}|{digest}"
    return Draft(draft_id, TYPE, covers, month.resets_at_ms + KEEP_DAYS * DAY_MS, message)

"""The weekly report as a notice: due by the schedule, or because somebody asked for it."""

import asyncio
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Final

from pipeline.core.policies import Policy
from pipeline.ledger.client import ledger_reader
from pipeline.notices.book import NoticeBook
from pipeline.notices.destinations import Destinations
from pipeline.notices.notice import DAY_MS, Draft, Message
from pipeline.reports.figures import SENT_AT, WEEK_DAYS, WeeklyFigures, due_week
from pipeline.reports.rendering import as_html, as_json, as_text, subject
from pipeline.reports.weekly import read_weekly
from pipeline.settings import Settings

KEEP_DAYS: Final = 60
TYPE: Final = "report.weekly"


class WeeklyMail:
    """Makes the report once for each week; ``names`` and ``policies`` are asked for then.

    While there are no ``policies`` (None) it waits: they are being read.
    """

    name = "weekly report"
    every_s = 1.0

    def __init__(
        self,
        settings: Settings,
        destinations: Destinations,
        names: Callable[[], Mapping[str, str]],
        policies: Callable[[], Mapping[str, Policy] | None],
    ) -> None:
        self._settings = settings
        self._destinations = destinations
        self._names = names
        self._policies = policies

    async def look(self, book: NoticeBook, now_ms: int) -> list[Draft]:
        """The reports that are due. Raises ``LedgerError`` or ``ConfigurationError``."""
        if not self._destinations.can_report:
            return []
        now = datetime.fromtimestamp(now_ms / 1000, UTC)
        weeks = set(book.requested)
        if book.begun_ms is not None and due_ms(due_week(now)) >= book.begun_ms:
            weeks.add(due_week(now))
        due = sorted(week for week in weeks if book.is_news(week_cover(week)))
        in_force = self._policies() if due else None
        if in_force is None:
            return []
        # Another thread makes the report, and meanwhile these tables go on.
        policies, names = [*in_force.values()], self._names()
        return [await asyncio.to_thread(self._draft, week, now, policies, names) for week in due]

    def _draft(
        self, week: date, now: datetime, policies: list[Policy], names: Mapping[str, str]
    ) -> Draft:
        with ledger_reader(self._settings) as client:
            figures = read_weekly(client, week, now, self._settings.currency, policies)
        covers = week_cover(week)
        return Draft(
            next(iter(covers)),
            TYPE,
            covers,
            due_ms(week) + KEEP_DAYS * DAY_MS,
            report_message(figures, names),
            self._destinations.mail,
        )


def report_message(figures: WeeklyFigures, names: Mapping[str, str]) -> Message:
    """The report as a mail says it."""
    return Message(
        subject(figures), as_text(figures, names), as_html(figures, names), as_json(figures, names)
    )


def week_cover(week: date) -> dict[str, int]:
    """What the report on a week covers."""
    return {f"report|{week.isoformat()}": 0}


def due_ms(week: date) -> int:
    """When the report on the week from Monday ``week`` on is due by the schedule."""
    at = datetime.combine(week + timedelta(days=WEEK_DAYS), SENT_AT, UTC)
    return int(at.timestamp()) * 1000

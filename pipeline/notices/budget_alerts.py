"""Alerts of budgets: every budget over a line is looked at until its lines have been told."""

from collections.abc import Callable, Mapping
from typing import Final

from pipeline.core.policies import Policy
from pipeline.notices.book import NoticeBook
from pipeline.notices.budget_lines import OverLines, budget_drafts, policy_of
from pipeline.notices.destinations import Destinations
from pipeline.notices.notice import Draft

MOST_AT_ONCE: Final = 50


class BudgetAlerts:
    """``policies`` gives those in force, None while they are not known; ``names`` display names
    by scope; ``now_ms`` the time by which periods end."""

    name = "budgets"
    every_s = 0.25

    def __init__(
        self,
        over: OverLines,
        destinations: Destinations,
        currency: str,
        *,
        policies: Callable[[], Mapping[str, Policy] | None],
        names: Callable[[], Mapping[str, str]],
        now_ms: Callable[[], int],
    ) -> None:
        self._over = over
        self._destinations = destinations
        self._currency = currency
        self._policies, self._names, self._now_ms = policies, names, now_ms

    async def look(self, book: NoticeBook, now_ms: int) -> list[Draft]:
        """What is due of those that have changed, and of those that could not be claimed yet."""
        policies = self._policies()
        if policies is None:
            return []
        period_now_ms, names = self._now_ms(), self._names()
        found: list[Draft] = []
        for key, record in self._over.unseen():
            if policy_of(record.state, policies) is None:
                continue  # it is on its way, or has just been deleted
            drafts = budget_drafts(record, policies, period_now_ms, self._currency, names)
            news = [
                draft
                for draft in drafts
                if book.is_news(draft.covers) and self._destinations.has_any(draft.to)
            ]
            found += news
            if not news:
                self._over.seen(key)
            elif len(found) >= MOST_AT_ONCE:
                break
        return found

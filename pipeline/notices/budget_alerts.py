"""Alerts of budgets: every budget over a line is looked at until its lines have been told."""

from collections.abc import Callable, Mapping
from typing import Final

from pipeline.core.policies import Policy
from pipeline.notices.book import NoticeBook
from pipeline.notices.budget_lines import OverLines, budget_draft, lines_to_tell, policy_of
from pipeline.notices.destinations import Destinations
from pipeline.notices.notice import Draft

MOST_AT_ONCE: Final = 50
MOST_LOOKED_AT: Final = 500
"""At a time, so that nobody who asks the API meanwhile waits for long."""


class BudgetAlerts:
    """``policies`` gives those in force, None while they or the states are not known; ``names``
    display names by scope; ``now_ms`` the time by which periods end."""

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
        period_now_ms, names = self._now_ms(), None
        found: list[Draft] = []
        for key, record in self._over.unseen(MOST_LOOKED_AT):
            policy = policy_of(record.state, policies)
            if policy is None:  # it is on its way, or has just been deleted
                self._over.postpone(key)
                continue
            lines = lines_to_tell(record.state, policy, period_now_ms, book.is_news)
            if not lines or not self._destinations.has_any(policy.notify):
                self._over.seen(key)
                continue
            names = self._names() if names is None else names
            found += [
                budget_draft(record, line, period_now_ms, self._currency, names, policy.notify)
                for line in lines
            ]
            if len(found) >= MOST_AT_ONCE:
                break
        return found

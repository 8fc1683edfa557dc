"""How budgets go on by the ledger: the days that make a budget's pace, and what is near its cap."""

import heapq
from collections.abc import Iterable
from datetime import UTC, date, datetime, time, timedelta

from clickhouse_connect.driver.client import Client

from pipeline.core.budgets import DISABLED, cap_share_ppm
from pipeline.core.forecast import BudgetOutlook, forecast
from pipeline.core.policies import Policy
from pipeline.core.scopes import is_wildcard, scope_id, scope_kind
from pipeline.core.windows import DAY_MS, ROLLING_DAYS
from pipeline.ledger.budget_actuals import SCOPE_FIELDS, budgets_against_actual
from pipeline.ledger.filters import UsageFilters
from pipeline.ledger.usage import usage_report

_EPOCH_DAY = date(1970, 1, 1)


def closest_to_caps(
    client: Client, policies: Iterable[Policy], now_ms: int, currency: str, most: int
) -> list[BudgetOutlook]:
    """The budgets that have used the largest share of their hard cap at ``now_ms``, that first.

    Only those that are on and have a hard cap; a wildcard stands for each id that it applies to.
    Days are asked for those that are returned, so ``most`` bounds the queries.
    """
    # What is off or has no cap matters only as an id's own: its wildcard does not apply to it.
    asked = [p for p in policies if not is_wildcard(p.scope) or _has_cap(p, now_ms)]
    states = (
        state
        for state in budgets_against_actual(client, asked, now_ms, currency)
        if state.hard_cap is not None and state.status != DISABLED
    )
    closest = heapq.nsmallest(most, states, lambda s: (-cap_share_ppm(s, now_ms), s.key))
    found: list[BudgetOutlook] = []
    for state in closest:
        daily = budget_days(client, state.scope, state.unit, now_ms, currency)
        coming = forecast(state.used, state.hard_cap, daily, state.period, now_ms)
        found.append(BudgetOutlook(state, coming))
    return found


def budget_days(
    client: Client,
    scope: str,
    unit: str,
    now_ms: int,
    currency: str,
    ports: tuple[str, ...] | None = None,
) -> dict[int, int]:
    """What counts for budgets of ``scope`` in ``unit`` by day (since 1970, UTC), over the last 30
    complete days and today; ``ports`` limits it to these."""
    today, kind = now_ms // DAY_MS, scope_kind(scope)
    of_scope = {} if kind == "all" else {SCOPE_FIELDS[kind]: scope_id(scope)}
    # What a cost budget of other kinds does not count is no part of its pace either.
    counted = "org" if unit == "cost" and kind != "user" else None
    filters = UsageFilters(
        **of_scope,
        ports=ports,
        billing_scope=counted,
        start=_midnight(today - ROLLING_DAYS),
        end=_midnight(today + 1),
    )
    daily: dict[int, int] = {}
    for row in usage_report(client, filters, ["day"]):
        day = (row["day"] - _EPOCH_DAY).days
        if unit == "tokens":
            daily[day] = daily.get(day, 0) + int(row["total_tokens"])
        elif row["currency"] == currency:
            daily[day] = int(row["cost_nano"] or 0)
    return daily


def _has_cap(policy: Policy, now_ms: int) -> bool:
    return policy.enabled and policy.hard_cap_at(now_ms) is not None


def _midnight(day: int) -> datetime:
    return datetime.combine(_EPOCH_DAY + timedelta(days=day), time(), UTC)

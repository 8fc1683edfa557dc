"""What must stand on ``budget.state``: the states that budgets and day cells lead to."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from pipeline.audit.recount.cells import ZERO, Totals
from pipeline.audit.recount.policies import Budget, Target
from pipeline.audit.recount.rows import plain

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TOKENS, _COST, _ORG_COST, _UNPRICED, _ORG_UNPRICED = range(1, 6)

ScopeDays = Mapping[str, Mapping[int, Totals]]
"""By scope and day: what all source partitions together know."""
MONEY_FIELDS = ("status", "used", "remaining", "unpriced_events")
"""The fields of a cost budget that depend on prices."""


def days_of(period: str, now_ms: int) -> range:
    """The days (since 1970) of the window that runs at ``now_ms``."""
    now = _EPOCH + timedelta(milliseconds=now_ms)
    today = datetime(now.year, now.month, now.day, tzinfo=UTC)
    if period == "day":
        start, end = today, today + timedelta(days=1)
    elif period == "week":
        start = today - timedelta(days=today.weekday())
        end = start + timedelta(days=7)
    elif period == "month":
        start = today.replace(day=1)
        end = (start + timedelta(days=40)).replace(day=1)
    else:
        start, end = today - timedelta(days=29), today + timedelta(days=1)
    return range((start - _EPOCH).days, (end - _EPOCH).days)


def expected_states(
    budgets: Mapping[str, Budget], scopes: ScopeDays, now_ms: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Record key and body of every state, ``version`` and ``as_of`` left out.

    ``scopes`` holds the ids that are of interest; a wildcard makes a state for each id of its
    kind in there that has an event in the running period and no policy of its own.
    """
    for budget in budgets.values():
        days = days_of(budget.period, now_ms)
        if budget.target.kind == "all" or budget.target.ident is not None:
            inside = _inside(scopes.get(budget.target.text, {}), days)
            yield budget.key, _state(budget, budget.target, inside, days, now_ms)
            continue
        yield budget.key, _state(budget, budget.target, [], days, now_ms)
        prefix = f"{budget.target.kind}:"
        for scope, by_day in scopes.items():
            if not scope.startswith(prefix):
                continue
            inside = _inside(by_day, days)
            target = Target(budget.target.kind, scope[len(prefix) :])
            own = f"{target.encoded}|{budget.unit}|{budget.period}"
            if inside and own not in budgets:
                yield own, _state(budget, target, inside, days, now_ms)


def _inside(by_day: Mapping[int, Totals], days: range) -> list[Totals]:
    return [totals for day, totals in by_day.items() if day in days]


def _state(
    budget: Budget, target: Target, inside: list[Totals], days: range, now_ms: int
) -> dict[str, Any]:
    sums = [sum(column) for column in zip(ZERO, *inside, strict=True)]
    if budget.unit == "tokens":
        used, unpriced = sums[_TOKENS], sums[_UNPRICED]
    elif target.kind == "user":
        used, unpriced = sums[_COST], sums[_UNPRICED]
    else:
        used, unpriced = sums[_ORG_COST], sums[_ORG_UNPRICED]
    hard_cap = budget.hard_cap_at(now_ms)
    remaining = None if hard_cap is None else hard_cap - used
    return {
        "scope": target.text,
        "unit": budget.unit,
        "period": budget.period,
        "period_start": _midnight(days.start),
        "resets_at": _midnight(days.stop),
        "status": budget.status(used, now_ms),
        "used": _shown(used, budget.unit),
        "remaining": _shown(remaining, budget.unit),
        "soft_cap": _shown(budget.soft_cap, budget.unit),
        "hard_cap": _shown(hard_cap, budget.unit),
        "unpriced_events": unpriced,
        "on_stale": budget.on_stale,
    }


def _shown(amount: int | None, unit: str) -> int | str | None:
    return amount if amount is None or unit == "tokens" else plain(Decimal(amount).scaleb(-9))


def _midnight(day: int) -> str:
    return (_EPOCH + timedelta(days=day)).strftime("%Y-%m-%dT%H:%M:%SZ")

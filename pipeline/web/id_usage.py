"""``/v1/usage/{ports,users,groups,organizations}``: lists of ids, and the budget of one of them."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import date, datetime, timedelta
from typing import Any, NamedTuple

from clickhouse_connect.driver.client import Client
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pipeline.core.budgets import DISABLED, State, state_fields, state_of, status_of
from pipeline.core.forecast import forecast, forecast_fields
from pipeline.core.money import format_nano
from pipeline.core.policies import Policy, policy_fields, unset_policy
from pipeline.core.scopes import (
    ALL,
    PERIODS,
    UNITS,
    format_scope,
    is_wildcard,
    parse_scope,
    record_key,
    wildcard_of,
)
from pipeline.core.windows import Window, format_boundary, format_ms, window
from pipeline.ledger.budget_actuals import budgets_against_actual
from pipeline.ledger.budget_outlook import budget_days
from pipeline.ledger.filters import UsageFilters
from pipeline.ledger.usage import as_of, usage_report
from pipeline.web.gate import READERS, Caller, Gate
from pipeline.web.id_directory import IdDirectory, listed_fields
from pipeline.web.id_kinds import ID_KINDS
from pipeline.web.json_bodies import json_answer
from pipeline.web.ledger_reads import LedgerReads
from pipeline.web.name_feed import NameFeed
from pipeline.web.policy_feed import PolicyFeed
from pipeline.web.problems import Problem
from pipeline.web.query import choice, known, whole_number
from pipeline.web.state_feed import StateFeed
from pipeline.web.usage_rows import Row, midnight, of_currency, plain, ports_of, rfc3339

MAX_LISTED = 1_000
DEFAULT_LISTED = 50
MAX_FEATURES = 10_000
ORDERS = ("cost", "cap", "id")
NO_POLICY = "no-policy"
_EPOCH_DAY = date(1970, 1, 1)


class _Budget(NamedTuple):
    """The budget that a page is about; ``policy`` None where nothing is set for it."""

    scope: str
    unit: str
    period: str
    policy: Policy | None
    source: str
    """``own``, ``wildcard`` or ``none``."""


class _Read(NamedTuple):
    """What the ledger says about one id."""

    as_of: datetime | None
    actual: State
    features: list[Row]
    daily: dict[int, int]


class IdUsageEndpoints:
    """The routes of lists of ids, and of what one port, group or organisation used."""

    def __init__(
        self,
        ledger: LedgerReads,
        names: NameFeed,
        policies: PolicyFeed,
        states: StateFeed,
        currency: str,
    ) -> None:
        self._ledger = ledger
        self._names = names
        self._policies = policies
        self._states = states
        self._currency = currency
        self._directory = IdDirectory(ledger, names, policies, states, currency)

    def routes(self, gate: Gate) -> list[Route]:
        lists = [
            gate.route(f"/v1/usage/{named.path}", self._list_of(kind), READERS)
            for kind, named in ID_KINDS.items()
        ]
        cards = [
            gate.route(f"/v1/usage/{ID_KINDS[kind].path}/{{id:path}}", self._one_of(kind), READERS)
            for kind in ("port", "group", "org")
        ]
        return [*lists, *cards, gate.route("/v1/usage/all", self._all, READERS)]

    def _list_of(self, kind: str) -> Callable[[Request, Caller], Any]:
        async def listing(request: Request, caller: Caller) -> Response:
            return await self._list(kind, request, caller)

        return listing

    def _one_of(self, kind: str) -> Callable[[Request, Caller], Any]:
        async def card(request: Request, caller: Caller) -> Response:
            scope = parse_scope(f"{kind}:{request.path_params['id']}")
            return await self._card(scope, kind, request, caller)

        return card

    async def _all(self, request: Request, caller: Caller) -> Response:
        return await self._card(ALL, ALL, request, caller)

    async def _list(self, kind: str, request: Request, caller: Caller) -> Response:
        known(request, ("search", "order", "limit", "cursor"))
        order = choice(request, "order", ORDERS) or "cost"
        limit = whole_number(request, "limit", 1, MAX_LISTED, DEFAULT_LISTED)
        offset = whole_number(request, "cursor", 0, 10**9, 0)
        search = request.query_params.get("search", "").strip()
        found, ids = await self._directory.listed(kind, caller, search, order)
        page = found[offset : offset + limit]
        scopes = (f"{kind}:{one.usage.id}" for one in page)
        return json_answer(
            {
                "as_of": rfc3339(ids.as_of),
                "total": len(found),
                "complete": not ids.is_cut,
                ID_KINDS[kind].path: [listed_fields(one, kind, self._currency) for one in page],
                "names": self._names.shown(scopes, caller),
                "next": str(offset + limit) if len(found) > offset + limit else None,
            }
        )

    async def _card(self, scope: str, kind: str, request: Request, caller: Caller) -> Response:
        known(request, ("unit", "period"))
        unit, period = choice(request, "unit", UNITS), choice(request, "period", PERIODS)
        if not caller.may_see(scope):
            raise Problem(403, "this key is for other ports")
        budget = self._budget(scope, unit, period)
        now_ms = self._states.now_ms()
        span = window(budget.period, now_ms)
        filters = _filters(scope, kind, caller)
        found = await self._read(budget, filters, span, now_ms)
        state, state_as_of_ms = self._state(budget, found.actual, now_ms)
        own = {} if scope == ALL else {ID_KINDS[kind].field: format_scope(scope).partition(":")[2]}
        names = self._names.shown([format_scope(scope)], caller)
        return json_answer(
            {
                "as_of": rfc3339(found.as_of),
                "scope": format_scope(scope),
                **own,
                "name": names.get(format_scope(scope)),
                "currency": self._currency,
                **_standing(budget, state, span, now_ms),
                "used_as_of": format_ms(state_as_of_ms) if state_as_of_ms else rfc3339(found.as_of),
                "totals": of_currency(found.features, self._currency),
                "features": [_feature(row) for row in map(plain, found.features)],
                "forecast": _outlook(budget, state, found.daily, now_ms),
                "budgets": self._others(scope, now_ms),
                "names": names,
            }
        )

    async def _read(
        self, budget: _Budget, filters: UsageFilters, span: Window, now_ms: int
    ) -> _Read:
        currency, ask = self._currency, self._ledger.ask
        taken = await ask(as_of)
        start, end = midnight(_day(span.start_day)), midnight(_day(span.end_day))
        spanned = replace(filters, start=start, end=end)
        return _Read(
            taken,
            *await asyncio.gather(
                ask(lambda client: _actual(client, budget, now_ms, currency)),
                ask(lambda client: usage_report(client, spanned, ["feature"], MAX_FEATURES)),
                ask(
                    lambda client: budget_days(
                        client, budget.scope, budget.unit, now_ms, currency, filters.ports
                    )
                ),
            ),
        )

    def _budget(self, scope: str, unit: str | None, period: str | None) -> _Budget:
        """The budget asked for; where that is left open, the first one that is set."""
        table = self._policies.current()
        units = UNITS if unit is None else (unit,)
        periods = ("month", *PERIODS) if period is None else (period,)
        for source, one in (("own", scope), ("wildcard", wildcard_of(scope))):
            for wanted_unit in units:
                for wanted in periods:
                    key = record_key(one, wanted_unit, wanted) if one else ""
                    policy = table.policies.get(key)
                    if policy is not None:
                        return _Budget(scope, wanted_unit, wanted, policy, source)
        unset = unset_policy(scope, units[0], periods[0])
        return _Budget(scope, units[0], periods[0], unset, "none")

    def _state(self, budget: _Budget, actual: State, now_ms: int) -> tuple[State, int]:
        """The live state where there is one of the id's own, else what the ledger counts."""
        for entry in self._states.mirror.entries(budget.scope, now_ms):
            state = entry.record.state
            own = state.scope == budget.scope and now_ms < state.resets_at_ms
            if own and (state.unit, state.period) == (budget.unit, budget.period):
                mirror = self._states.mirror
                return state, mirror.as_of_ms(entry.partition) or entry.record.as_of_ms
        return actual, 0

    def _others(self, scope: str, now_ms: int) -> list[dict[str, Any]]:
        """Every budget that applies to the id, with its state."""
        return [state_fields(*entry.record) for entry in self._states.mirror.entries(scope, now_ms)]


def _filters(scope: str, kind: str, caller: Caller) -> UsageFilters:
    if scope == ALL:
        return UsageFilters(ports=ports_of(caller))
    plain_id = format_scope(scope).partition(":")[2]
    own: dict[str, Any] = {ID_KINDS[kind].field: plain_id}
    return UsageFilters(**own, ports=ports_of(caller))


def _actual(client: Client, budget: _Budget, now_ms: int, currency: str) -> State:
    """What the ledger counts for the budget, with or without a policy; nothing for a wildcard,
    which each id uses up for itself."""
    policy = budget.policy or Policy(budget.scope, budget.unit, budget.period)
    if is_wildcard(budget.scope):
        return state_of(policy, budget.scope, window(budget.period, now_ms), 0, 0, now_ms)
    own = Policy(budget.scope, budget.unit, budget.period, policy.enabled, None, policy.hard_cap)
    return budgets_against_actual(client, [own], now_ms, currency)[0]


def _standing(budget: _Budget, state: State, span: Window, now_ms: int) -> dict[str, Any]:
    """Caps and use of the budget."""
    policy = budget.policy
    cost = budget.unit == "cost"
    soft_line = policy.soft_line_at(now_ms) if policy is not None else None
    hard_cap = policy.hard_cap_at(now_ms) if policy is not None else None

    def amount(value: int | None) -> int | str | None:
        return value if value is None or not cost else format_nano(value)

    status = NO_POLICY
    if policy is not None:
        status = DISABLED if budget.source == "none" else status_of(policy, state.used, now_ms)
    return {
        "unit": budget.unit,
        "period": budget.period,
        "period_start": format_boundary(span.start_ms),
        "resets_at": format_boundary(span.resets_at_ms),
        "enabled": policy is not None and policy.enabled,
        "status": status,
        "used": amount(state.used),
        "remaining": None if hard_cap is None else amount(hard_cap - state.used),
        "soft_cap": amount(policy.soft_cap) if policy is not None else None,
        "soft_line": amount(soft_line),
        "hard_cap": amount(hard_cap),
        "unpriced_events": state.unpriced_events,
        "policy": policy_fields(policy) if policy is not None else None,
        "policy_source": budget.source,
    }


def _feature(row: Row) -> Row:
    return {
        "feature": row["feature"],
        "calls": row["requests"],
        "tokens": row["total_tokens"],
        "input_tokens": row["input_tokens"],
        "output_tokens": row["output_tokens"],
        "cost": row["cost"],
        "cost_nano": row["cost_nano"],
        "currency": row["currency"],
        "unpriced_calls": row["unpriced_requests"],
    }


def _outlook(budget: _Budget, state: State, daily: dict[int, int], now_ms: int) -> dict[str, Any]:
    """The forecast as on the wire."""
    policy = budget.policy
    is_on = policy is not None and policy.enabled and budget.source != "none"
    hard_cap = policy.hard_cap_at(now_ms) if policy is not None and is_on else None
    found = forecast(state.used, hard_cap, daily, budget.period, now_ms)
    return forecast_fields(found, budget.unit)


def _day(day: int) -> date:
    return _EPOCH_DAY + timedelta(days=day)

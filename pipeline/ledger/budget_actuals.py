"""Budgets against what the ledger says was used: the same rules as the states, another source."""

from collections import defaultdict
from collections.abc import Iterable
from datetime import date, timedelta
from typing import Any, NamedTuple

from clickhouse_connect.driver.client import Client

from pipeline.core.budgets import State, state_of
from pipeline.core.policies import Policy
from pipeline.core.scopes import event_scopes, is_wildcard, scope_id, scope_kind
from pipeline.core.windows import Window, window
from pipeline.ledger.filters import rows
from pipeline.ledger.queries import named_query

MAX_SCOPES = 1_000_000
MAX_NAMED = 1_000
"""Of a kind with more ids than this everyone is asked for: values travel in the URL."""
_EPOCH_DAY = date(1970, 1, 1)
_COLUMNS = {
    "all": "'*'",
    "org": "u.organization_id",
    "port": "u.port_id",
    "group": "u.group_id",
    "user": "u.user_id",
}
SCOPE_FIELDS = {
    "org": "organization_id", "port": "port_id", "group": "group_id", "user": "user_id",
}  # fmt: skip
"""By kind of scope: the field of an event that holds its id."""


class _Used(NamedTuple):
    """What one scope used: by unit, the amount and how many of its events have no price."""

    tokens: tuple[int, int]
    cost: tuple[int, int]


_NOTHING = _Used((0, 0), (0, 0))


def budgets_against_actual(
    client: Client, policies: Iterable[Policy], now_ms: int, currency: str
) -> list[State]:
    """What each policy's state should be by the ledger at ``now_ms``, in the order of policies.

    A wildcard gives a state for every id that used something in its period and has no policy of
    its own for the same unit and period. Cost of users counts everything, that of other scopes
    only what the organisation pays for; tokens always count.
    """
    given = list(policies)
    own = {(policy.scope, policy.unit, policy.period) for policy in given}
    spans = {policy.period: window(policy.period, now_ms) for policy in given}
    used = _used_by_scope(client, given, spans, currency)
    states: list[State] = []
    for policy in given:
        kind, span = scope_kind(policy.scope), spans[policy.period]
        found = used[kind, policy.period]
        scopes = [policy.scope]
        if is_wildcard(policy.scope):
            scopes = [_scope(kind, scope_id) for scope_id in sorted(found)]
            scopes = [s for s in scopes if (s, policy.unit, policy.period) not in own]
        for scope in scopes:
            found_here = found.get(scope_id(scope) or "*", _NOTHING)
            amount, unpriced = getattr(found_here, policy.unit)
            states.append(state_of(policy, scope, span, amount, unpriced, now_ms))
    return states


def _used_by_scope(
    client: Client, policies: Iterable[Policy], spans: dict[str, Window], currency: str
) -> dict[tuple[str, str], dict[str, _Used]]:
    """By kind and period: what each id that a policy asks about used."""
    wanted: dict[tuple[str, str], set[str] | None] = {}
    for policy in policies:
        key = (scope_kind(policy.scope), policy.period)
        ids = wanted.setdefault(key, set())
        if is_wildcard(policy.scope):
            wanted[key] = None
        elif ids is not None:
            ids.add(scope_id(policy.scope))
    found: dict[tuple[str, str], dict[str, _Used]] = defaultdict(dict)
    for (kind, period), ids in wanted.items():
        span = spans[period]
        found[kind, period] = _scope_usage(client, kind, ids, span, currency)
    return found


def _scope_usage(
    client: Client, kind: str, ids: set[str] | None, span: Window, currency: str
) -> dict[str, _Used]:
    limited = ids is not None and kind != "all" and len(ids) <= MAX_NAMED
    sql = named_query(
        "scope_usage",
        scope=_COLUMNS[kind],
        source="usage_daily_users",
        wanted="id IN {ids:Array(String)}" if limited else "1",
    )
    parameters: dict[str, Any] = {
        "first_day": _EPOCH_DAY + timedelta(days=span.start_day),
        "end_day": _EPOCH_DAY + timedelta(days=span.end_day),
        "currency": currency,
        "limit": MAX_SCOPES,
    }
    if limited:
        parameters["ids"] = sorted(ids or ())
    org_only = "" if kind == "user" else "org_"
    return {
        row["id"]: _Used(
            (int(row["tokens"]), int(row["unpriced_requests"])),
            (int(row[f"{org_only}cost_nano"]), int(row[f"{org_only}unpriced_requests"])),
        )
        for row in rows(client, sql, parameters)
    }


def _scope(kind: str, plain_id: str) -> str:
    """The internal scope of an id, also of one that is literally ``*``."""
    return event_scopes(**{"port_id": "", SCOPE_FIELDS[kind]: plain_id})[-1]

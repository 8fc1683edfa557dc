"""``/v1/usage``, its summary, and the models without a price: the ledger's sums over HTTP."""

import asyncio
import re
import time
from collections.abc import Iterable
from datetime import UTC, date, datetime
from typing import Any, NamedTuple
from urllib.parse import urlencode

from clickhouse_connect.driver.client import Client
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pipeline.core.errors import InvalidField
from pipeline.core.event_fields import BILLING_SCOPES
from pipeline.core.policies import Policy, policy_fields
from pipeline.core.scopes import ALL, format_scope, parse_scope, record_key, wildcard_of
from pipeline.ledger.filters import UsageFilters, dimension
from pipeline.ledger.trends import daily_series
from pipeline.ledger.usage import USAGE_COLUMNS, as_of, top, unpriced_models, usage_report
from pipeline.web.gate import READERS, Caller, Gate
from pipeline.web.json_bodies import json_answer
from pipeline.web.ledger_reads import LedgerReads
from pipeline.web.name_feed import NameFeed
from pipeline.web.policy_feed import PolicyFeed
from pipeline.web.query import choice, known, whole_number
from pipeline.web.usage_rows import (
    FILTERS,
    SPAN,
    Row,
    filters_of,
    last_days,
    midnight,
    of_currency,
    plain,
    ports_of,
    rfc3339,
    sum_rows,
    to_csv,
)

MAX_ROWS = 10_000
DEFAULT_ROWS = 1_000
MAX_DIMENSIONS = 8
MAX_MODELS = 1_000
SERIES_DAYS = 30
TOP = 10
_CURSOR = re.compile(r"[0-9]{1,9}")
_NAMED = {"port": "port", "user": "user", "group": "group", "organization": "org"}
"""The dimensions whose values are ids, and the kind of scope they are."""
_SERIES = (
    "date", "requests", "total_tokens", "cost", "cost_nano", "org_cost", "org_requests",
    "user_cost", "user_requests", "unpriced_requests",
)  # fmt: skip


class _Summed(NamedTuple):
    """The rows of one summary."""

    month: list[Row]
    """By day and kind."""
    daily: list[Row]
    users: list[Row]
    models: list[Row]


class UsageEndpoints:
    """The routes of sums; those of one id are beside them (``id_usage``, ``user_usage``)."""

    def __init__(
        self, ledger: LedgerReads, names: NameFeed, policies: PolicyFeed, currency: str
    ) -> None:
        self._ledger = ledger
        self._names = names
        self._policies = policies
        self._currency = currency

    def routes(self, gate: Gate) -> list[Route]:
        return [
            gate.route("/v1/usage", self._usage, READERS),
            gate.route("/v1/usage/summary", self._summary, READERS),
            gate.route("/v1/usage/unpriced", self._unpriced, READERS),
        ]

    async def _usage(self, request: Request, caller: Caller) -> Response:
        known(request, (*FILTERS, *SPAN, "group_by", "limit", "cursor"))
        filters = filters_of(request, caller)
        asked = _group_by(request)
        limit = whole_number(request, "limit", 1, MAX_ROWS, DEFAULT_ROWS)
        offset = _offset(request)

        def question(client: Client) -> tuple[datetime | None, list[Row]]:
            taken = as_of(client)
            return taken, usage_report(client, filters, [*asked.values()], limit + 1, offset)

        taken, found = await self._ledger.ask(question)
        following = str(offset + limit) if len(found) > limit else None
        rows = [
            {name: row[one] for name, one in asked.items()}
            | {name: row[name] for name in USAGE_COLUMNS}
            for row in map(plain, found[:limit])
        ]
        if _wants_csv(request):
            return _csv(request, [*asked, *USAGE_COLUMNS], rows, following, rfc3339(taken))
        scopes = _scopes(rows, asked)
        return json_answer(
            {
                "as_of": rfc3339(taken),
                "from": rfc3339(filters.start),
                "to": rfc3339(filters.end),
                "group_by": [*asked],
                "rows": rows,
                "names": self._names.shown(scopes, caller),
                "next": following,
            },
            headers={"Vary": "Accept"},
        )

    async def _summary(self, request: Request, caller: Caller) -> Response:
        known(request, ("billing_scope", "organization_id"))
        billing_scope = choice(request, "billing_scope", BILLING_SCOPES)
        organization_id = request.query_params.get("organization_id") or None
        scope = parse_scope(f"org:{organization_id}") if organization_id else ALL
        filters = UsageFilters(
            organization_id=organization_id, billing_scope=billing_scope, ports=ports_of(caller)
        )
        today = datetime.now(UTC).date()
        currency = self._currency
        taken = await self._ledger.ask(as_of)
        found = await self._sums(filters, today)
        users = [{**plain(row), "user_id": row["user"]} for row in found.users]
        for row in users:
            del row["user"]
        return json_answer(
            {
                "as_of": rfc3339(taken),
                "currency": currency,
                "billing_scope": billing_scope,
                "organization_id": organization_id,
                "today": {
                    "date": today.isoformat(),
                    **of_currency((row for row in found.month if row["day"] == today), currency),
                },
                "month": {
                    "month": today.isoformat()[:7],
                    **of_currency(found.month, currency),
                },
                "daily": [
                    {name: row[name] for name in _SERIES}
                    for row in map(plain, found.daily)
                    if row["currency"] == currency
                ],
                "top_users": users,
                "top_models": [plain(row) for row in found.models],
                "by_kind": _by_kind(found.month),
                "org_policy": self._policy(scope, caller),
                "names": self._names.shown((f"user:{row['user_id']}" for row in users), caller),
            }
        )

    async def _sums(self, filters: UsageFilters, today: date) -> _Summed:
        first_day, end_day = last_days(today, SERIES_DAYS)
        month = _between(filters, today.replace(day=1), end_day)
        both = _between(filters, None, None)
        currency, ask = self._currency, self._ledger.ask
        return _Summed(
            *await asyncio.gather(
                ask(lambda client: usage_report(client, month, ["day", "kind"])),
                ask(lambda client: daily_series(client, both, first_day, end_day, currency)),
                ask(lambda client: top(client, "user", month, TOP)),
                ask(lambda client: usage_report(client, month, ["provider", "model"], TOP)),
            )
        )

    async def _unpriced(self, request: Request, caller: Caller) -> Response:
        known(request, (*FILTERS, *SPAN, "limit"))
        filters = filters_of(request, caller)
        limit = whole_number(request, "limit", 1, MAX_MODELS, 100)

        def question(client: Client) -> tuple[datetime | None, list[Row]]:
            taken = as_of(client)
            return taken, unpriced_models(client, filters, limit)

        taken, found = await self._ledger.ask(question)
        return json_answer({"as_of": rfc3339(taken), "models": [plain(row) for row in found]})

    def _policy(self, scope: str, caller: Caller) -> dict[str, Any] | None:
        """The limits of the organisation (or of everything); None where they may not be seen."""
        table = self._policies.table
        if table is None or not caller.may_see(scope):
            return None
        now_ms = int(time.time() * 1000)

        def limit(period: str) -> dict[str, Any] | None:
            for unit in ("cost", "tokens"):
                for one in (scope, wildcard_of(scope)):
                    policy = table.policies.get(record_key(one, unit, period)) if one else None
                    if policy is not None:
                        return _limit(policy, now_ms)
            return None

        own = [policy for policy in table.policies.values() if policy.scope == scope]
        return {
            "scope": format_scope(scope),
            "daily": limit("day"),
            "monthly": limit("month"),
            "policies": [policy_fields(policy) for policy in own],
        }


def _limit(policy: Policy, now_ms: int) -> dict[str, Any]:
    """A policy with its hard cap at this moment."""
    now = policy_fields(policy)
    if policy.extra is not None and now_ms < policy.extra.until_ms:
        raised = policy.hard_cap_at(now_ms)
        return {**now, "limit": policy_fields(_capped(policy, raised))["hard_cap"]}
    return {**now, "limit": now["hard_cap"]}


def _capped(policy: Policy, hard_cap: int | None) -> Policy:
    return Policy(policy.scope, policy.unit, policy.period, hard_cap=hard_cap)


def _by_kind(rows: list[Row]) -> list[Row]:
    """The month by kind, the dearest first."""
    kinds = sorted({row["kind"] for row in rows})
    found = [
        {"kind": kind, **one}
        for kind in kinds
        for one in sum_rows(row for row in rows if row["kind"] == kind).values()
    ]
    return sorted(found, key=lambda row: -(row["cost_nano"] or 0))


def _between(filters: UsageFilters, first: date | None, end: date | None) -> UsageFilters:
    return UsageFilters(
        organization_id=filters.organization_id,
        # The series shows both scopes apart, whichever of them the rest is about.
        billing_scope=filters.billing_scope if first is not None else None,
        ports=filters.ports,
        start=None if first is None else midnight(first),
        end=None if end is None else midnight(end),
    )


def _group_by(request: Request) -> dict[str, str]:
    """The dimensions asked for by the names they were asked for by."""
    texts = request.query_params.getlist("group_by")
    names = [name.strip() for text in texts for name in text.split(",") if name.strip()]
    if len(names) > MAX_DIMENSIONS:
        raise InvalidField("group_by", f"may name at most {MAX_DIMENSIONS} dimensions")
    try:
        return {name: dimension(name) for name in names}
    except InvalidField as error:
        raise InvalidField("group_by", error.rule) from None


def _offset(request: Request) -> int:
    text = request.query_params.get("cursor", "0")
    if _CURSOR.fullmatch(text) is None:
        raise InvalidField("cursor", "must be one that an earlier answer gave as next")
    return int(text)


def _scopes(rows: Iterable[Row], asked: dict[str, str]) -> set[str]:
    """The scopes that the rows are about."""
    kinds = {name: _NAMED[one] for name, one in asked.items() if one in _NAMED}
    return {f"{kind}:{row[name]}" for row in rows for name, kind in kinds.items() if row[name]}


def _wants_csv(request: Request) -> bool:
    accepted = request.headers.get("accept", "")
    return any(part.partition(";")[0].strip() == "text/csv" for part in accepted.split(","))


def _csv(
    request: Request,
    columns: list[str],
    rows: list[Row],
    following: str | None,
    taken: str | None,
) -> Response:
    headers = {"Vary": "Accept"}
    if taken is not None:
        headers["X-As-Of"] = taken
    if following is not None:
        query = [(name, text) for name, text in request.query_params.multi_items()]
        query = [(name, text) for name, text in query if name != "cursor"]
        link = f"/v1/usage?{urlencode([*query, ('cursor', following)])}"
        headers["Link"] = f'<{link}>; rel="next"'
    return Response(to_csv(columns, rows), headers=headers, media_type="text/csv")

"""Which ids of a kind there are, what each used this month, and how close it is to its caps.

An id is known by its usage, by a policy of its own, or by its name. The usage of a kind is read
once for all who look within seconds, so a list of ten thousand ports can be paged and searched.
"""

import asyncio
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, NamedTuple

from clickhouse_connect.driver.client import Client

from pipeline.core.budgets import StateRecord, cap_share_ppm, state_fields
from pipeline.core.money import format_nano
from pipeline.core.scopes import format_scope, is_wildcard, scope_kind
from pipeline.ledger.filters import UsageFilters
from pipeline.ledger.usage import as_of, usage_report
from pipeline.web.gate import Caller
from pipeline.web.id_kinds import ID_KINDS
from pipeline.web.ledger_reads import LedgerReads
from pipeline.web.name_feed import NameFeed
from pipeline.web.policy_feed import PolicyFeed
from pipeline.web.state_feed import StateFeed
from pipeline.web.usage_rows import midnight, ports_of

MAX_IDS = 50_000
"""Of more ids than this only the dearest are listed; each of them can still be asked for."""
KEPT_S = 3.0
MAX_KEPT = 16


class IdUsage(NamedTuple):
    """What one id used this month; ``cost_nano`` None where nothing of it has a price."""

    id: str
    requests: int
    total_tokens: int
    cost_nano: int | None
    unpriced_requests: int


class Known(NamedTuple):
    """All ids of a kind with usage, the dearest first."""

    as_of: datetime | None
    ids: list[IdUsage]
    is_cut: bool


class Listed(NamedTuple):
    """One line of a list: an id, and of its budgets the one closest to its hard cap."""

    usage: IdUsage
    tightest: StateRecord | None
    share_ppm: int
    """Used of the hard cap in millionths; -1 without one."""


_Key = tuple[str, tuple[str, ...] | None]


class IdDirectory:
    """Lists ids. Owns what it read for a few seconds; everything else belongs to the feeds."""

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
        self._kept: dict[_Key, tuple[float, Known]] = {}
        self._turns: dict[_Key, asyncio.Lock] = {}

    async def listed(
        self, kind: str, caller: Caller, search: str, order: str
    ) -> tuple[list[Listed], Known]:
        """Every id of ``kind`` that matches ``search``, in order: ``cost``, ``cap`` or ``id``."""
        known = await self._known(kind, caller)
        usage = {one.id: one for one in known.ids}
        for plain_id in self._configured(kind, caller):
            usage.setdefault(plain_id, IdUsage(plain_id, 0, 0, 0, 0))
        if search:
            named = self._names.found(kind, search, caller)
            wanted = search.casefold()
            usage = {
                plain_id: one
                for plain_id, one in usage.items()
                if plain_id in named or wanted in plain_id.casefold()
            }
        tightest = self._tightest(kind, caller)
        found = [
            Listed(one, *tightest.get(plain_id, (None, -1))) for plain_id, one in usage.items()
        ]
        if order == "id":
            found.sort(key=lambda one: one.usage.id)
        elif order == "cap":
            found.sort(key=lambda one: (-one.share_ppm, one.usage.id))
        else:
            found.sort(key=lambda one: (-(one.usage.cost_nano or 0), one.usage.id))
        return found, known

    async def _known(self, kind: str, caller: Caller) -> Known:
        key = (kind, ports_of(caller))
        async with self._turns.setdefault(key, asyncio.Lock()):
            at_s, known = self._kept.get(key, (float("-inf"), None))
            if known is None or time.monotonic() - at_s > KEPT_S:
                filters = UsageFilters(
                    ports=key[1], start=midnight(datetime.now(UTC).date().replace(day=1))
                )
                known = await self._ledger.ask(
                    lambda client: _read(client, kind, filters, self._currency)
                )
                self._kept[key] = (time.monotonic(), known)
                while len(self._kept) > MAX_KEPT:
                    oldest = min(self._kept, key=lambda one: self._kept[one][0])
                    del self._kept[oldest]
                    self._turns.pop(oldest, None)
            return known

    def _configured(self, kind: str, caller: Caller) -> set[str]:
        """The ids with a policy of their own or a name."""
        policies = self._policies.table.policies.values() if self._policies.table else ()
        names = self._names.table.names if self._names.table else {}
        scopes: Iterable[str] = (
            *(policy.scope for policy in policies if not is_wildcard(policy.scope)),
            *names,
        )
        prefix = f"{kind}:"
        return {
            scope.removeprefix(prefix)
            for scope in scopes
            if scope.startswith(prefix) and caller.may_see_id(scope)
        }

    def _tightest(self, kind: str, caller: Caller) -> dict[str, tuple[StateRecord, int]]:
        """By id: the state that is closest to its hard cap."""
        now_ms = self._states.now_ms()
        closest: dict[str, tuple[StateRecord, int]] = {}
        for entry in self._states.mirror.everything():
            state = entry.record.state
            if scope_kind(state.scope) != kind or is_wildcard(state.scope):
                continue
            if not caller.may_see(state.scope):
                continue
            share_ppm = cap_share_ppm(state, now_ms)
            shown = format_scope(state.scope).partition(":")[2]
            known = closest.get(shown)
            if known is None or share_ppm > known[1]:
                closest[shown] = (entry.record, share_ppm)
        return closest


def listed_fields(one: Listed, kind: str, currency: str) -> dict[str, Any]:
    """A line as on the wire."""
    usage = one.usage
    return {
        ID_KINDS[kind].field: usage.id,
        "requests": usage.requests,
        "total_tokens": usage.total_tokens,
        "cost": None if usage.cost_nano is None else format_nano(usage.cost_nano),
        "cost_nano": usage.cost_nano,
        "currency": currency,
        "unpriced_requests": usage.unpriced_requests,
        "tightest": None if one.tightest is None else state_fields(*one.tightest),
        "cap_used_pct": None if one.share_ppm < 0 else one.share_ppm // 10_000,
    }


def _read(client: Client, kind: str, filters: UsageFilters, currency: str) -> Known:
    taken = as_of(client)
    name = ID_KINDS[kind].dimension
    rows = usage_report(client, filters, [name], MAX_IDS + 1)
    found: dict[str, IdUsage] = {}
    for row in rows[:MAX_IDS]:
        one = found.get(row[name]) or IdUsage(row[name], 0, 0, None, 0)
        is_ours = row["currency"] == currency
        found[row[name]] = IdUsage(
            one.id,
            one.requests + int(row["requests"]),
            one.total_tokens + int(row["total_tokens"]),
            row["cost_nano"] if is_ours else one.cost_nano,
            one.unpriced_requests + int(row["unpriced_requests"]),
        )
    found.pop("", None)
    return Known(taken, [*found.values()], len(rows) > MAX_IDS)

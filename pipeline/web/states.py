"""``GET /v1/state``, its stream, and ``POST /v1/check``: what budgets stand at, and whether a
call may go ahead."""

import time
from bisect import bisect_right
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from operator import itemgetter
from typing import Annotated, Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pipeline.core.decision import (
    INITIALIZING,
    LIVE,
    Verdict,
    decide,
    decide_all,
    estimate_cost_nano,
    verdict_fields,
)
from pipeline.core.decision import Request as Call
from pipeline.core.errors import InvalidField
from pipeline.core.explain import dearest_token_nano
from pipeline.core.money import parse_nano
from pipeline.core.prices import PriceVersion
from pipeline.core.scopes import PERIODS, UNITS, parse_scope, record_key
from pipeline.core.windows import format_ms
from pipeline.web.gate import ASKERS, Caller, Gate
from pipeline.web.json_bodies import json_answer, read_json
from pipeline.web.problems import Problem, unavailable
from pipeline.web.query import choice, whole_number
from pipeline.web.rate_feed import RateFeed
from pipeline.web.state_feed import StateFeed, heartbeat_fields
from pipeline.web.state_ring import StateRing, change_fields, key_of
from pipeline.web.state_stream import Streams
from producers.mirror import Entry

MAX_STATES = 10_000
MAX_SCOPES = 100
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_Id = Annotated[str, msgspec.Meta(max_length=256)] | None
_Tokens = Annotated[int, msgspec.Meta(ge=0, le=10**12)]


class CheckBody(msgspec.Struct, forbid_unknown_fields=True):
    """A call that asks to go ahead. A misspelt estimate would be lost without a word, so unknown
    fields are refused."""

    port_id: _Id = None
    user_id: _Id = None
    organization_id: _Id = None
    group_id: _Id = None
    provider: _Id = None
    model: _Id = None
    estimated_tokens: _Tokens | None = None
    estimated_cost: str | None = None


class StateEndpoints:
    """The routes that answer from the mirror of ``budget.state``."""

    def __init__(self, feed: StateFeed, rates: RateFeed, streams: Streams, gate: Gate) -> None:
        self._feed = feed
        self._rates = rates
        self._streams = streams
        self._gate = gate

    def routes(self) -> list[Route]:
        gate = self._gate
        return [
            gate.route("/v1/state", self._states, ASKERS),
            gate.route("/v1/state/stream", self._stream, ASKERS),
            gate.route("/v1/check", self._check, ASKERS, ["POST"]),
        ]

    async def _states(self, request: Request, caller: Caller) -> Response:
        ring = self._feed.ring
        if ring is None:
            raise unavailable(self._feed.problems()[0])
        limit = whole_number(request, "limit", 1, MAX_STATES, MAX_STATES)
        start = request.query_params.get("after", "")
        found = sorted(
            (
                (record_key(*key_of(entry.record)), entry)
                for entry in self._wanted(request)
                if caller.may_see(entry.record.state.scope)
            ),
            key=itemgetter(0),
        )
        first = bisect_right(found, start, key=itemgetter(0))
        page = found[first : first + limit]
        more = len(found) > first + limit
        rows = [change_fields(key_of(record), record, partition) for _, (record, partition) in page]
        return json_answer(
            {
                **self._standing(ring),
                "states": rows,
                "next": page[-1][0] if more else None,
            }
        )

    def _wanted(self, request: Request) -> Iterable[Entry]:
        """The states asked for; for a scope also the wildcard's that stand in for it."""
        query = request.query_params
        unit = choice(request, "unit", UNITS)
        period = choice(request, "period", PERIODS)
        now_ms = self._feed.now_ms()
        scopes = [parse_scope(text) for text in query.getlist("scope")]
        mirror = self._feed.mirror
        found = (
            [entry for scope in dict.fromkeys(scopes) for entry in mirror.entries(scope, now_ms)]
            if scopes
            else mirror.everything()
        )
        for entry in found:
            state = entry.record.state
            if unit in (None, state.unit) and period in (None, state.period):
                yield entry

    def _standing(self, ring: StateRing) -> dict[str, Any]:
        """How far the states can be trusted, and where a stream would go on from here."""
        mirror = self._feed.mirror
        as_of_ms = mirror.as_of_ms()
        partitions = sorted(mirror.partitions)
        return {
            "as_of": format_ms(as_of_ms) if as_of_ms else None,
            "freshness": self._feed.freshness(),
            "partitions": len(partitions),
            "cursor": ring.event_id(ring.end.offsets, time.time()),
            "heartbeats": [
                heartbeat_fields(mirror, partition)
                for partition in partitions
                if mirror.as_of_ms(partition)
            ],
        }

    async def _stream(self, request: Request, caller: Caller) -> Response:
        if self._streams.is_full:
            raise unavailable("too many streams are open", 5)
        scopes = frozenset(parse_scope(text) for text in request.query_params.getlist("scope"))
        if len(scopes) > MAX_SCOPES:
            raise InvalidField("scope", f"may be given at most {MAX_SCOPES} times")
        return self._streams.open(caller, request.headers.get("last-event-id"), scopes or None)

    async def _check(self, request: Request, caller: Caller) -> Response:
        body = await read_json(request, CheckBody)
        if body.port_id and not caller.may_see_port(body.port_id):
            raise Problem(403, "port_id: this key may not ask for this port")
        self._gate.limit_user(caller, body.user_id or "")
        call = self._call(body)
        now_s = time.monotonic()
        asked = self._feed.mirror.asked(call.scopes, self._feed.now_ms(), now_s)
        freshness = self._feed.mirror.freshness(now_s)
        if freshness != INITIALIZING and asked:
            freshness = LIVE  # each policy has the freshness of its own partition
        verdict = decide(asked, call, freshness)
        return json_answer(
            {
                **_told(verdict, caller),
                "policies": [
                    verdict_fields(each)
                    for each in decide_all(asked, call, freshness)
                    if each.scope is not None and caller.may_see_id(each.scope)
                ],
            }
        )

    def _call(self, body: CheckBody) -> Call:
        given_nano: int | None = None
        if body.estimated_cost is not None:
            given_nano = parse_nano(body.estimated_cost, "estimated_cost")
            if given_nano < 0:
                raise InvalidField("estimated_cost", "must not be negative")
        tokens = body.estimated_tokens or 0
        dearest = None
        if given_nano is None and tokens and body.provider and body.model:
            dearest = self._dearest(body.provider, body.model)
        return Call(
            body.port_id or "",
            body.user_id or "",
            body.organization_id or "",
            body.group_id or "",
            tokens,
            estimate_cost_nano(given_nano, tokens, dearest),
        )

    def _dearest(self, provider: str, model: str) -> Any:
        version: PriceVersion | None = self._rates.version
        if version is None:
            return None
        at_us = (datetime.now(UTC) - _EPOCH) // timedelta(microseconds=1)
        return dearest_token_nano(version, provider, model, at_us)


def _told(verdict: Verdict, caller: Caller) -> dict[str, Any]:
    """The verdict; without amounts where the caller may not see the scope that decided."""
    fields = verdict_fields(verdict)
    if verdict.scope is not None and not caller.may_see_id(verdict.scope):
        fields |= {"used": None, "hard_cap": None, "remaining": None, "as_of": None}
    return fields

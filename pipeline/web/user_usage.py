"""``GET /v1/usage/users/{id}``: the events of one user, newest first, page by page."""

import base64
import binascii
from datetime import UTC, datetime

import msgspec
from clickhouse_connect.driver.client import Client
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pipeline.core.errors import InvalidField
from pipeline.core.scopes import parse_scope
from pipeline.ledger.filters import UsageFilters
from pipeline.ledger.usage import as_of
from pipeline.ledger.user_events import MAX_PAGE, EventPage, EventPlace, user_events
from pipeline.web.gate import READERS, Caller, Gate
from pipeline.web.json_bodies import json_answer
from pipeline.web.ledger_reads import LedgerReads
from pipeline.web.name_feed import NameFeed
from pipeline.web.query import known, whole_number
from pipeline.web.usage_rows import FIRST_YEAR, LAST_YEAR, SPAN, filters_of, plain, rfc3339

DEFAULT_EVENTS = 50
_MOST_CURSOR = 4_000
_MAX_ENTRY = 2**63
_FILTERS = ("port_id", "billing_scope", *SPAN)


class UserUsageEndpoint:
    """The route of one user's events."""

    def __init__(self, ledger: LedgerReads, names: NameFeed, currency: str) -> None:
        self._ledger = ledger
        self._names = names
        self._currency = currency

    def routes(self, gate: Gate) -> list[Route]:
        return [gate.route("/v1/usage/users/{id:path}", self._get, READERS)]

    async def _get(self, request: Request, caller: Caller) -> Response:
        known(request, (*_FILTERS, "limit", "cursor"))
        user_id = request.path_params["id"]
        parse_scope(f"user:{user_id}")
        limit = whole_number(request, "limit", 1, MAX_PAGE, DEFAULT_EVENTS)
        filters = _whole_days(filters_of(request, caller))
        after = _place(request)

        def question(client: Client) -> tuple[datetime | None, EventPage]:
            return as_of(client), user_events(client, user_id, limit, after, filters)

        taken, page = await self._ledger.ask(question)
        scopes = {f"user:{user_id}", *(f"port:{event['port_id']}" for event in page.events)}
        names = self._names.shown(scopes, caller)
        return json_answer(
            {
                "as_of": rfc3339(taken),
                "user_id": user_id,
                "name": names.get(f"user:{user_id}"),
                "currency": self._currency,
                "total": page.total,
                "events": [plain(event) for event in page.events],
                "names": names,
                "next": None if page.next is None else _cursor(page.next),
            }
        )


def _whole_days(filters: UsageFilters) -> UsageFilters:
    for name, at in (("from", filters.start), ("to", filters.end)):
        if at is not None and (at.hour or at.minute or at.second or at.microsecond):
            raise InvalidField(name, "must be a UTC day here, such as 2026-11-22")
    return filters


def _cursor(place: EventPlace) -> str:
    at = place.occurred_at.astimezone(UTC).isoformat()
    text = msgspec.json.encode([at, place.port_id, place.event_id, place.entry_no])
    return base64.urlsafe_b64encode(text).decode().rstrip("=")


def _place(request: Request) -> EventPlace | None:
    text = request.query_params.get("cursor")
    if text is None:
        return None
    try:
        if len(text) > _MOST_CURSOR:
            raise ValueError("too long")
        packed = base64.b64decode(text.encode() + b"=" * (-len(text) % 4), b"-_", validate=True)
        at, port_id, event_id, entry_no = msgspec.json.decode(
            packed, type=tuple[datetime, str, str, int]
        )
        if at.tzinfo is None or not FIRST_YEAR <= at.year <= LAST_YEAR:
            raise ValueError("no time of ours")
        if not 0 <= entry_no <= _MAX_ENTRY:
            raise ValueError("no entry of ours")
    except (ValueError, msgspec.MsgspecError, binascii.Error):
        raise InvalidField("cursor", "must be one that an earlier answer gave as next") from None
    return EventPlace(at, port_id, event_id, entry_no)

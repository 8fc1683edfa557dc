"""``GET /v1/rejected``: the newest refused records, with the reason of each, and their numbers."""

import re
import time
from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pipeline.core.errors import InvalidField
from pipeline.core.rejections import REASONS
from pipeline.core.windows import format_ms
from pipeline.stream.rejected_log import Rejected, RejectedPage, count_rejected, read_rejected
from pipeline.web.gate import READERS, Caller, Gate
from pipeline.web.json_bodies import json_answer
from pipeline.web.problems import unavailable
from pipeline.web.query import choice, known, whole_number

MAX_RECORDS = 200
DEFAULT_RECORDS = 50
COUNTED = 5_000
HOURS_MAX = 30 * 24
READS_AT_ONCE = 4
_HOUR_MS = 3_600_000
_CURSOR = re.compile(r"[0-9]{1,6}:[0-9]{1,19}(?:\.[0-9]{1,6}:[0-9]{1,19}){0,9999}")


class RejectedEndpoints:
    """The routes under ``/v1/rejected``. Each answer reads the topic's end, and no more."""

    def __init__(self, client: Mapping[str, Any], topic: str) -> None:
        self._client = client
        self._topic = topic
        self._reading = 0

    def routes(self, gate: Gate) -> list[Route]:
        return [
            gate.route("/v1/rejected", self._list, READERS),
            gate.route("/v1/rejected/count", self._count, READERS),
        ]

    async def _list(self, request: Request, caller: Caller) -> Response:
        known(request, ("limit", "cursor", "reason"))
        limit = whole_number(request, "limit", 1, MAX_RECORDS, DEFAULT_RECORDS)
        reason = choice(request, "reason", REASONS)
        before = _cursor(request)

        def wanted(one: Rejected) -> bool:
            return reason in (None, one.reason) and _may_see(caller, one)

        as_of = format_ms(int(time.time() * 1000))
        page: RejectedPage = await self._one_of_few(
            read_rejected(self._client, self._topic, limit, wanted, before)
        )
        return json_answer(
            {
                "as_of": as_of,
                "records": [msgspec.to_builtins(one) for one in page.records],
                "next": _next(page),
            }
        )

    async def _count(self, request: Request, caller: Caller) -> Response:
        known(request, ("hours",))
        hours = whole_number(request, "hours", 1, HOURS_MAX, 24)
        now_ms = int(time.time() * 1000)
        since_ms = now_ms - hours * _HOUR_MS
        found = await self._one_of_few(
            count_rejected(
                self._client, self._topic, since_ms, lambda one: _may_see(caller, one), COUNTED
            )
        )
        return json_answer(
            {
                "as_of": format_ms(now_ms),
                "since": format_ms(since_ms),
                "total": sum(found.by_reason.values()),
                "by_reason": found.by_reason,
                "complete": found.is_complete,
            }
        )

    async def _one_of_few(self, reading: Any) -> Any:
        """Lets few read at a time: each takes a connection and the memory of a fetch."""
        if self._reading >= READS_AT_ONCE:
            reading.close()
            raise unavailable("too many read the rejected records now")
        self._reading += 1
        try:
            return await reading
        finally:
            self._reading -= 1


def _may_see(caller: Caller, one: Rejected) -> bool:
    """A key with ports sees what names one of them, and nothing whose port cannot be known."""
    return caller.ports is None or (one.port_id is not None and caller.may_see_port(one.port_id))


def _next(page: RejectedPage) -> str | None:
    if page.before is None:
        return None
    return ".".join(f"{partition}:{offset}" for partition, offset in sorted(page.before.items()))


def _cursor(request: Request) -> dict[int, int] | None:
    text = request.query_params.get("cursor")
    if text is None:
        return None
    if _CURSOR.fullmatch(text) is None:
        raise InvalidField("cursor", "must be one that an earlier answer gave as next")
    pairs = (place.split(":") for place in text.split("."))
    return {int(partition): int(offset) for partition, offset in pairs}

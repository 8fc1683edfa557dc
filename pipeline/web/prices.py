"""``/v1/prices``: the rates that were set, the built-in book, and new rates."""

import asyncio
import gzip
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pipeline.core.book import Book
from pipeline.core.errors import InvalidField
from pipeline.core.explain import dearest_token_nano, explain
from pipeline.core.money import format_scaled
from pipeline.core.prices import PriceVersion
from pipeline.core.rates import parse_rate, rate_record
from pipeline.stream.rate_publishing import RateTopics, completed, publish_rates
from pipeline.web.change_queue import ChangeQueue
from pipeline.web.gate import ADMINS, ASKERS, Caller, Gate
from pipeline.web.json_bodies import as_object, json_answer, read_json
from pipeline.web.problems import Problem
from pipeline.web.query import known, moment
from pipeline.web.rate_feed import RateFeed

MAX_RATES = 1_000
_TOKEN_DECIMALS = 18
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class PriceEndpoints:
    """The routes under ``/v1/prices``."""

    def __init__(
        self,
        client: Mapping[str, Any],
        topics: RateTopics,
        feed: RateFeed,
        *,
        lead_s: int,
        currency: str,
    ) -> None:
        self._client = client
        self._topics = topics
        self._feed = feed
        self._lead_s = lead_s
        self._currency = currency
        self._changes = ChangeQueue(feed)

    def routes(self, gate: Gate) -> list[Route]:
        return [
            gate.route("/v1/prices", self._list, ASKERS),
            gate.route("/v1/prices", self._put, ADMINS, ["PUT"]),
            gate.route("/v1/prices/book", self._book, ASKERS),
            gate.route("/v1/prices/explain", self._explain, ASKERS),
        ]

    async def _list(self, request: Request, _: Caller) -> Response:
        known(request, ("provider", "model", "service_tier", "at"))
        version = self._feed.current()
        body: dict[str, Any] = {
            "as_of": _now_text(),
            "currency": version.currency,
            "next_offset": version.rates.next_offset,
            "rates": [
                {"offset": used.offset, "rate": rate_record(used.rate)}
                for used in version.rates.used
            ],
            "ignored": [
                {
                    "offset": found.offset,
                    "rate_id": found.rate_id,
                    "reason": found.reason,
                    "detail": found.detail,
                }
                for found in version.rates.ignored
            ],
            "book": {"source": version.book.content.source, "digest": version.book.digest},
        }
        if "provider" in request.query_params or "model" in request.query_params:
            body["explanation"] = _explanation(request, version)
        return json_answer(body)

    async def _explain(self, request: Request, _: Caller) -> Response:
        known(request, ("provider", "model", "service_tier", "at"))
        version = self._feed.current()
        return json_answer({"as_of": _now_text(), **_explanation(request, version)})

    async def _book(self, request: Request, _: Caller) -> Response:
        book = self._feed.current().book
        tag = f'"{book.digest}"'
        if tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers={"ETag": tag})
        plain, packed = await asyncio.to_thread(_encoded, book)
        headers = {"ETag": tag, "Vary": "Accept-Encoding"}
        if "gzip" in request.headers.get("accept-encoding", ""):
            headers["Content-Encoding"] = "gzip"
            return Response(packed, headers=headers, media_type="application/json")
        return Response(plain, headers=headers, media_type="application/json")

    async def _put(self, request: Request, caller: Caller) -> Response:
        if caller.ports is not None:
            raise Problem(403, "prices hold for every port; this key is for some")
        body = as_object(await read_json(request, object))
        records = body.get("rates", [body])
        if not isinstance(records, list) or not 1 <= len(records) <= MAX_RATES:
            raise InvalidField("rates", f"must be a list of 1 to {MAX_RATES} rates")
        now = datetime.now(UTC)
        rates = [parse_rate(completed(as_object(record), now, self._lead_s)) for record in records]
        offsets: list[int] = []

        async def publish() -> int:
            offsets[:] = await publish_rates(
                self._client,
                self._topics,
                caller.name,
                rates,
                lead_s=self._lead_s,
                currency=self._currency,
            )
            return offsets[-1] if offsets else -1

        await self._changes.write(publish)
        return json_answer({"written": len(offsets), "rates": [rate_record(one) for one in rates]})


def _explanation(request: Request, version: PriceVersion) -> dict[str, Any]:
    query = request.query_params
    provider, model = query.get("provider"), query.get("model")
    if not provider or not model:
        raise InvalidField(
            "model" if provider else "provider", "both are needed to explain a price"
        )
    at = moment(request, "at") or datetime.now(UTC)
    at_us = (at - _EPOCH) // timedelta(microseconds=1)
    tier = query.get("service_tier", "")
    found = asdict(explain(version, provider, model, at_us, tier))
    dearest = dearest_token_nano(version, provider, model, at_us, tier)
    scale = 10 ** (_TOKEN_DECIMALS - 9)  # from nanos; rounded up, as an estimate should be
    return {
        **found,
        "dearest_token_price": format_scaled(-(-dearest * scale // 1), _TOKEN_DECIMALS),
    }


@cache
def _encoded(book: Book) -> tuple[bytes, bytes]:
    plain = msgspec.json.encode(book.content)
    return plain, gzip.compress(plain, mtime=0)


def _now_text() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

"""``POST /v1/traces``: OTLP over HTTP; spans of AI calls become events."""

import asyncio
from collections.abc import Sequence
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pipeline import metrics
from pipeline.web.bodies import InFlight, declared_size, read_body
from pipeline.web.gate import REPORTERS, Caller, Gate
from pipeline.web.ingest import Intake
from pipeline.web.otlp_messages import (
    INVALID_ARGUMENT,
    JSON,
    PROTOBUF,
    MalformedOtlp,
    TooManySpans,
    read_spans,
    write_result,
    write_status,
)
from pipeline.web.problems import Problem
from pipeline.web.spans import Span, event_of, reports_usage

MAX_BODY_BYTES: Final = 8 * 1024 * 1024
"""An exporter's batch of 512 spans may carry prompts and answers."""
LARGE_BODY_BYTES: Final = 256 * 1024
"""From here on a body is read in a thread, as other requests would wait for it."""
SHOWN_REJECTIONS: Final = 10


class TracesEndpoint:
    """The route ``/v1/traces``."""

    def __init__(self, intake: Intake, in_flight: InFlight) -> None:
        self._intake = intake
        self._in_flight = in_flight

    def routes(self, gate: Gate) -> list[Route]:
        return [gate.route("/v1/traces", self._post, REPORTERS, ["POST"])]

    async def _post(self, request: Request, caller: Caller) -> Response:
        name = _media_type(request)
        with self._in_flight.holding(declared_size(request, MAX_BODY_BYTES)):
            body = await read_body(request, MAX_BODY_BYTES)
            try:
                spans = await _spans(body, name)
            except MalformedOtlp as error:
                return _malformed(name, str(error))
            except TooManySpans as error:
                raise Problem(413, str(error)) from None
            reporting = [span for span in spans if reports_usage(span)]
            metrics.SPANS_IGNORED.inc(len(spans) - len(reporting))
            events = [event_of(span, caller.only_port) for span in reporting]
            results = await self._intake.take([*events], caller)
        rejected = [
            f"{span.name}: {result.reason}: {result.detail}"
            for span, result in zip(reporting, results, strict=True)
            if result.status == "rejected"
        ]
        return Response(write_result(name, len(rejected), _message(rejected)), media_type=name)


async def _spans(body: bytes, name: str) -> list[Span]:
    if len(body) < LARGE_BODY_BYTES:
        return read_spans(body, name)
    return await asyncio.to_thread(read_spans, body, name)


def _media_type(request: Request) -> str:
    given = request.headers.get("content-type", "")
    name = given.partition(";")[0].strip().lower()
    if name not in (PROTOBUF, JSON):
        raise Problem(
            415,
            f"Content-Type {given[:100]!r} is not taken; these are: {PROTOBUF}, {JSON}",
            headers={"Accept-Post": f"{PROTOBUF}, {JSON}"},
        )
    return name


def _malformed(name: str, detail: str) -> Response:
    """400 as OTLP asks for it: a ``Status`` in the request's encoding."""
    if name == PROTOBUF:
        body = write_status(INVALID_ARGUMENT, detail)
        return Response(body, 400, media_type=PROTOBUF)
    raise Problem(400, detail, extra={"code": INVALID_ARGUMENT, "message": detail})


def _message(rejected: Sequence[str]) -> str:
    more = len(rejected) - SHOWN_REJECTIONS
    shown = list(rejected[:SHOWN_REJECTIONS])
    return "; ".join([*shown, f"and {more} more"] if more > 0 else shown)

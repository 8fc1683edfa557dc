"""The API's wire as the contract and docs/api.md describe it, over records in memory.

For what the SDK does when things go wrong: the real API is tested beside it, on a real Kafka.
"""

import asyncio
import json
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from pipeline.core.book import Book, BookContent
from pipeline.core.event_codec import decode_event
from pipeline.core.rejections import Rejection
from pipeline.ops.loopback_ports import free_port
from pipeline.web.server import BackgroundServer, bind

KEY = "a-key"
PARTITIONS = 2
BOOK = BookContent("stand-in", ())


@dataclass
class ApiStandIn:
    """``answer`` replaces the answer to events; ``log`` holds records of ``budget.state``. So many
    streams that would go on are answered with a reset that is cut off as ``cut_resets`` says.
    ``refused`` counts requests without the key."""

    events: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    batches: list[int] = field(default_factory=list[int])
    log: list[tuple[int, bytes, bytes | None]] = field(
        default_factory=list[tuple[int, bytes, bytes | None]]
    )
    rates: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    answer: Callable[[list[Any]], Response | None] = lambda _: None
    streams: int = 0
    resumed_from: list[str] = field(default_factory=list[str])
    cut_resets: int = 0
    hang_up: bool = False
    refused: int = 0
    _server: BackgroundServer | None = None
    port: int = field(default_factory=free_port)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/base"

    def start(self) -> None:
        listener: socket.socket = bind("127.0.0.1", self.port, "stand-in")
        self._server = BackgroundServer(self._app(), listener)

    def stop(self) -> None:
        """Ends it at once; ``start`` brings it back on the same port."""
        server, self._server = self._server, None
        if server is not None:
            self.hang_up = True
            server.close()
            self.hang_up = False

    def put_state(self, partition: int, key: bytes, value: bytes | None) -> None:
        self.log.append((partition, key, value))

    def _app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/base/v1/events", self._keyed(self._events), methods=["POST"]),
                Route("/base/v1/state/stream", self._keyed(self._stream)),
                Route("/base/v1/prices", self._keyed(self._prices)),
                Route("/base/v1/prices/book", self._keyed(self._book)),
            ]
        )

    def _keyed(
        self, handler: Callable[[Request], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            if request.headers.get("authorization") != f"Bearer {KEY}":
                self.refused += 1
                return JSONResponse({"title": "no such key"}, 401)
            return await handler(request)

        return endpoint

    async def _events(self, request: Request) -> Response:
        body = json.loads(await request.body())
        assert isinstance(body, list)
        self.batches.append(len(body))
        told = self.answer(body)
        if told is not None:
            return told
        results = [self._result(event) for event in body]
        rejected = sum(result["status"] == "rejected" for result in results)
        status = 200 if not rejected else 207 if rejected < len(results) else 400
        return JSONResponse({"results": results}, status)

    def _result(self, event: dict[str, Any]) -> dict[str, Any]:
        event_id = event.get("event_id")
        decoded = decode_event(json.dumps(event).encode())
        if isinstance(decoded, Rejection):
            return {
                "event_id": event_id,
                "status": "rejected",
                "reason": decoded.reason,
                "detail": decoded.detail,
            }
        self.events.append(event)
        offset = len(self.events) - 1
        return {"event_id": event_id, "status": "accepted", "partition": 0, "offset": offset}

    async def _stream(self, request: Request) -> Response:
        self.streams += 1
        resumed = request.headers.get("last-event-id", "")
        self.resumed_from.append(resumed)
        return StreamingResponse(self._told(resumed), media_type="text/event-stream")

    async def _told(self, resumed: str) -> AsyncGenerator[bytes]:
        if resumed and self.cut_resets:
            self.cut_resets -= 1
            yield b"event: reset\ndata: {}\n\n"
            return
        at = int(resumed) if resumed else 0
        if not resumed:
            yield b"event: reset\ndata: {}\n\n"
        while at < len(self.log):
            yield self._event(at)
            at += 1
        yield b'event: synced\nid: %d\ndata: {"partitions":%d}\n\n' % (at, PARTITIONS)
        while not self.hang_up:
            while at < len(self.log):
                yield self._event(at)
                at += 1
            await asyncio.sleep(0.01)

    def _event(self, at: int) -> bytes:
        partition, key, value = self.log[at]
        if key.startswith(b"!heartbeat|"):
            name, body = b"heartbeat", {**json.loads(value or b"{}"), "partition": partition}
        elif value is None:
            name, body = b"deleted", {"key": key.decode(), "partition": partition}
        else:
            name = b"state"
            body = {**json.loads(value), "key": key.decode(), "partition": partition}
        return b"event: %b\nid: %d\ndata: %b\n\n" % (name, at + 1, json.dumps(body).encode())

    async def _prices(self, _: Request) -> Response:
        return JSONResponse(
            {
                "currency": "USD",
                "next_offset": len(self.rates),
                "rates": [{"offset": n, "rate": rate} for n, rate in enumerate(self.rates)],
                "ignored": [],
                "book": {"source": BOOK.source, "digest": Book(BOOK).digest},
            }
        )

    async def _book(self, _: Request) -> Response:
        return Response(msgspec.json.encode(BOOK), media_type="application/json")

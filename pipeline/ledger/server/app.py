"""The HTTP side: bounded requests in, ClickHouse's headers and bodies out."""

import asyncio
import contextlib
import json
import logging
import secrets
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from pipeline.ledger.server.compression import BodyEncoder, frame_blocks
from pipeline.ledger.server.engine import Engine, Reply
from pipeline.ledger.server.errors import (
    ACCESS_DENIED,
    QUERY_IS_TOO_LARGE,
    TOO_MANY_SIMULTANEOUS_QUERIES,
    UNKNOWN_EXCEPTION,
    QueryError,
)
from pipeline.ledger.server.protocol import (
    MAX_BODY_BYTES,
    RawRequest,
    Request,
    authenticate,
    chosen_query_id,
    content_type,
    understand,
)
from pipeline.ledger.server.users import User, Users

THREADS: Final = 4
"""Statements that run at the same time, for readers and for the sink each."""
MAX_WAITING: Final = 32
BODY_WAIT_S: Final = 60.0
SEND_WAIT_S: Final = 30.0
_DISPLAY_NAME: Final = "tallyport"
_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})

Value = TypeVar("Value")
_logger = logging.getLogger(__name__)


class Lane:
    """Threads of one kind of user, and a bound on how many of its requests are under way."""

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix=name)
        self._futures: set[Future[Any]] = set()
        self.under_way = 0

    def enter(self) -> None:
        """Takes a place for one request. Raises QueryError when all are taken."""
        if self.under_way >= THREADS + MAX_WAITING:
            raise QueryError(
                TOO_MANY_SIMULTANEOUS_QUERIES,
                f"Too many simultaneous queries. Maximum: {THREADS + MAX_WAITING}.",
            )
        self.under_way += 1

    def leave(self) -> None:
        """Gives the place back."""
        self.under_way -= 1

    async def run(self, work: Callable[[], Value]) -> Value:
        """``work`` in a thread of this lane."""
        future = self._pool.submit(work)
        self._futures.add(future)
        future.add_done_callback(self._futures.discard)
        return await asyncio.wrap_future(future)

    @property
    def busy(self) -> bool:
        """Whether a thread works, be it for a request that was given up."""
        return bool(self._futures)

    def close(self) -> None:
        """Takes no more work; what runs is not waited for."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _check_origin(http: HttpRequest, user: User) -> None:
    """A user without a password must be a program of this machine, not a page in its browser."""
    if user.has_password:
        return
    host = urlsplit(f"//{http.headers.get('host', '')}").hostname
    origin = http.headers.get("origin")
    if host not in _LOOPBACK or (origin and urlsplit(origin).hostname not in _LOOPBACK):
        raise QueryError(ACCESS_DENIED, f"{user.name}: only a loopback Host and Origin may ask.")


async def _read_body(http: HttpRequest) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in http.stream():
        size += len(part)
        if size > MAX_BODY_BYTES:
            raise QueryError(QUERY_IS_TOO_LARGE, f"The body is larger than {MAX_BODY_BYTES} bytes.")
        parts.append(part)
    return b"".join(parts)


def _headers(request: Request, reply: Reply) -> dict[str, str]:
    headers = {
        "Content-Type": content_type(reply.output_format),
        "X-ClickHouse-Server-Display-Name": _DISPLAY_NAME,
        "X-ClickHouse-Query-Id": request.query_id,
        "X-ClickHouse-Format": reply.output_format,
        "X-ClickHouse-Timezone": reply.time_zone,
        "X-ClickHouse-Summary": json.dumps(
            {name: str(count) for name, count in reply.summary.items()}, separators=(",", ":")
        ),
    }
    if request.encoding:
        headers["Content-Encoding"] = request.encoding
        headers["Vary"] = "Accept-Encoding"
    return headers


def _packed(request: Request, body: bytes) -> bytes:
    if request.framed:
        body = frame_blocks(body)
    if request.encoding:
        encoder = BodyEncoder(request.encoding)
        body = encoder.encode(body) + encoder.finish()
    return body


class _Parts(Response):
    """Sends a streamed answer; an error on the way ends it as ClickHouse ends it."""

    def __init__(self, request: Request, reply: Reply, lane: Lane) -> None:
        assert reply.parts is not None
        self._parts = reply.parts
        self._lane = lane
        self._framed = request.framed
        self._encoder = BodyEncoder(request.encoding)
        self._tag = secrets.token_hex(8)
        self.status_code = 200
        self.background = None
        self.init_headers(_headers(request, reply) | {"X-ClickHouse-Exception-Tag": self._tag})
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        failed = False

        async def emit(data: bytes, more: bool) -> None:
            async with asyncio.timeout(SEND_WAIT_S):
                await send({"type": "http.response.body", "body": data, "more_body": more})

        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async with contextlib.aclosing(self._encoded()) as parts:
            async for part, is_error in parts:
                failed = is_error
                if part:
                    await emit(part, more=True)
        if failed:
            # Without its end the transfer counts as broken, as it must.
            raise ClientDisconnect
        await emit(b"", more=False)

    async def _encoded(self) -> AsyncGenerator[tuple[bytes, bool], None]:
        try:
            while (part := await self._lane.run(self._next)) is not None:
                yield part, False
            yield self._encoder.finish(), False
        except QueryError as error:
            yield self._pack(self._exception(error)) + self._encoder.finish(), True
        finally:
            await asyncio.shield(self._close())

    async def _close(self) -> None:
        try:
            await self._lane.run(self._parts.close)
        finally:
            self._lane.leave()

    def _next(self) -> bytes | None:
        part = next(self._parts, None)
        return None if part is None else self._pack(part)

    def _pack(self, part: bytes) -> bytes:
        return self._encoder.encode(frame_blocks(part) if self._framed else part)

    def _exception(self, error: QueryError) -> bytes:
        text = f"{error}\n"
        size = len(text.encode())
        return (
            f"\r\n__exception__\r\n{self._tag}\r\n{text}{size} {self._tag}\r\n__exception__\r\n"
        ).encode()


def _refusal(error: QueryError, version: str, query_id: str) -> Response:
    headers = {
        "X-ClickHouse-Server-Display-Name": _DISPLAY_NAME,
        "X-ClickHouse-Exception-Code": str(error.code),
    }
    if query_id:
        headers["X-ClickHouse-Query-Id"] = query_id
    if error.status == 413:
        headers["Connection"] = "close"
    return PlainTextResponse(f"{error} (version {version})\n", error.status, headers)


class LedgerApp:
    """The server's application on one engine."""

    def __init__(self, engine: Engine, users: Users) -> None:
        self._engine = engine
        self._users = users
        self._readers = Lane("ledger-read")
        self._writers = Lane("ledger-write")
        self.asgi = Starlette(
            routes=[
                Route("/ping", self._ok, methods=["GET", "HEAD"]),
                Route("/replicas_status", self._ok, methods=["GET", "HEAD"]),
                Route("/", self._root, methods=["GET", "HEAD", "POST"]),
            ]
        )

    @property
    def busy(self) -> bool:
        """Whether a statement still runs."""
        return self._readers.busy or self._writers.busy

    def close(self) -> None:
        """Takes no more work."""
        self._readers.close()
        self._writers.close()

    async def _ok(self, _http: HttpRequest) -> Response:
        return PlainTextResponse("Ok.\n")

    async def _root(self, http: HttpRequest) -> Response:
        raw = RawRequest(http.method, dict(http.query_params), dict(http.headers.items()), b"")
        try:
            user = authenticate(raw, self._users)
            _check_origin(http, user)
            lane = self._writers if user.may_write else self._readers
            lane.enter()
            response: Response | None = None
            try:
                response = await self._answer(http, raw, user, lane)
                return response
            finally:
                if not isinstance(response, _Parts):
                    lane.leave()
        except QueryError as error:
            return _refusal(error, self._engine.version, chosen_query_id(raw))
        except Exception:
            _logger.exception("a request failed for a reason that is not the caller's")
            error = QueryError(UNKNOWN_EXCEPTION, "The server failed; its log says why.")
            return _refusal(error, self._engine.version, chosen_query_id(raw))

    async def _answer(self, http: HttpRequest, raw: RawRequest, user: User, lane: Lane) -> Response:
        try:
            async with asyncio.timeout(BODY_WAIT_S):
                body = await _read_body(http)
        except TimeoutError:
            raise QueryError(UNKNOWN_EXCEPTION, "The request's body did not arrive.") from None
        if not body and "query" not in raw.parameters:
            return PlainTextResponse("Ok.\n")
        raw = RawRequest(raw.method, raw.parameters, raw.headers, body)

        def work() -> tuple[Request, Reply, bytes]:
            request = understand(raw, user)
            reply = self._engine.execute(request)
            return request, reply, b"" if reply.parts else _packed(request, reply.body)

        request, reply, packed = await lane.run(work)
        if reply.parts is not None:
            return _Parts(request, reply, lane)
        return Response(packed, headers=_headers(request, reply))

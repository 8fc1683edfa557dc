"""uvicorn's HTTP protocol with bounds it lacks: on slow heads, large heads, and connections."""

import asyncio
import resource
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from pipeline.web.problems import MEDIA_TYPE, Problem

HEAD_TIMEOUT_S = 10.0
"""Within this the head of a request must be there, and what is left of a body that was answered
before its end."""
MAX_HEAD_BYTES = 64 * 1024
MAX_CONNECTIONS = 2_000
_SPARE_FILES = 100


class GuardedHttp(HttpToolsProtocol):
    """One connection. A client that opens it and says nothing, or says it drop by drop, is let go
    of; one whose head never ends is told 431."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._deadline: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._in_head = True

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            self._refuse(Problem(503, "too many connections", headers={"Retry-After": "1"}))
        else:
            self._expect_within_time()

    def connection_lost(self, exc: Exception | None) -> None:
        self._in_time()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            self._head_bytes += len(data)
            if self._deadline is None:
                self._expect_within_time()
        super().data_received(data)
        if self._in_head and self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse(Problem(431, f"the head may have at most {MAX_HEAD_BYTES} bytes"))

    def on_headers_complete(self) -> None:
        self._in_head, self._head_bytes = False, 0
        self._in_time()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_head = True
        self._in_time()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._in_head:  # answered before the body's end
            self._expect_within_time()

    def send_400_response(self, msg: str) -> None:
        self._refuse(Problem(400, msg))

    def _expect_within_time(self) -> None:
        self._in_time()
        self._deadline = self.loop.call_later(HEAD_TIMEOUT_S, self._give_up)

    def _in_time(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        self._deadline = None
        if not self.transport.is_closing():
            self.transport.close()

    def _refuse(self, problem: Problem) -> None:
        body = bytes(problem.response().body)
        lines = [
            f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}",
            f"content-type: {MEDIA_TYPE}",
            f"content-length: {len(body)}",
            *(f"{name}: {value}" for name, value in problem.headers.items()),
            "connection: close",
        ]
        self.transport.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        self.transport.close()


def allow_connections() -> None:
    """Lets this process open as many files as ``MAX_CONNECTIONS`` need, where the system does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + _SPARE_FILES
    if soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))

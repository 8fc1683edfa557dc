"""Clients that are slow, or gone without a word: cut off, while others are served."""

import contextlib
import socket
import time
from collections.abc import Iterator

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from pipeline.web import bodies, guarded_http
from pipeline.web.bodies import InFlight, declared_size, read_body
from pipeline.web.problems import Problem, handle_error
from pipeline.web.server import BackgroundServer, bind

LIMIT_S = 0.3
LONG_S = 60.0
"""Where nobody is to be cut off, however busy the machine is."""
HEAD = b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 1000\r\n"


@pytest.fixture
def in_flight() -> InFlight:
    return InFlight(10_000)


@pytest.fixture
def port(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, in_flight: InFlight
) -> Iterator[int]:
    """Where a server listens that waits ``LIMIT_S`` for a head and for a body, or as long as the
    test's parameter says."""
    head_s, body_s = getattr(request, "param", (LIMIT_S, LIMIT_S))
    monkeypatch.setattr(guarded_http, "HEAD_TIMEOUT_S", head_s)
    monkeypatch.setattr(bodies, "BODY_TIMEOUT_S", body_s)

    async def take(request: Request) -> Response:
        with in_flight.holding(declared_size(request, 5_000)):
            return PlainTextResponse(str(len(await read_body(request, 5_000))))

    routes = [Route("/", take, methods=["POST"])]
    app = Starlette(routes=routes, exception_handlers={Problem: handle_error})
    listener = bind("127.0.0.1", 0, "test")
    server = BackgroundServer(app, listener)
    yield listener.getsockname()[1]
    server.close()


@contextlib.contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        yield connection


def drip(connection: socket.socket, data: bytes) -> tuple[bytes, int]:
    """Sends byte by byte until the other side has had enough; what it says, and how many went."""
    connection.settimeout(0.02)
    said, sent = b"", 0
    with contextlib.suppress(ConnectionError):
        for byte in data:
            connection.sendall(bytes([byte]))
            sent += 1
            with contextlib.suppress(TimeoutError):
                heard = connection.recv(4096)
                if not heard:
                    break
                said += heard
    return said, sent


def test_a_head_that_drips_in_is_cut(port: int) -> None:
    with connected(port) as connection:
        said, sent = drip(connection, HEAD * 20)
        assert said == b""
        assert sent < len(HEAD * 20)


def test_who_says_nothing_is_cut(port: int) -> None:
    with connected(port) as connection:
        assert connection.recv(10) == b""


@pytest.mark.parametrize("port", [(LONG_S, LIMIT_S)], indirect=True)
def test_a_body_that_drips_in_is_answered_408_and_gives_its_memory_back(
    port: int, in_flight: InFlight
) -> None:
    with connected(port) as connection:
        connection.sendall(HEAD + b"\r\n")
        said, _ = drip(connection, b"x" * 900)
        assert said.startswith(b"HTTP/1.1 408")
    assert in_flight.held_bytes == 0


@pytest.mark.parametrize("port", [(LONG_S, LONG_S)], indirect=True)
def test_a_body_that_ends_early_gives_its_memory_back(port: int, in_flight: InFlight) -> None:
    with connected(port) as connection:
        connection.sendall(HEAD + b"\r\nhalf")
        deadline_s = time.monotonic() + LONG_S / 2
        while not in_flight.held_bytes and time.monotonic() < deadline_s:
            time.sleep(0.001)
        assert in_flight.held_bytes == 1_000
    while in_flight.held_bytes and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert in_flight.held_bytes == 0


@pytest.mark.parametrize("port", [(LONG_S, LONG_S)], indirect=True)
def test_the_others_are_served_meanwhile(port: int) -> None:
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(connected(port)) for _ in range(50)]
        for connection in slow:
            connection.sendall(HEAD)
        with connected(port) as quick:
            quick.sendall(HEAD + b"\r\n" + b"x" * 1_000)
            assert quick.recv(4096).startswith(b"HTTP/1.1 200")

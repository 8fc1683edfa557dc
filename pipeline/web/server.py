"""Serving an ASGI application on a port that is known to be ours before anything starts."""

import asyncio
import contextlib
import errno
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Generator, MutableMapping
from typing import Any

import uvicorn

from pipeline.core.errors import TallyportError

Application = Callable[
    [
        MutableMapping[str, Any],
        Callable[[], Awaitable[MutableMapping[str, Any]]],
        Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ],
    Awaitable[None],
]

_STOP_WAIT_S = 5


def bind(host: str, port: int, purpose: str) -> socket.socket:
    """A listening socket; port 0 takes any free one. ``purpose`` names it in the error.

    Raises ``TallyportError`` when the address cannot be had, naming it.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, asyncio turns Nagle's algorithm off, or each answer waits 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        why = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be had: {error.strerror}"
        raise TallyportError(f"{purpose}: port {port} on {host} {why}") from error
    return listener


def address(listener: socket.socket) -> str:
    """``HOST:PORT`` of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class _Server(uvicorn.Server):
    """uvicorn raises the signals it took once more after its shutdown, which would turn a clean
    stop into a death by signal; ``serve`` takes them instead."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


def _server(application: Application) -> uvicorn.Server:
    config = uvicorn.Config(
        application,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=_STOP_WAIT_S,
        lifespan="on",
        server_header=False,
    )
    return _Server(config)


async def serve(application: Application, listener: socket.socket) -> None:
    """Serve until SIGTERM or SIGINT, then finish what is being answered, within seconds."""
    running = _server(application)

    def stop() -> None:
        running.should_exit = True

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    await running.serve([listener])


class BackgroundServer:
    """An application served from a thread of its own, so that a busy loop cannot starve it."""

    def __init__(self, application: Application, listener: socket.socket) -> None:
        self.address = address(listener)
        self._listener = listener
        self._server = _server(application)
        self._thread = threading.Thread(
            target=self._server.run, args=([listener],), name="health", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop serving; returns once the port is free again."""
        self._server.should_exit = True
        self._thread.join(_STOP_WAIT_S * 2)
        with contextlib.suppress(OSError):
            self._listener.close()

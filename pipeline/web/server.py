"""Serving an ASGI application on a port that is known to be ours before anything starts."""

import asyncio
import contextlib
import errno
import signal
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable, Generator, MutableMapping
from pathlib import Path
from typing import Any, NamedTuple

import uvicorn

from pipeline.core.errors import ConfigurationError
from pipeline.web.guarded_http import GuardedHttp

Application = Callable[
    [
        MutableMapping[str, Any],
        Callable[[], Awaitable[MutableMapping[str, Any]]],
        Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ],
    Awaitable[None],
]

_STOP_WAIT_S = 5
_KEEP_ALIVE_S = 75


def bind(host: str, port: int, purpose: str) -> socket.socket:
    """A listening socket; port 0 takes any free one. ``purpose`` names it in the error.

    Raises ``ConfigurationError`` when the address cannot be had, naming it.
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
        raise ConfigurationError(f"{purpose}: port {port} on {host} {why}") from error
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


class Tls(NamedTuple):
    """A certificate (with its chain) and its key, both PEM files."""

    cert: Path
    key: Path


def _server(application: Application, tls: Tls | None = None) -> uvicorn.Server:
    config = uvicorn.Config(
        application,
        http=GuardedHttp,
        ws="none",
        log_config=None,
        access_log=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_STOP_WAIT_S,
        lifespan="on",
        server_header=False,
        proxy_headers=False,
        ssl_certfile=None if tls is None else str(tls.cert),
        ssl_keyfile=None if tls is None else str(tls.key),
    )
    try:
        config.load()
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(
            f"--tls-cert or --tls-key cannot be loaded: {error.strerror or error}"
        ) from error
    return _Server(config)


async def serve(
    application: Application,
    listener: socket.socket,
    *,
    tls: Tls | None = None,
    on_stop: Callable[[], None] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then finish what is being answered, within seconds.

    ``on_stop`` is called when the end is asked for, so that answers without an end can end.
    Raises ``ConfigurationError`` when certificate or key cannot be loaded.
    """
    running = _server(application, tls)

    def stop() -> None:
        running.should_exit = True
        if on_stop is not None:
            on_stop()

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

"""The process: lock, engine, HTTP, the ready line, and a clean stop."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Final

import uvicorn

from pipeline.endpoints import remove_endpoints, write_endpoints
from pipeline.ledger.server.lock import HOST, folder_lock, listen
from pipeline.ledger.server.users import Users, sink_password
from pipeline.settings import Settings
from pipeline.web.key_ring import KeyRing

if TYPE_CHECKING:
    from pipeline.ledger.server.app import LedgerApp
    from pipeline.ledger.server.engine import Engine

_DRAIN_S: Final = 2
_CLOSE_S: Final = 1.5
_KEEP_ALIVE_S: Final = 60


class _Server(uvicorn.Server):
    """Says when it takes work, and leaves the signals to its owner."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if not self.should_exit:
            self._on_ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        # uvicorn would raise the signal once more after its own stop: a death, not an end.
        yield


def _announce(settings: Settings, port: int, password: str) -> None:
    """Writes the address for the other commands, then says that the server takes work."""
    url = f"http://{HOST}:{port}"
    write_endpoints(settings.data_dir, clickhouse_url=url, sink_password=password)
    print(f"ready clickhouse={url}", flush=True)


def _start(settings: Settings) -> "tuple[Engine, LedgerApp, str]":
    folder = settings.data_dir / "ledger"
    password = sink_password(folder)
    keys = KeyRing(settings.api_keys_file) if settings.api_keys_file is not None else None
    # The engine reads the time zone once, when it is loaded; the ledger's times are UTC.
    os.environ["TZ"] = "UTC"
    time.tzset()
    from pipeline.ledger.server.app import LedgerApp
    from pipeline.ledger.server.engine import Engine

    engine = Engine((folder / "engine").absolute())
    return engine, LedgerApp(engine, Users(password, keys)), password


async def _serve(app: "LedgerApp", listener: socket.socket, settings: Settings, key: str) -> None:
    config = uvicorn.Config(
        app.asgi,
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_DRAIN_S,
    )
    server = _Server(config, lambda: _announce(settings, listener.getsockname()[1], key))

    def stop() -> None:
        server.should_exit = True

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    await server.serve([listener])


def _stop(engine: "Engine", app: "LedgerApp") -> None:
    """Closes the engine, or ends the process when a statement does not let it in time.

    What was acknowledged is on disk by then, and nothing else was promised.
    """
    app.close()
    closing = threading.Thread(target=engine.close, daemon=True)
    if not app.busy:
        closing.start()
        closing.join(_CLOSE_S)
    if app.busy or closing.is_alive():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def run_ledger_server(settings: Settings) -> int:
    """Serves the embedded ClickHouse of ``settings.data_dir`` until SIGTERM or SIGINT.

    Prints ``ready clickhouse=http://127.0.0.1:PORT`` once it takes work. Returns the exit status.

    Raises:
        Refused: another process serves this folder.
        ConfigurationError: the port is in use.
    """
    with (
        folder_lock(settings.data_dir / "ledger"),
        contextlib.closing(listen(settings.ledger_port)) as listener,
    ):
        engine, app, password = _start(settings)
        asyncio.run(_serve(app, listener, settings, password))
        remove_endpoints(settings.data_dir)
        _stop(engine, app)
    return 0

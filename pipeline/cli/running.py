"""``up``, ``demo`` and the single parts: commands that run until they are told to stop."""

import asyncio
import gc
import logging
import os
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.cli.context import run_async, server_trouble, settings
from pipeline.cli.output import as_json
from pipeline.freed_memory import keep_freed_memory

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.settings import Settings

_GC_YOUNG_OBJECTS = 100_000
_STOP_S = 20.0
"""Somewhat more than the sink gives its last round."""
_PEM = click.Path(exists=True, dir_okay=False, path_type=Path)

log = logging.getLogger(__name__)


@click.command()
def up() -> int:
    """Run everything on this machine.

    Whichever of Kafka and ClickHouse has no address configured is started embedded, then topics,
    migrations, worker, ledger sink and API. Prints one line `ready kafka=… clickhouse=… api=…`
    when all parts take work. Ctrl-C or SIGTERM stops all of it.
    """
    from pipeline.ops.up import run_up

    return run_up(settings())


@click.command()
@click.option("--stay", is_flag=True, help="Keep everything running afterwards.")
@as_json
def demo(stay: bool, json_wanted: bool) -> int:
    """Show the whole thing in about a minute, audited at the end.

    A fresh data folder, free ports, a day of generated usage and budgets that are warned and
    blocked. Exit status 0 only if the audit agrees to the last nano.
    """
    from pipeline.ops.demo import run_demo

    return run_demo(settings(), stay, json_wanted=json_wanted)


@click.command()
def worker() -> int:
    """Run the worker: price and count events, publish budget states. Prints `ready worker`."""
    from pipeline.wiring import run_worker

    keep_freed_memory()
    return run_worker(settings())


@click.command()
def sink() -> int:
    """Run the ledger sink: priced events into ClickHouse, and corrections. Prints `ready sink`."""
    keep_freed_memory()
    return run_async(_run_sink(settings()))


async def _run_sink(configured: "Settings") -> int:
    from pipeline.corrections.resolver import Resolver
    from pipeline.kafka import KafkaUnreachable
    from pipeline.ledger.sink import run_sink
    from pipeline.ledger.sink_status import SinkStatus
    from pipeline.web.health import serve_health

    # Rows die together and hold no cycles: collecting after every 700 costs half of the time.
    gc.freeze()
    gc.set_threshold(_GC_YOUNG_OBJECTS, 50, 100)
    stop = asyncio.Event()

    def leave() -> None:
        stop.set()
        threading.Thread(target=_leave_for_good, daemon=True).start()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, leave)
    status = SinkStatus()
    health = None
    if configured.health_port is not None:
        health = serve_health(configured.health_port, "sink", status.problems, status.own_problems)

    async def resolve_corrections(is_owner: "Callable[[], bool]") -> None:
        await Resolver(configured, is_owner).run()

    try:
        await run_sink(
            configured,
            stop,
            lambda: print("ready sink", flush=True),
            status,
            beside=resolve_corrections,
        )
    except asyncio.CancelledError:
        # A client that closes cancels what waits for it, which is no failure of who is told to end.
        if not stop.is_set():
            raise
    except Exception as error:
        # Nor is it one that a server was away for who is told to end while it starts.
        if not stop.is_set() or not (isinstance(error, KafkaUnreachable) or server_trouble(error)):
            raise
        log.warning("told to end, and %s", error)
    finally:
        if health is not None:
            health.close()
    return 0


def _leave_for_good() -> None:
    """A call to a ledger that does not answer would keep the process for another minute.

    What is cut off is as after a kill: the next start reads its positions from the ledger.
    """
    time.sleep(_STOP_S)
    log.warning("leaving with a call to the ledger under way")
    os._exit(0)


@click.command()
@click.option("--tls-cert", type=_PEM, help="Serve HTTPS with this certificate (PEM, with chain).")
@click.option("--tls-key", type=_PEM, help="The certificate's key (PEM).")
def api(tls_cert: Path | None, tls_key: Path | None) -> int:
    """Run the HTTP API. Prints `ready api=http://HOST:PORT`.

    Without a keys file it binds to loopback only and answers only a loopback Host.
    """
    from pipeline.web.api import run_api
    from pipeline.web.server import Tls

    if (tls_cert is None) != (tls_key is None):
        raise click.UsageError("--tls-cert and --tls-key belong together")
    tls = Tls(tls_cert, tls_key) if tls_cert is not None and tls_key is not None else None
    keep_freed_memory()
    return run_api(settings(), tls)


@click.command("ledger-server")
def ledger_server() -> int:
    """Run the embedded ClickHouse over HTTP on TALLYPORT_LEDGER_PORT."""
    from pipeline.ledger.server import run_ledger_server

    return run_ledger_server(settings())

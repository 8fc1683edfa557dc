"""What one of the sinks does beside its rows: rolling up days and merging manifests.

A thread of its own with a connection of its own.
"""

import logging
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager

from clickhouse_connect.driver.client import Client

from pipeline import metrics
from pipeline.ledger.client import LedgerError, connect, ledger_address, ledger_errors
from pipeline.ledger.compaction import Compactor
from pipeline.ledger.rollup import Roller
from pipeline.settings import Settings

TURN_EVERY_S = 10.0
STOP_WAIT_S = 2.0
BUILD_TIMEOUT_S = 630
"""A little more than the server gives a build."""

_log = logging.getLogger(__name__)


@contextmanager
def rolling_up(settings: Settings, is_mine: Callable[[], bool]) -> Generator[None]:
    """Closes days while the body runs, as often as ``is_mine()``, so that one sink of many does it.

    A turn that fails is counted, and the next one begins anew. At the end a build that still runs
    is left behind: what it has built does not count.
    """
    stop = threading.Event()
    # A daemon, so that a long build does not keep the process.
    thread = threading.Thread(
        target=_roll, args=(settings, is_mine, stop), name="rollup", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(STOP_WAIT_S)


def _roll(settings: Settings, is_mine: Callable[[], bool], stop: threading.Event) -> None:
    roller, compactor = Roller(), Compactor()
    while not stop.wait(TURN_EVERY_S):
        if not is_mine():
            continue
        address = ledger_address(settings, write=True)
        client: Client | None = None
        try:
            client = connect(address, query_timeout_s=BUILD_TIMEOUT_S)
            with ledger_errors(address):
                roller.turn(client)
                compactor.turn(client)
        except LedgerError as error:
            metrics.ROLLUP_FAILURES.inc()
            _log.warning("neither days nor manifests are rolled up now: %s", error)
        finally:
            if client is not None:
                client.close()

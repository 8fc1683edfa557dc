"""Questions to the ledger from the API: on threads of their own, few at a time, with a deadline.

The driver blocks, so each question takes a thread; the loop goes on serving checks and streams
meanwhile. When the ledger does not answer, callers are told so and nobody else waits for it.
"""

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

from clickhouse_connect.driver.client import Client

from pipeline.core.errors import ConfigurationError
from pipeline.ledger.client import (
    READ_LIMITS,
    LedgerError,
    connect,
    ledger_address,
    ledger_errors,
)
from pipeline.settings import Settings
from pipeline.web.problems import Problem, unavailable

log = logging.getLogger(__name__)

AT_ONCE = 4
WAITING = 64
ANSWER_TIMEOUT_S = 15
RETRY_AFTER_S = 2

T = TypeVar("T")


class LedgerReads:
    """``ask`` runs a question on a client; ``close`` lets go of it.

    The address is looked up anew after a failure: an embedded ledger may have moved.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._threads: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()
        self._client: Client | None = None
        self._unanswered = 0

    async def ask(self, question: Callable[[Client], T]) -> T:
        """What ``question`` returns; it runs on a thread and must only read.

        Raises ``Problem`` 503 when the ledger is away, too slow, or asked too much at once.
        """
        if self._unanswered >= WAITING:
            raise unavailable("too many questions to the ledger are waiting", RETRY_AFTER_S)
        if self._threads is None:
            self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="ledger")
        with self._lock:
            self._unanswered += 1
        running = self._threads.submit(self._answer, question)
        running.add_done_callback(lambda _: self._answered())
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                return await asyncio.wrap_future(running)
        except TimeoutError as error:
            told = f"the ledger did not answer within {ANSWER_TIMEOUT_S} s"
            raise unavailable(told, RETRY_AFTER_S) from error
        except (LedgerError, ConfigurationError) as error:
            raise _away(error) from error

    def close(self) -> None:
        """Gives up what waits and closes the connections."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
        self._forget()

    def _answered(self) -> None:
        with self._lock:
            self._unanswered -= 1

    def _answer(self, question: Callable[[Client], T]) -> T:
        address = ledger_address(self._settings)
        try:
            with ledger_errors(address):
                return question(self._open())
        except LedgerError:
            self._forget()
            raise

    def _open(self) -> Client:
        with self._lock:
            if self._client is None:
                self._client = connect(
                    ledger_address(self._settings),
                    query_timeout_s=ANSWER_TIMEOUT_S,
                    limits={**READ_LIMITS, "max_execution_time": ANSWER_TIMEOUT_S},
                )
            return self._client

    def _forget(self) -> None:
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            with suppress(Exception):
                client.close()


def _away(error: Exception) -> Problem:
    log.warning("a question to the ledger failed: %s", error)
    return unavailable(f"the ledger cannot be asked now: {error}", RETRY_AFTER_S)

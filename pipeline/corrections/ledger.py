"""The resolver's connection to the ledger: lookups, and waiting until it has come far enough."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self, TypeVar

from clickhouse_connect.driver.client import Client

from pipeline.corrections.entries import (
    EventKey,
    LedgerEntry,
    entries_of,
    known_correction_ids,
    reached,
)
from pipeline.ledger.client import connect, ledger_address, ledger_errors
from pipeline.ledger.manifests import LogEpoch
from pipeline.settings import Settings
from pipeline.stream.reader import record_ends

POLL_S = 0.2
FORWARDING_ROUNDS = 2

T = TypeVar("T")


class LedgerLookups:
    """A connection used from one task. ``log`` is the log that the ledger is written from now.

    ``starts`` are the offsets of the events from which on that log counts: what lies before them
    was taken in under an older one.
    """

    def __init__(
        self,
        settings: Settings,
        kafka: Mapping[str, Any],
        log: LogEpoch,
        starts: Mapping[int, int],
    ) -> None:
        self._address = ledger_address(settings, write=True)
        self._kafka = kafka
        self._log = log
        self._starts = starts
        self._client: Client

    async def __aenter__(self) -> Self:
        self._client = await asyncio.to_thread(connect, self._address)
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self._client.close)

    async def entries(self, keys: Mapping[EventKey, str]) -> dict[EventKey, list[LedgerEntry]]:
        """All entries of these events, see ``entries_of``."""
        return await self._ask(lambda client: entries_of(client, keys)) if keys else {}

    async def known_ids(self, ids: Iterable[str]) -> set[str]:
        """Which of these corrections it has taken."""
        wanted = list(ids)
        return await self._ask(lambda c: known_correction_ids(c, wanted)) if wanted else set()

    async def reached(self, topic: str) -> dict[int, int]:
        """Up to where it has taken in each partition of a log's topic."""
        return await self._ask(lambda client: reached(client, topic, self._log.epoch))

    async def taken_in(self, topic: str) -> None:
        """Returns once it has all that stood in ``topic`` (the events) at the call.

        In two rounds: what had to be forwarded first stands at its home once its first place is
        taken in.
        """
        for _ in range(FORWARDING_ROUNDS):
            ends = await record_ends(self._kafka, topic)
            waited_for = {p: end for p, end in ends.items() if self._starts.get(p, 0) < end}
            while True:
                held = await self.reached(topic)
                if all(held.get(p, 0) >= end for p, end in waited_for.items()):
                    break
                await asyncio.sleep(POLL_S)

    async def _ask(self, question: Callable[[Client], T]) -> T:
        return await asyncio.to_thread(self._guarded, question)

    def _guarded(self, question: Callable[[Client], T]) -> T:
        with ledger_errors(self._address):
            return question(self._client)

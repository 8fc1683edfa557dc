"""What a reader sees while faults happen: how far states and ledger have come, and when.

Progress is measured as a subscriber would: by heartbeats on ``budget.state``, by committed blocks
on ``usage.priced``, and by the ledger's manifests.
"""

import asyncio
import contextlib
import time
from bisect import bisect_left
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError
from clickhouse_connect.driver.client import Client

from pipeline.core.budgets import is_heartbeat, parse_heartbeat
from pipeline.core.errors import TallyportError
from pipeline.ledger.client import LedgerError, open_reader
from pipeline.settings import Settings
from pipeline.stream.topics import Topics

POLL_MS = 100
LEDGER_POLL_S = 0.25
RETRY_S = 0.5
WRITTEN = """
SELECT partition, toUnixTimestamp64Milli(max(written_at)) FROM sink_manifests
GROUP BY partition
"""


class Progress:
    """The times (monotonic) at which something moved on, and up to which wall-clock time."""

    def __init__(self) -> None:
        self._times_s: list[float] = []
        self._reached_ms = 0
        self._moved = asyncio.Event()

    def reach(self, wall_ms: int) -> None:
        """Everything up to ``wall_ms`` is contained now."""
        if wall_ms > self._reached_ms:
            self._reached_ms = wall_ms
            self._times_s.append(time.monotonic())
            self._moved.set()

    async def past(self, wall_ms: int) -> None:
        """Returns once everything up to ``wall_ms`` is contained."""
        while self._reached_ms <= wall_ms:
            self._moved.clear()
            await self._moved.wait()

    def longest_standstill_s(self, start_s: float, end_s: float) -> float:
        """The longest time between ``start_s`` and ``end_s`` in which nothing moved on."""
        first, last = bisect_left(self._times_s, start_s), bisect_left(self._times_s, end_s)
        times = [start_s, *self._times_s[first:last], end_s]
        return max(later - earlier for earlier, later in pairwise(times))


class StreamWatch:
    """Follows ``budget.state`` and ``usage.priced``.

    ``states`` is what every partition's heartbeat contains, ``served`` by source partition when
    its blocks came.
    """

    def __init__(self, client: Mapping[str, Any], topics: Topics, partitions: int) -> None:
        self.states = Progress()
        self.served = {partition: Progress() for partition in range(partitions)}
        self._as_of_ms = dict.fromkeys(range(partitions), 0)
        self._client = dict(client)
        self._topics = topics

    async def run(self) -> None:
        """Follows until cancelled; a lost connection is tried again."""
        while True:
            with contextlib.suppress(KafkaError, OSError):
                await self._follow()
            await asyncio.sleep(RETRY_S)

    async def _follow(self) -> None:
        consumer = AIOKafkaConsumer(
            **self._client,
            isolation_level="read_committed",
            enable_auto_commit=False,
            auto_offset_reset="latest",
            fetch_max_wait_ms=50,
            request_timeout_ms=10_000,
        )
        try:
            await consumer.start()
            consumer.assign(
                [
                    TopicPartition(topic, partition)
                    for topic in (self._topics.state, self._topics.priced)
                    for partition in self.served
                ]
            )
            while True:
                batches = await consumer.getmany(timeout_ms=POLL_MS, max_records=5_000)
                for tp, records in batches.items():
                    if tp.topic == self._topics.priced:
                        self.served[tp.partition].reach(int(time.time() * 1000))
                    else:
                        self._take_states(records)
        finally:
            await consumer.stop()

    def _take_states(self, records: list[Any]) -> None:
        for record in records:
            if is_heartbeat(record.key or b"") and record.value is not None:
                beat = parse_heartbeat(record.key, record.value)
                self._as_of_ms[beat.partition] = beat.as_of_ms
        self.states.reach(min(self._as_of_ms.values()))


class LedgerWatch:
    """Asks the ledger when each partition's last manifest was written."""

    def __init__(self, settings: Settings, partitions: int) -> None:
        self.progress = Progress()
        self._settings = settings
        self._partitions = partitions
        self._client: Client | None = None

    async def run(self) -> None:
        """Asks until cancelled; a ledger that is away is asked again."""
        try:
            while True:
                try:
                    self.progress.reach(await asyncio.to_thread(self._written_ms))
                except TallyportError:
                    self._close()
                await asyncio.sleep(LEDGER_POLL_S)
        finally:
            self._close()

    def _written_ms(self) -> int:
        """When the oldest of the last manifests was written; 0 before each partition has one."""
        if self._client is None:
            self._client = open_reader(self._settings)
        try:
            rows = self._client.query(WRITTEN).result_rows
        except Exception as error:
            raise LedgerError(str(error)) from error
        return min(int(ms) for _, ms in rows) if len(rows) == self._partitions else 0

    def _close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

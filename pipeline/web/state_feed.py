"""The API's own mirror of ``budget.state``: followed from its beginning, for ever."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from pipeline.core.budgets import Heartbeat, StateRecord
from pipeline.core.errors import TallyportError
from pipeline.core.scopes import RecordKey
from pipeline.core.windows import format_ms
from pipeline.stream.reader import topic_partitions
from pipeline.stream.topic_identity import topic_id
from pipeline.web.state_ring import Entry, StateRing, key_of
from producers.mirror import Mirror

log = logging.getLogger(__name__)

FETCH_MAX_WAIT_MS = 100
POLL_MS = 200
MAX_RECORDS = 5_000
RETRY_S = 1.0


class StateFeed:
    """``mirror`` decides and answers; ``ring`` tells subscribers what is new.

    ``run`` follows until it is cancelled. ``ring`` is None until everything that was there has
    been taken, and another one after the log had to be read anew. ``on_change`` is told every
    change, what was there included.
    """

    def __init__(
        self,
        client: Mapping[str, Any],
        topic: str,
        on_change: Callable[[RecordKey, StateRecord | None], None] | None = None,
    ) -> None:
        self.mirror = Mirror()
        self.ring: StateRing | None = None
        self._client = dict(client)
        self._topic = topic
        self._on_change = on_change
        self._news = asyncio.Event()
        self._trouble: str | None = "budget states have not been read yet"

    def problems(self) -> list[str]:
        """Why states cannot be told now."""
        return [self._trouble] if self._trouble else []

    def freshness(self) -> str:
        """That of the whole mirror."""
        return self.mirror.freshness(time.monotonic())

    def now_ms(self) -> int:
        """The time by which periods end: the worker's where its heartbeats are fresh."""
        return self.mirror.now_ms(time.monotonic()) or int(time.time() * 1000)

    async def wait_news(self, timeout_s: float) -> None:
        """Returns when something new has come, or after ``timeout_s``."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._news.wait()

    def wake(self) -> None:
        """Lets everybody who waits look again."""
        news, self._news = self._news, asyncio.Event()
        news.set()

    async def run(self) -> None:
        """Follows the topic; after a failure it is read anew beside the states as they were."""
        while True:
            try:
                await self._follow()
            except (KafkaError, OSError, TallyportError) as error:
                self._trouble = f"Kafka: {' '.join(str(error).split())[:200]}"
                log.warning("budget states: %s", self._trouble)
                await asyncio.sleep(RETRY_S)

    async def _follow(self) -> None:
        consumer = AIOKafkaConsumer(
            **self._client,
            isolation_level="read_committed",
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=FETCH_MAX_WAIT_MS,
        )
        try:
            await consumer.start()
            partitions = sorted(await topic_partitions(consumer, self._topic))
            log_id = (await topic_id(self._client, self._topic)).hex[:8]
            tps = [TopicPartition(self._topic, partition) for partition in partitions]
            consumer.assign(tps)
            ring = StateRing(log_id, len(partitions))
            self.mirror.begin(len(partitions))
            ends = await consumer.end_offsets(tps)
            for tp, offset in (await consumer.beginning_offsets(tps)).items():
                consumer.seek(tp, offset)
                ring.begin(tp.partition, offset)
            while not await self._reached(consumer, ring, ends):
                await self._take(consumer, ring)
            self.mirror.caught_up(time.monotonic())
            self.ring, self._trouble = ring, None
            while True:
                await self._take(consumer, ring)
        finally:
            await consumer.stop()

    async def _reached(
        self, consumer: AIOKafkaConsumer, ring: StateRing, ends: Mapping[TopicPartition, int]
    ) -> bool:
        positions = {tp: await consumer.position(tp) for tp in ends}
        for tp, position in positions.items():
            ring.passed(tp.partition, position)
        return all(position >= ends[tp] for tp, position in positions.items())

    async def _take(self, consumer: AIOKafkaConsumer, ring: StateRing) -> None:
        batches = await consumer.getmany(timeout_ms=POLL_MS, max_records=MAX_RECORDS)
        now_s = time.monotonic()
        for tp, records in batches.items():
            for record in records:
                key: bytes = record.key or b""
                taken = self.mirror.take(tp.partition, key, record.value, now_s)
                if taken is not None and not isinstance(taken, Heartbeat):
                    entry = _entry(tp.partition, record.offset, taken)
                    ring.add(entry)
                    if self._on_change is not None:
                        self._on_change(entry.key, entry.record)
            ring.passed(tp.partition, records[-1].offset + 1)
        if batches:
            self.wake()


def heartbeat_fields(mirror: Mirror, partition: int) -> dict[str, Any]:
    """The newest heartbeat of a partition, which must have had one."""
    through = mirror.through(partition)
    return {
        "partition": partition,
        "as_of": format_ms(mirror.as_of_ms(partition)),
        "through": {str(source): through[source] for source in sorted(through)},
    }


def _entry(partition: int, offset: int, taken: StateRecord | RecordKey) -> Entry:
    if isinstance(taken, RecordKey):
        return Entry(partition, offset, taken, None)
    return Entry(partition, offset, key_of(taken), taken)

"""Whether worker and sink still advance while there is work: what ``/health/pipeline`` answers."""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from pipeline import metrics
from pipeline.core.budgets import is_heartbeat, parse_heartbeat
from pipeline.core.errors import CorruptRecord, TallyportError
from pipeline.stream.reader import topic_partitions
from pipeline.stream.topics import Topics

log = logging.getLogger(__name__)

STALL_S = 8.0
"""Noticed after this long and a poll: within ten seconds."""
_POLL_S = 1.0
_RETRY_S = 2.0
_PEEK_AFTER_S = 1.5
"""A reader that moves is not looked at: that would fetch for every busy partition."""
_PEEK_S = 1.0
_PEEK_MS = 20
"""Markers move the position and wake nobody who waits."""
_PEEK_BYTES = 64 * 1024
_FETCH_MIN_BYTES = 256 * 1024
_FETCH_MAX_WAIT_MS = 250
"""States are fetched for their heartbeats, one a second; each flush's on its own costs more."""


@dataclass
class Backlog:
    """One partition as its reader sees it. Offsets are of the log, times monotonic seconds."""

    position: int = -1
    end: int = -1
    empty_up_to: int = -1
    record_at: int = -1
    waiting_since_s: float | None = None

    def observe(self, position: int, end: int, now_s: float) -> None:
        """Take in where the reader is and where the log ends."""
        moved = position != self.position
        self.position, self.end = position, end
        if end <= self.unseen_from:
            self.waiting_since_s = None
        elif moved or self.waiting_since_s is None:
            self.waiting_since_s = now_s

    @property
    def unseen_from(self) -> int:
        """Before this offset nothing waits for the reader."""
        return max(self.position, self.empty_up_to)

    def to_be_looked_at(self, now_s: float) -> bool:
        """Whether it has waited for a while and nobody knows for what."""
        since_s = self.waiting_since_s
        return since_s is not None and now_s - since_s >= _PEEK_AFTER_S and not self._has_record

    def overdue(self, now_s: float) -> bool:
        """Whether something, and be it markers, has waited at one position for ``STALL_S``."""
        return self.waiting_since_s is not None and now_s - self.waiting_since_s >= STALL_S

    def stalled(self, now_s: float) -> bool:
        """Whether a record that was seen has waited at one position for ``STALL_S``."""
        return self._has_record and self.overdue(now_s)

    def found_record(self, offset: int) -> None:
        """A record stands at ``offset``: work, until the reader has passed it."""
        self.record_at = offset

    def found_empty(self, up_to: int) -> None:
        """Before offset ``up_to`` only markers of transactions lie ahead: no work."""
        self.empty_up_to = max(self.empty_up_to, up_to)
        if self.end <= self.empty_up_to:
            self.waiting_since_s = None

    @property
    def _has_record(self) -> bool:
        return self.record_at >= self.position

    @property
    def lag(self) -> int:
        """Records ahead; markers count until they are known to be only that."""
        return max(0, self.end - self.unseen_from)


@dataclass
class Heartbeats:
    """The last heartbeat of each partition of ``budget.state``."""

    partitions: int
    through: dict[int, dict[int, int]] = field(default_factory=dict[int, dict[int, int]])
    as_of_ms: dict[int, int] = field(default_factory=dict[int, int])
    advanced_s: dict[int, float] = field(default_factory=dict[int, float])

    def take(self, key: bytes | None, value: bytes | None, now_s: float) -> None:
        """Take in one record of ``budget.state``; what is no readable heartbeat is left alone."""
        if key is None or value is None or not is_heartbeat(key):
            return
        try:
            beat = parse_heartbeat(key, value)
        except CorruptRecord:
            return
        self.through[beat.partition] = beat.through
        if self.as_of_ms.get(beat.partition) != beat.as_of_ms:
            self.as_of_ms[beat.partition] = beat.as_of_ms
            self.advanced_s[beat.partition] = now_s

    def contained(self, source_partition: int) -> int:
        """The next offset of ``usage.events`` that every partition's states contain; 0 if none."""
        if len(self.through) < self.partitions:
            return 0
        return min(through.get(source_partition, 0) for through in self.through.values())


class Progress:
    """Follows the logs; ``problems()`` says what stands still. ``run`` until it is cancelled."""

    def __init__(self, client: Mapping[str, Any], topics: Topics) -> None:
        self._client = dict(client)
        self._topics = topics
        self._worker: dict[int, Backlog] = {}
        self._sink: dict[int, Backlog] = {}
        self._unreachable: str | None = "Kafka has not been reached yet"
        self._measured_s = time.monotonic()

    def ready(self) -> list[str]:
        """What keeps this process from doing its own work."""
        silent_s = time.monotonic() - self._measured_s
        if self._unreachable:
            return [self._unreachable]
        return [f"Kafka has not answered for {silent_s:.0f} s"] if silent_s >= STALL_S else []

    async def problems(self) -> list[str]:
        """What keeps this process from its own work, and what has stopped advancing."""
        return [*self.ready(), *(line for lines in self._stalled().values() for line in lines)]

    async def stalled(self) -> dict[str, str]:
        """The parts that have stopped advancing while there is work, and where."""
        return {part: "; ".join(lines) for part, lines in self._stalled().items() if lines}

    def _stalled(self) -> dict[str, list[str]]:
        now_s = time.monotonic()
        found: dict[str, list[str]] = {}
        for part, backlogs, topic in (
            ("worker", self._worker, self._topics.events),
            ("sink", self._sink, self._topics.priced),
        ):
            found[part] = [
                f"{part} has not advanced for {now_s - (waiting.waiting_since_s or now_s):.0f} s: "
                f"{topic} partition {partition} waits at offset {waiting.position} "
                f"of {waiting.end}"
                for partition, waiting in sorted(backlogs.items())
                if waiting.stalled(now_s)
            ]
        return found

    async def run(self) -> None:
        """Follow the logs for ever; a lost connection is reported and tried again."""
        while True:
            try:
                await self._follow()
            except (KafkaError, OSError, TallyportError) as error:
                said = " ".join(str(error).split())[:200] or "it does not answer"
                self._unreachable = f"Kafka: {said}"
                log.debug("progress: %s", self._unreachable)
                await asyncio.sleep(_RETRY_S)

    async def _follow(self) -> None:
        async with contextlib.AsyncExitStack() as stack:
            states = await self._consumer(
                stack, fetch_min_bytes=_FETCH_MIN_BYTES, fetch_max_wait_ms=_FETCH_MAX_WAIT_MS
            )
            peek = await self._consumer(stack, max_partition_fetch_bytes=_PEEK_BYTES)
            admin = AIOKafkaAdminClient(**self._client)
            stack.push_async_callback(admin.close)
            await admin.start()
            assigned = await _all_partitions(states, self._topics.state)
            states.assign(assigned)
            await states.seek_to_beginning(*assigned)
            beats = Heartbeats(len(assigned))
            reading = {tp: Backlog() for tp in assigned}
            while True:
                await self._read_heartbeats(states, beats)
                async with asyncio.timeout(STALL_S):
                    await self._measure(peek, admin, beats)
                    await _check_reading(states, peek, reading)
                self._unreachable, self._measured_s = None, time.monotonic()

    async def _consumer(self, stack: contextlib.AsyncExitStack, **options: Any) -> AIOKafkaConsumer:
        consumer = AIOKafkaConsumer(
            **self._client,
            isolation_level="read_committed",
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            **options,
        )
        stack.push_async_callback(consumer.stop)
        await consumer.start()
        return consumer

    async def _read_heartbeats(self, states: AIOKafkaConsumer, beats: Heartbeats) -> None:
        until_s = time.monotonic() + _POLL_S
        while (left_s := until_s - time.monotonic()) > 0:
            batches = await states.getmany(timeout_ms=int(left_s * 1000) + 1, max_records=20_000)
            now_s = time.monotonic()
            for records in batches.values():
                for record in records:
                    beats.take(record.key, record.value, now_s)
        now_s = time.monotonic()
        for partition, advanced_s in beats.advanced_s.items():
            metrics.STATE_AGE_SECONDS.labels(str(partition)).set(now_s - advanced_s)

    async def _measure(
        self, peek: AIOKafkaConsumer, admin: AIOKafkaAdminClient, beats: Heartbeats
    ) -> None:
        events = await _all_partitions(peek, self._topics.events)
        priced = await _all_partitions(peek, self._topics.priced)
        tps = [*events, *priced]
        ends = await peek.end_offsets(tps)
        starts = await peek.beginning_offsets(tps)
        committed = await admin.list_consumer_group_offsets(
            self._topics.sink_group, partitions=priced
        )
        if untold := [tp for tp in priced if tp not in committed]:
            raise TallyportError(f"the sink's position in {untold[0].topic} was not told")
        now_s = time.monotonic()
        seen: dict[TopicPartition, Backlog] = {}
        for tp in tps:
            is_source = tp.topic == self._topics.events
            done = beats.contained(tp.partition) if is_source else committed[tp].offset
            backlogs = self._worker if is_source else self._sink
            seen[tp] = backlogs.setdefault(tp.partition, Backlog())
            seen[tp].observe(max(done, starts[tp]), ends[tp], now_s)
        await _look_ahead(peek, {tp: one for tp, one in seen.items() if one.to_be_looked_at(now_s)})
        for tp, backlog in seen.items():
            gauge = metrics.SOURCE_LAG if tp.topic == self._topics.events else metrics.SINK_LAG
            gauge.labels(str(tp.partition)).set(backlog.lag)


async def _check_reading(
    states: AIOKafkaConsumer, peek: AIOKafkaConsumer, reading: Mapping[TopicPartition, Backlog]
) -> None:
    """Raises ``TallyportError`` when our own reading has stopped: what we say would be old."""
    ends = await peek.end_offsets([*reading])
    now_s = time.monotonic()
    for tp, backlog in reading.items():
        backlog.observe(await states.position(tp), ends[tp], now_s)
        if backlog.overdue(now_s):
            raise TallyportError(
                f"reading {tp.topic} partition {tp.partition} has stopped at offset "
                f"{backlog.position} of {backlog.end}"
            )


async def _all_partitions(consumer: AIOKafkaConsumer, topic: str) -> list[TopicPartition]:
    partitions = await topic_partitions(consumer, topic)
    return [TopicPartition(topic, partition) for partition in sorted(partitions)]


async def _look_ahead(
    consumer: AIOKafkaConsumer, waiting: Mapping[TopicPartition, Backlog]
) -> None:
    """Find out, for all at once, whether records lie ahead or only markers of transactions.

    What is not known after ``_PEEK_S`` is left for the next time, which goes on where this ended.
    """
    if not waiting:
        return
    consumer.assign([*waiting])
    for tp, backlog in waiting.items():
        consumer.seek(tp, backlog.unseen_from)
    unknown, until_s = [*waiting], time.monotonic() + _PEEK_S
    try:
        while unknown and time.monotonic() < until_s:
            found = await consumer.getmany(*unknown, timeout_ms=_PEEK_MS)
            for tp in unknown:
                if records := found.get(tp):
                    waiting[tp].found_record(records[0].offset)
                else:
                    waiting[tp].found_empty(await consumer.position(tp))
            unknown = [tp for tp in unknown if waiting[tp].to_be_looked_at(math.inf)]
    finally:
        consumer.unsubscribe()  # or it would fetch on

"""Writing the opening of an epoch: what a restore puts into empty tables before anyone counts.

The cells of a scope go into one source table, that of the partition its states are homed at. A
source table is the sum of what its partition counted and what it was opened with, so the merge,
the heartbeats and recovery know nothing of a restore.
"""

from collections import defaultdict
from collections.abc import AsyncIterable, Iterable, Mapping, Sequence
from typing import Any, Self

import msgspec
from aiokafka import AIOKafkaProducer

from pipeline.core.cells import CellValue
from pipeline.core.dedupe import ENTRY_BYTES, correction_key, encode_ids, event_key
from pipeline.core.errors import CorruptRecord
from pipeline.core.home import home_partition
from pipeline.core.restored import parse_restored_from, restored_from_header
from pipeline.core.totals import SHARDS, shard_of
from pipeline.stream.epoch import Epoch, encode_epoch
from pipeline.stream.flush import scope_home
from pipeline.stream.id_journal import SEGMENT_BYTES, segment_record
from pipeline.stream.journal import Position, delta_record, shard_record
from pipeline.stream.reader import read_whole
from pipeline.stream.topics import Topics
from pipeline.stream.transaction import (
    MAX_BATCH_BYTES,
    MAX_REQUEST_BYTES,
    Outbox,
    Record,
    send_records,
)

OPENING_FLUSH = 1
COMMIT_BYTES = 8 * 1024 * 1024
TRANSACTION_TIMEOUT_MS = 60_000
SEGMENT_IDS = SEGMENT_BYTES // ENTRY_BYTES

AcceptedId = tuple[str, str, str, int]
"""port_id, event_id, correction_id (empty: it is the event's), Kafka timestamp in ms."""
RateRecord = tuple[int, int, int, bytes, bytes]
"""epoch, offset and Kafka timestamp (ms) of its first place, key, value."""


class FencingProducer:
    """A transactional producer; starting it ends every earlier one of the same id for good."""

    def __init__(self, client: Mapping[str, Any], transactional_id: str) -> None:
        self._producer = AIOKafkaProducer(
            **client,
            transactional_id=transactional_id,
            transaction_timeout_ms=TRANSACTION_TIMEOUT_MS,
            max_batch_size=MAX_BATCH_BYTES,
            max_request_size=MAX_REQUEST_BYTES,
        )

    async def __aenter__(self) -> Self:
        try:
            await self._producer.start()
        except BaseException:
            await self._producer.stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._producer.stop()

    async def commit(self, outbox: Outbox) -> None:
        """Sends everything in one transaction."""
        async with self._producer.transaction():
            sent: list[tuple[Any, int]] = []
            for (topic, partition), records in outbox.records.items():
                sent += await send_records(self._producer, topic, partition, records)
            for future, _ in sent:
                await future


class OpeningWriter:
    """One restore's hold on the tables. A later restore fences it: what it still sends is void."""

    def __init__(self, producer: FencingProducer, topics: Topics, partitions: int) -> None:
        self._producer = producer
        self._topics = topics
        self._partitions = partitions
        self._outbox = Outbox()
        self._outbox_bytes = 0

    async def write_epoch(self, epoch: Epoch) -> None:
        """Appends the record of an epoch."""
        await self._add(self._topics.epoch, 0, None, encode_epoch(epoch))
        await self._commit()

    async def write_ids(self, batches: AsyncIterable[Sequence[AcceptedId]]) -> dict[int, int]:
        """Writes ids, oldest first, to the journals of their homes; returns how many, by home."""
        keys: list[list[bytes]] = [[] for _ in range(self._partitions)]
        times_ms: list[list[int]] = [[] for _ in range(self._partitions)]
        segments = [0] * self._partitions
        counts = dict.fromkeys(range(self._partitions), 0)

        async def write_segment(home: int) -> None:
            ids = encode_ids(keys[home], times_ms[home])
            newest_ms = max(times_ms[home])
            record = segment_record(segments[home], counts[home], newest_ms, ids)
            await self._add(self._topics.ids, home, *record)
            counts[home] += len(keys[home])
            segments[home] += 1
            keys[home], times_ms[home] = [], []

        async for batch in batches:
            for port_id, event_id, correction_id, timestamp_ms in batch:
                home = home_partition(port_id, self._partitions)
                if correction_id:
                    keys[home].append(correction_key(port_id, correction_id))
                else:
                    keys[home].append(event_key(port_id, event_id))
                times_ms[home].append(timestamp_ms)
                if len(keys[home]) >= SEGMENT_IDS:
                    await write_segment(home)
        for home in range(self._partitions):
            if keys[home]:
                await write_segment(home)
        await self._commit()
        return counts

    async def write_tables(
        self,
        positions: Mapping[int, Position],
        batches: AsyncIterable[Sequence[CellValue]],
    ) -> dict[int, Position]:
        """Writes every table's journal: all shards, then where the table stands.

        ``positions`` give epoch, next offset, watermark, oldest day and ids of each partition;
        ``batches`` hold the cells ordered by shard. Returns the positions as they were written.
        """
        counts = dict.fromkeys(positions, 0)
        waiting: dict[int, list[CellValue]] = defaultdict(list)
        shard = 0
        async for batch in batches:
            for value in batch:
                number = shard_of(value[0])
                if number < shard:
                    raise CorruptRecord(f"the cells of {value[0]} came out of order")
                while shard < number:
                    await self._write_shard(shard, positions, waiting)
                    shard += 1
                home = scope_home(value[0], self._partitions)
                waiting[home].append(value)
                counts[home] += 1
        for rest in range(shard, SHARDS):
            await self._write_shard(rest, positions, waiting)
        await self._commit()
        opened = {
            partition: msgspec.structs.replace(
                position, flush=OPENING_FLUSH, cells=counts[partition]
            )
            for partition, position in positions.items()
        }
        for partition, position in opened.items():
            await self._add(self._topics.totals, partition, *delta_record(0, position, ()))
        await self._commit()
        return opened

    async def _write_shard(
        self,
        shard: int,
        positions: Mapping[int, Position],
        waiting: dict[int, list[CellValue]],
    ) -> None:
        for partition, position in positions.items():
            cells = waiting.pop(partition, ())
            record = shard_record(shard, position.epoch, OPENING_FLUSH, cells)
            await self._add(self._topics.totals, partition, *record)

    async def _add(self, topic: str, partition: int, key: bytes | None, value: bytes) -> None:
        self._outbox.add(topic, partition, Record(key, value))
        self._outbox_bytes += len(value)
        if self._outbox_bytes >= COMMIT_BYTES:
            await self._commit()

    async def _commit(self) -> None:
        outbox, self._outbox, self._outbox_bytes = self._outbox, Outbox(), 0
        if outbox.records:
            await self._producer.commit(outbox)


async def restore_registers(
    client: Mapping[str, Any],
    topics: Topics,
    rates: Iterable[RateRecord],
    policies: Mapping[bytes, bytes],
) -> tuple[int, int]:
    """Writes the rates and policies whose keys have no record yet, in one transaction.

    Its id is that of whoever changes policies and rates, so none of them can write in between.
    Returns how many rates and policies were written.
    """
    async with FencingProducer(client, topics.change_transactional_id) as producer:
        places, rate_keys = await _rates_present(client, topics.rates)
        policy_keys = await _keys_present(client, topics.policies)
        outbox = Outbox()
        for epoch, offset, timestamp_ms, key, value in rates:
            if (epoch, offset) not in places and key not in rate_keys:
                header = restored_from_header(epoch, offset, timestamp_ms)
                outbox.add(topics.rates, 0, Record(key, value, [header]))
        for key, value in policies.items():
            if key not in policy_keys:
                outbox.add(topics.policies, 0, Record(key, value))
        if outbox.records:
            await producer.commit(outbox)
    rates_written, policies_written = (
        len(outbox.records.get((topic, 0), ())) for topic in (topics.rates, topics.policies)
    )
    return rates_written, policies_written


async def _rates_present(
    client: Mapping[str, Any], topic: str
) -> tuple[set[tuple[int, int]], set[bytes]]:
    """The first places of restored rates that are there, and the keys of all others."""
    places: set[tuple[int, int]] = set()
    keys: set[bytes] = set()
    async for records in read_whole(client, topic):
        for record in records:
            whence = parse_restored_from(record.headers)
            if whence is None:
                keys.add(record.key or b"")
            else:
                places.add((whence.epoch, whence.offset))
    return places, keys


async def _keys_present(client: Mapping[str, Any], topic: str) -> set[bytes]:
    return {record.key or b"" async for records in read_whole(client, topic) for record in records}

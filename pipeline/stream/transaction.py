"""Kafka transactions: what is sent together becomes visible together, or not at all.

The broker itself fences a former user of a transactional id: once somebody else has started a
producer with it, nothing that the former one still had in its buffers can become visible, and
whatever it left open has been decided.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import aiokafka.producer.sender
from aiokafka import AIOKafkaProducer
from aiokafka.errors import IllegalOperation, ProducerFenced
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.producer.transaction_manager import TransactionState
from aiokafka.structs import OffsetAndMetadata, RecordMetadata, TopicPartition

from pipeline.core.home import carried_bytes
from pipeline.faults import point
from pipeline.record_headers import RawNamesBatch, has_raw_names
from pipeline.stream.large_batch import LargeValueBatch, is_large

Headers = Sequence[tuple[str, bytes | None]]

TRANSACTION_TIMEOUT_MS = 10_000
REQUEST_TIMEOUT_MS = 8_000
MAX_BATCH_BYTES = 1024 * 1024
NO_COMPRESSION, GZIP = 0, 1
MAX_REQUEST_BYTES = 64 * 1024 * 1024
"""As much as ``usage.rejected`` takes as one record: what came compressed may grow on its way."""
NO_OFFSETS: Mapping[TopicPartition, int] = MappingProxyType({})

# A transaction that starts while the markers of the one before are still being written is told to
# come again; aiokafka then waits 20 ms, many times what the markers take.
aiokafka.producer.sender.BACKOFF_OVERRIDE = 0.002  # pyright: ignore[reportPrivateImportUsage]


@dataclass(slots=True)
class Record:
    """A record to send; ``timestamp_ms`` None lets the client stamp it.

    ``compressed`` is for one that may have come compressed and is too large to go otherwise; it
    must be larger than ``MAX_BATCH_BYTES``, so that it travels alone.
    """

    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    timestamp_ms: int | None = None
    compressed: bool = False


def passed_on(key: bytes | None, value: bytes | None, headers: Headers) -> Record:
    """A client's record, which may have come compressed, to be sent as it is."""
    size_bytes = len(value or b"") + carried_bytes(key, headers)
    return Record(key, value, headers, compressed=size_bytes > MAX_BATCH_BYTES)


@dataclass(slots=True)
class Outbox:
    """What one flush sends: records by (topic, partition), in order."""

    records: dict[tuple[str, int], list[Record]] = field(
        default_factory=dict[tuple[str, int], list[Record]]
    )

    def add(self, topic: str, partition: int, record: Record) -> None:
        """Puts ``record`` at the end of what goes to this partition."""
        self.add_all(topic, partition, (record,))

    def add_all(self, topic: str, partition: int, records: Iterable[Record]) -> None:
        """The same for several."""
        self.records.setdefault((topic, partition), []).extend(records)


async def send_records(
    producer: AIOKafkaProducer, topic: str, partition: int, records: Iterable[Record]
) -> list[tuple[Any, int]]:
    """Sends records as whole batches; returns (future of the acknowledgement, record count)."""
    sent: list[tuple[Any, int]] = []
    batch: Any = None
    for record in records:
        is_alone = bool(record.headers) and has_raw_names(record.headers)
        if batch is None or is_alone or not _append(batch, record):
            if batch is not None:
                sent.append(await _send_batch(producer, topic, partition, batch))
            batch = _batch_for(producer, record, raw_names=is_alone)
            _append(batch, record)
        if is_alone:
            sent.append(await _send_batch(producer, topic, partition, batch))
            batch = None
    if batch is not None:
        sent.append(await _send_batch(producer, topic, partition, batch))
    return sent


def _batch_for(producer: AIOKafkaProducer, first: Record, *, raw_names: bool) -> Any:
    large = first.timestamp_ms is None and is_large(first.key, first.value, first.headers)
    if not first.compressed and not raw_names and not large:
        return producer.create_batch()
    manager: Any = producer._txn_manager  # pyright: ignore[reportPrivateUsage]
    in_transaction = manager is not None and manager.transactional_id is not None
    if large and not first.compressed:
        return LargeValueBatch(MAX_BATCH_BYTES, is_transactional=in_transaction)
    builder = RawNamesBatch if raw_names else BatchBuilder
    compression = GZIP if first.compressed else NO_COMPRESSION
    return builder(MAX_BATCH_BYTES, compression, is_transactional=in_transaction)


async def _send_batch(
    producer: AIOKafkaProducer, topic: str, partition: int, batch: Any
) -> tuple[Any, int]:
    batch.close()
    future = await producer.send_batch(batch, topic, partition=partition)
    return future, batch.record_count()


def _append(batch: Any, record: Record) -> bool:
    return (
        batch.append(
            key=record.key,
            value=record.value,
            timestamp=record.timestamp_ms,
            headers=list(record.headers),
        )
        is not None
    )


class FencedProducer:
    """The producer of one transactional id: whoever starts it shuts out who had the id before."""

    def __init__(self, client: Mapping[str, Any], transactional_id: str, group_id: str) -> None:
        self._group_id = group_id
        self._producer = AIOKafkaProducer(
            **client,
            transactional_id=transactional_id,
            transaction_timeout_ms=TRANSACTION_TIMEOUT_MS,
            request_timeout_ms=REQUEST_TIMEOUT_MS,
            max_batch_size=MAX_BATCH_BYTES,
            max_request_size=MAX_REQUEST_BYTES,
            linger_ms=0,
        )

    async def start(self) -> None:
        """Shuts out every earlier user of the same id; returns when its transaction is decided."""
        await self._producer.start()

    async def commit(
        self, outbox: Outbox, offsets: Mapping[TopicPartition, int] = NO_OFFSETS
    ) -> list[RecordMetadata]:
        """Sends everything and commits it, with ``offsets`` for the group when there are any.

        Returns where each batch was written, and when. On any error the caller must not go on
        with its memory: the process ends and recovers.
        """
        try:
            return await self._commit(outbox, offsets)
        except IllegalOperation as error:  # fenced between two calls, of which only one says so
            raise ProducerFenced from error

    async def _commit(
        self, outbox: Outbox, offsets: Mapping[TopicPartition, int]
    ) -> list[RecordMetadata]:
        producer = self._producer
        await self._begin()
        point("price-begun")
        sent: list[tuple[Any, int]] = []
        for (topic, partition), records in outbox.records.items():
            sent += await send_records(producer, topic, partition, records)
        point("price-sent")
        written: list[RecordMetadata] = [await future for future, _ in sent]
        point("price-acked")
        if offsets:
            await producer.send_offsets_to_transaction(
                {tp: OffsetAndMetadata(offset, "") for tp, offset in offsets.items()},
                self._group_id,
            )
        point("price-offsets")
        await producer.commit_transaction()
        return written

    async def _begin(self) -> None:
        if self._manager.state is TransactionState.READY:
            await self._producer.begin_transaction()
        elif not self._manager.is_in_transaction():
            await self._manager.wait_for_transaction_end()  # raises what went wrong in between

    async def prepare(self, partitions: Iterable[tuple[str, int]]) -> None:
        """Begins the next transaction, with ``partitions`` (topic, partition), in the background.

        It has to be committed within ``TRANSACTION_TIMEOUT_MS``. Nothing holds readers back
        before data is written.
        """
        await self._producer.begin_transaction()
        for topic, partition in partitions:
            self._manager.maybe_add_partition_to_txn(TopicPartition(topic, partition))

    @property
    def _manager(self) -> Any:
        return self._producer._txn_manager  # pyright: ignore[reportPrivateUsage]

    async def close(self) -> None:
        """Ends the producer; an open transaction is left to the next owner's fence."""
        await self._producer.stop()

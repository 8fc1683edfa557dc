"""The epoch of the log: which Kafka the offsets, tables and ledger rows belong to.

Offsets start again at 0 on a fresh Kafka, so everything that carries one also carries the epoch.
The first record of the epoch topic says it; several workers may write one at the same time, and
the first in the log counts for all of them.
"""

import uuid
from typing import Any

import msgspec
from aiokafka import AIOKafkaProducer

from pipeline.core.errors import CorruptRecord, Refused
from pipeline.core.windows import format_ms
from pipeline.stream.reader import read_to_end
from pipeline.stream.topics import Topics


class Epoch(msgspec.Struct, frozen=True):
    """``topic_ids`` are the UUIDs Kafka gave topics when they were created, by full name."""

    epoch: int
    id: str
    created_at: str
    topic_ids: dict[str, str]
    partitions: int


class EpochMismatch(Refused):
    """The topics are not those the tables were built from."""


async def read_epoch(client: dict[str, Any], topics: Topics) -> Epoch | None:
    """The epoch of this Kafka; None when none was begun."""
    async for records in read_to_end(client, topics.epoch):
        record = records[0]
        try:
            return msgspec.json.decode(record.value or b"", type=Epoch)
        except msgspec.MsgspecError as error:
            raise CorruptRecord(
                f"{topics.epoch} partition 0 offset {record.offset}: no epoch: {error}"
            ) from error
    return None


async def begin_epoch(
    client: dict[str, Any],
    topics: Topics,
    events_topic_id: str,
    partitions: int,
    ledger_epoch: int,
    now_ms: int,
) -> Epoch:
    """The epoch to work in, begun now on an empty Kafka.

    ``ledger_epoch`` is the highest epoch the ledger has rows of, 0 for an empty ledger. Raises
    ``Refused`` on an empty Kafka beside a ledger with data, and ``EpochMismatch`` when
    ``usage.events`` was recreated or has another number of partitions.
    """
    epoch = await read_epoch(client, topics)
    if epoch is None:
        if ledger_epoch:
            raise Refused(
                f"the ledger holds data of epoch {ledger_epoch}, but this Kafka is empty; its "
                "totals, policies and rates would start at zero. Point the worker at the Kafka "
                "that the ledger was filled from, or at an empty ledger"
            )
        created_at = format_ms(now_ms)
        ids = {topics.events: events_topic_id}
        fresh = Epoch(1, str(uuid.uuid4()), created_at, ids, partitions)
        await _write(client, topics, fresh)
        epoch = await read_epoch(client, topics)
        if epoch is None:
            raise Refused(f"{topics.epoch}: the record that was just written is not there")
    _verify(epoch, topics, events_topic_id, partitions)
    return epoch


def _verify(epoch: Epoch, topics: Topics, events_topic_id: str, partitions: int) -> None:
    recorded = epoch.topic_ids.get(topics.events)
    if recorded != events_topic_id:
        raise EpochMismatch(
            f"topic {topics.events} was recreated (id {events_topic_id}, the tables belong to "
            f"{recorded}): its offsets mean other records now. Use a new topic prefix"
        )
    if epoch.partitions != partitions:
        raise EpochMismatch(
            f"topic {topics.events} has {partitions} partitions, the tables belong to "
            f"{epoch.partitions}. Use a new topic prefix"
        )


async def _write(client: dict[str, Any], topics: Topics, epoch: Epoch) -> None:
    producer = AIOKafkaProducer(**client, acks="all", enable_idempotence=True)
    await producer.start()
    try:
        await producer.send_and_wait(topics.epoch, msgspec.json.encode(epoch), partition=0)
    finally:
        await producer.stop()

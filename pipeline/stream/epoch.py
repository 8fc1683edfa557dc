"""The epoch of the log: which Kafka the offsets, tables and ledger rows belong to.

Offsets start again at 0 on a fresh Kafka, so everything that carries one also carries the epoch.
The first record of the epoch topic says it; several workers may write one at the same time, and
the first in the log counts for all of them. An epoch that continues what a ledger holds begins as
``restoring``, and a second record with the same id says when it is ready. Nobody counts before.
"""

import uuid
from collections.abc import Mapping
from typing import Any, Literal

import msgspec
from aiokafka import AIOKafkaProducer

from pipeline.core.errors import CorruptRecord, Refused
from pipeline.core.windows import format_ms
from pipeline.stream.reader import read_whole
from pipeline.stream.topic_identity import topic_ids
from pipeline.stream.topics import Topics


class Epoch(msgspec.Struct, frozen=True):
    """``topic_ids`` are the UUIDs Kafka gave topics when they were created, by full name.

    ``starts`` are the offsets of ``usage.events`` from which on this epoch counts; 0 where a
    partition is not named.
    """

    epoch: int
    id: str
    created_at: str
    topic_ids: dict[str, str]
    partitions: int
    state: Literal["ready", "restoring"] = "ready"
    starts: dict[int, int] = {}


class EpochMismatch(Refused):
    """The topics are not those the tables were built from."""


def lasting_topics(topics: Topics) -> list[str]:
    """The topics that no worker can go on without: recreated, they would be silently empty."""
    return [
        topics.events,
        topics.priced,
        topics.resolved,
        topics.policies,
        topics.rates,
        topics.state,
        topics.totals,
        topics.ids,
        topics.rules,
    ]


async def identities(client: Mapping[str, Any], topics: Topics) -> dict[str, str]:
    """The ids of the lasting topics that exist, by full name."""
    found = await topic_ids(client, lasting_topics(topics))
    return {name: str(topic_id) for name, topic_id in found.items()}


async def read_epoch(client: Mapping[str, Any], topics: Topics) -> Epoch | None:
    """The epoch of this Kafka; None when none was begun."""
    found: Epoch | None = None
    async for records in read_whole(client, topics.epoch):
        for record in records:
            try:
                epoch = msgspec.json.decode(record.value or b"", type=Epoch)
            except msgspec.MsgspecError as error:
                raise CorruptRecord(
                    f"{topics.epoch} partition 0 offset {record.offset}: no epoch: {error}"
                ) from error
            if found is None or (epoch.id == found.id and epoch.state == "ready"):
                found = epoch
    return found


def new_epoch(
    number: int, topic_ids: Mapping[str, str], partitions: int, now_ms: int, **state: Any
) -> Epoch:
    """An epoch with an id of its own; ``state`` gives the other fields."""
    created_at = format_ms(now_ms)
    return Epoch(number, str(uuid.uuid4()), created_at, dict(topic_ids), partitions, **state)


async def begin_epoch(
    client: dict[str, Any],
    topics: Topics,
    topic_ids: Mapping[str, str],
    partitions: int,
    ledger_epoch: int,
    now_ms: int,
) -> Epoch:
    """The epoch to work in, begun now where Kafka and ledger are both empty.

    ``topic_ids`` are the ``identities`` now; ``ledger_epoch`` is the highest epoch the ledger
    knows, 0 for an empty ledger. Raises ``Refused`` on an empty Kafka beside a ledger with data
    and where a restore has not finished, and ``EpochMismatch`` when a topic was recreated or
    ``usage.events`` has another number of partitions.
    """
    epoch = await read_epoch(client, topics)
    if epoch is None:
        if ledger_epoch:
            raise Refused(
                f"the ledger holds data of epoch {ledger_epoch}, but this Kafka is empty; its "
                "totals, policies and rates would start at zero. Run `tallyport rebuild`, which "
                "restores them from the ledger, or connect the Kafka that the ledger was filled "
                "from"
            )
        await _write(client, topics, new_epoch(1, topic_ids, partitions, now_ms))
        epoch = await read_epoch(client, topics)
        if epoch is None:
            raise Refused(f"{topics.epoch}: the record that was just written is not there")
    if epoch.state == "restoring":
        raise Refused(
            f"a restore into this Kafka (epoch {epoch.epoch}) was begun and has not finished; "
            "run `tallyport rebuild`"
        )
    verify_epoch(epoch, topics, topic_ids, partitions)
    if ledger_epoch > epoch.epoch:
        raise Refused(
            f"this Kafka is of epoch {epoch.epoch}, but the ledger has gone on to epoch "
            f"{ledger_epoch} on another one; connect the newer Kafka"
        )
    return epoch


def verify_epoch(
    epoch: Epoch, topics: Topics, topic_ids: Mapping[str, str], partitions: int
) -> None:
    """Raises ``EpochMismatch`` unless the topics are those that the epoch was begun on."""
    for name, recorded in epoch.topic_ids.items():
        if topic_ids.get(name, recorded) != recorded:
            what = "its offsets mean other records now" if name == topics.events else "it is empty"
            raise EpochMismatch(
                f"topic {name} was recreated (id {topic_ids[name]}, the tables belong to "
                f"{recorded}): {what}. Stop all workers and sinks, then restore from the ledger "
                "with `tallyport rebuild --discard-tables`"
            )
    if epoch.partitions != partitions:
        raise EpochMismatch(
            f"topic {topics.events} has {partitions} partitions, the tables belong to "
            f"{epoch.partitions}. Take a new TALLYPORT_TOPIC_PREFIX and run `tallyport rebuild`"
        )


def encode_epoch(epoch: Epoch) -> bytes:
    """The record of the epoch topic."""
    return msgspec.json.encode(epoch)


async def _write(client: dict[str, Any], topics: Topics, epoch: Epoch) -> None:
    producer = AIOKafkaProducer(**client, acks="all", enable_idempotence=True)
    try:
        await producer.start()
        await producer.send_and_wait(topics.epoch, encode_epoch(epoch), partition=0)
    finally:
        await producer.stop()

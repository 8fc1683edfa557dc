"""Waiting until ``budget.state`` contains what was sent, as its heartbeats say."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.structs import ConsumerRecord

from pipeline.core.budgets import is_heartbeat, parse_heartbeat
from pipeline.core.errors import CorruptRecord
from pipeline.stream.topics import Topics


@asynccontextmanager
async def following(
    client: dict[str, Any], topics: Topics, partitions: int
) -> AsyncGenerator[AIOKafkaConsumer]:
    """A read_committed subscriber of ``budget.state``, from its end on."""
    consumer = AIOKafkaConsumer(
        **client,
        isolation_level="read_committed",
        enable_auto_commit=False,
        fetch_max_wait_ms=50,
    )
    await consumer.start()
    try:
        tps = [TopicPartition(topics.state, partition) for partition in range(partitions)]
        consumer.assign(tps)
        await consumer.seek_to_end(*tps)
        for tp in tps:
            await consumer.position(tp)
        yield consumer
    finally:
        await consumer.stop()


async def until_contained(
    consumer: AIOKafkaConsumer, wanted: dict[int, int], timeout_s: float
) -> None:
    """Returns when the states of every partition contain more than ``wanted``.

    ``wanted`` are offsets by partition of ``usage.events``. Raises ``TimeoutError``.
    """
    waiting = {tp.partition for tp in consumer.assignment()}
    async with asyncio.timeout(timeout_s):
        while waiting:
            for records in (await consumer.getmany(timeout_ms=100)).values():
                for record in records:
                    if is_heartbeat(record.key or b"") and _contains(record, wanted):
                        waiting.discard(record.partition)


def _contains(record: ConsumerRecord, wanted: dict[int, int]) -> bool:
    try:
        beat = parse_heartbeat(record.key or b"", record.value or b"")
    except CorruptRecord:
        return False
    return all(beat.through.get(partition, 0) > offset for partition, offset in wanted.items())

"""A client that has just been made is told where a topic ends without a pause."""

import asyncio

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from pipeline import topic_leaders
from pipeline.stream.topics import Topics, create_or_check_topics

NEVER_MS = 3_600_000


@pytest.mark.parametrize("ask", ["beginning_offsets", "end_offsets"])
async def test_offsets_of_a_topic_not_met_before(kafka: str, topic_prefix: str, ask: str) -> None:
    topic_leaders.install()
    client, topic = {"bootstrap_servers": kafka}, Topics(topic_prefix).events
    await create_or_check_topics(client, Topics(topic_prefix), 2)
    async with AIOKafkaProducer(**client) as producer:
        for partition in (0, 1, 1):  # by then each of them has a leader
            await producer.send_and_wait(topic, b"x", partition=partition)
    # Whoever had to try again would pause for an hour.
    async with asyncio.timeout(60), AIOKafkaConsumer(**client, retry_backoff_ms=NEVER_MS) as one:
        found = await getattr(one, ask)([TopicPartition(topic, p) for p in range(2)])
    assert [offset for _, offset in sorted(found.items())] == (
        [1, 2] if ask == "end_offsets" else [0, 0]
    )

"""Topics with a backlog for the benchmarks of the stream, on a deployment of their own."""

from collections.abc import Iterable

from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from pipeline.core.policies import policy_from_object
from pipeline.kafka import client_kwargs
from pipeline.settings import Settings
from pipeline.stream.policy_log import write_policies
from pipeline.stream.topics import Topics, create_or_check
from producers.kafka import Publisher

POLICIES = (
    {"scope": "all", "unit": "cost", "period": "month", "hard_cap": "1000000"},
    {"scope": "port:*", "unit": "tokens", "period": "month", "hard_cap": 10**12},
    {"scope": "user:*", "unit": "cost", "period": "day", "hard_cap": "1000"},
)


async def fill(settings: Settings, records: Iterable[tuple[bytes, bytes | None]]) -> None:
    """Makes all topics under the prefix of ``settings``, three policies, and the backlog."""
    await create_or_check(settings)
    client, topics = client_kwargs(settings), Topics(settings.topic_prefix)
    policies = [policy_from_object(policy) for policy in POLICIES]
    await write_policies(client, topics, "bench", policies)
    await send(settings, records)


async def fill_input(settings: Settings, records: Iterable[tuple[bytes, bytes | None]]) -> None:
    """As ``fill`` for those who read nothing but ``usage.events``."""
    admin = AIOKafkaAdminClient(**client_kwargs(settings))
    await admin.start()
    try:
        name = Topics(settings.topic_prefix).events
        await admin.create_topics([NewTopic(name, settings.partition_count, 1)])
    finally:
        await admin.close()
    await send(settings, records)


async def send(settings: Settings, records: Iterable[tuple[bytes, bytes | None]]) -> None:
    """Sends records to ``usage.events``, as fast as the broker takes them."""
    topic = Topics(settings.topic_prefix).events
    async with Publisher(client_kwargs(settings), topic) as publisher:
        await publisher.send_many(records)
        await publisher.flush()


async def drop(settings: Settings) -> None:
    """Deletes every topic under the prefix of ``settings``, so that rounds do not fill the disk."""
    admin = AIOKafkaAdminClient(**client_kwargs(settings))
    await admin.start()
    try:
        names = [
            name for name in await admin.list_topics() if name.startswith(settings.topic_prefix)
        ]
        await admin.delete_topics(names)
    finally:
        await admin.close()

"""What is left on a Kafka before a restore: nothing, everything, or some of the topics.

A restore writes into empty tables only. Where tables are left over, their topics are deleted
first, the epoch's own at the end: until then every worker sees that topics were recreated and
refuses to start.
"""

import asyncio
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import for_code

from pipeline.core.errors import Refused
from pipeline.faults import point
from pipeline.stream.epoch import Epoch, identities, read_epoch
from pipeline.stream.reader import READ_TIMEOUT_S, topic_partitions
from pipeline.stream.topics import Topics, TopicsUnusable

GROUPS_TIMEOUT_S = 15.0
DELETE_TIMEOUT_S = 60.0
POLL_S = 0.2
_NO_ERROR = 0
_UNKNOWN_TOPIC = 3

Bounds = tuple[int, int]
"""first offset, end offset."""


@dataclass(frozen=True)
class Remains:
    """What a Kafka holds. ``filled`` are the tables' topics that have had records.

    ``topic_ids`` are those of the lasting topics; ``events`` are the bounds of each partition of
    ``usage.events``, everything appended included.
    """

    topic_ids: dict[str, str]
    epoch: Epoch | None
    filled: list[str]
    events: dict[int, Bounds]


def table_topics(topics: Topics) -> list[str]:
    """The topics that can be made again from the ledger and ``usage.events``."""
    return [topics.priced, topics.partials, topics.totals, topics.ids, topics.rules]


async def find_remains(client: Mapping[str, Any], topics: Topics) -> Remains:
    """Looks at a Kafka; topics may be missing."""
    present = await _present(client, topics)
    bounds = await _bounds(client, present)
    epoch = await read_epoch(client, topics) if topics.epoch in present else None
    filled = [
        name
        for name in (topics.totals, topics.ids, topics.priced)
        if any(end > 0 for _, end in bounds.get(name, {}).values())
    ]
    ids = await identities(client, topics)
    return Remains(ids, epoch, filled, bounds.get(topics.events, {}))


async def first_timestamps_ms(
    client: Mapping[str, Any], topic: str, starts: Mapping[int, int], bounds: Mapping[int, Bounds]
) -> dict[int, int]:
    """The Kafka timestamp of the first record from ``starts`` on, by partition that has one."""
    tps = {
        TopicPartition(topic, p): end for p, (_, end) in bounds.items() if starts.get(p, 0) < end
    }
    found: dict[int, int] = {}
    if not tps:
        return found
    consumer = AIOKafkaConsumer(**client, enable_auto_commit=False)
    try:
        await consumer.start()
        consumer.assign(list(tps))
        for tp in tps:
            consumer.seek(tp, starts.get(tp.partition, 0))
        open_tps = list(tps)
        async with asyncio.timeout(READ_TIMEOUT_S):
            while open_tps:
                for tp, records in (await consumer.getmany(*open_tps, timeout_ms=200)).items():
                    found[tp.partition] = records[0].timestamp
                open_tps = [
                    tp
                    for tp in open_tps
                    if tp.partition not in found and await consumer.position(tp) < tps[tp]
                ]
    finally:
        await consumer.stop()
    return found


async def discard_tables(client: Mapping[str, Any], topics: Topics) -> None:
    """Deletes the tables' topics and then the epoch's; they are to be created anew.

    Whoever counted before must be fenced by then. Raises ``Refused`` while workers or sinks are
    members of their groups, and ``TopicsUnusable`` when the broker does not delete.
    """
    admin = AIOKafkaAdminClient(**client)
    try:
        await admin.start()
        await _wait_until_alone(admin, (topics.worker_group, topics.sink_group))
        await _delete(admin, table_topics(topics))
        point("rebuild-tables-deleted")
        await _delete(admin, [topics.epoch])
        point("rebuild-epoch-deleted")
    finally:
        await admin.close()


async def _present(client: Mapping[str, Any], topics: Topics) -> set[str]:
    admin = AIOKafkaAdminClient(**client)
    try:
        await admin.start()
        return set(await admin.list_topics()) & set(topics.names)
    finally:
        await admin.close()


async def _bounds(
    client: Mapping[str, Any], topics: Collection[str]
) -> dict[str, dict[int, Bounds]]:
    found: dict[str, dict[int, Bounds]] = {}
    if not topics:
        return found
    consumer = AIOKafkaConsumer(**client, isolation_level="read_uncommitted")
    try:
        await consumer.start()
        for topic in topics:
            tps = [TopicPartition(topic, p) for p in await topic_partitions(consumer, topic)]
            first = await consumer.beginning_offsets(tps)
            end = await consumer.end_offsets(tps)
            found[topic] = {tp.partition: (first[tp], end[tp]) for tp in tps}
        return found
    finally:
        await consumer.stop()


async def _wait_until_alone(admin: AIOKafkaAdminClient, groups: Iterable[str]) -> None:
    """A killed member stays in its group until its session ends."""
    deadline_s = asyncio.get_running_loop().time() + GROUPS_TIMEOUT_S
    for group in groups:
        while members := await _members(admin, group):
            if asyncio.get_running_loop().time() > deadline_s:
                raise Refused(
                    f"consumer group {group} still has {members} members; stop every worker and "
                    "sink first"
                )
            await asyncio.sleep(POLL_S)


async def _members(admin: AIOKafkaAdminClient, group: str) -> int:
    [answer] = await admin.describe_consumer_groups([group])
    [described] = answer.to_object()["groups"]
    return len(described["members"])


async def _delete(admin: AIOKafkaAdminClient, names: list[str]) -> None:
    answer = await admin.delete_topics(names, timeout_ms=int(DELETE_TIMEOUT_S * 1000))
    for row in answer.to_object()["topic_error_codes"]:
        if row["error_code"] not in (_NO_ERROR, _UNKNOWN_TOPIC):
            error = for_code(row["error_code"]).__name__
            raise TopicsUnusable(f"topic {row['topic']} cannot be deleted: {error}")
    deadline_s = asyncio.get_running_loop().time() + DELETE_TIMEOUT_S
    while left := set(await admin.list_topics()) & set(names):
        if asyncio.get_running_loop().time() > deadline_s:
            raise TopicsUnusable(
                f"topics {', '.join(sorted(left))} were not deleted in {DELETE_TIMEOUT_S:.0f} s"
            )
        await asyncio.sleep(POLL_S)

"""Reading a topic from its start to where it ends now, committed records only."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import OffsetOutOfRangeError
from aiokafka.structs import ConsumerRecord

from pipeline import fetched_records, topic_leaders
from pipeline.core.errors import Refused, TallyportError

fetched_records.install()
topic_leaders.install()

READ_TIMEOUT_S = 60.0
_POLL_MS = 20
"""What a transaction leaves at a topic's end moves the position and wakes nobody who waits."""


class ReadTimedOut(TallyportError):
    """A topic's end was not reached in time."""


async def read_to_end(
    client: Mapping[str, Any],
    topic: str,
    partitions: Iterable[int] | None = None,
    start: Mapping[int, int] | None = None,
    end: Mapping[int, int] | None = None,
    timeout_s: float = READ_TIMEOUT_S,
) -> AsyncIterator[list[ConsumerRecord]]:
    """Yields slices (records of one partition, in order) up to the end seen at the call.

    ``client`` holds aiokafka's connection arguments (``bootstrap_servers`` and security).
    ``start`` gives offsets to start from; the earliest otherwise. ``end`` gives the offsets to
    reach, waiting for transactions that are open before them; otherwise it is the last stable
    offset at the call, which an open transaction holds back. Raises ``ReadTimedOut`` after
    ``timeout_s`` without progress.
    """
    consumer = AIOKafkaConsumer(
        **client,
        isolation_level="read_committed",
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        fetch_max_wait_ms=50,
        max_partition_fetch_bytes=8 * 1024 * 1024,
    )
    try:
        await consumer.start()
        if partitions is None:
            partitions = sorted(await topic_partitions(consumer, topic))
        assigned = [TopicPartition(topic, p) for p in partitions]
        consumer.assign(assigned)
        ends = await consumer.end_offsets(assigned)
        if end is not None:
            ends = {tp: end[tp.partition] for tp in assigned}
        for tp in assigned:
            if start is not None and tp.partition in start:
                consumer.seek(tp, start[tp.partition])
            else:
                await consumer.seek_to_beginning(tp)
        open_tps = [tp for tp in assigned if await consumer.position(tp) < ends[tp]]
        deadline = asyncio.get_running_loop().time() + timeout_s
        while open_tps:
            batches = await consumer.getmany(*open_tps, timeout_ms=_POLL_MS)
            if batches:
                deadline = asyncio.get_running_loop().time() + timeout_s
            for tp, records in batches.items():
                records = [r for r in records if r.offset < ends[tp]]
                if records:
                    yield records
            open_tps = [tp for tp in open_tps if await consumer.position(tp) < ends[tp]]
            if open_tps and asyncio.get_running_loop().time() > deadline:
                tp = open_tps[0]
                raise ReadTimedOut(
                    f"no record of {tp.topic} partition {tp.partition} arrived for "
                    f"{timeout_s:.0f} s (at offset {await consumer.position(tp)} of {ends[tp]})"
                )
    finally:
        await consumer.stop()


async def after_last_record(
    client: Mapping[str, Any], tp: TopicPartition, start: int, end: int
) -> int:
    """The offset after the last committed record below ``end``, markers left out.

    ``start`` where there is none, which should be the first offset that Kafka holds.
    """
    reach = 64
    while end > start:
        begin = max(start, end - reach)
        last = -1
        async for records in read_to_end(
            client,
            tp.topic,
            [tp.partition],
            start={tp.partition: begin},
            end={tp.partition: end},
        ):
            last = max(last, *(r.offset for r in records if r.offset < end), -1)
        if last >= 0:
            return last + 1
        if begin == start:
            break
        reach *= 16
    return start


async def record_ends(client: Mapping[str, Any], topic: str) -> dict[int, int]:
    """The offset after the last committed record of what was appended by now, of each partition
    that has any.

    Transactions that are open are waited for: a plain record behind one is acknowledged, though
    no reader sees it yet.
    """
    consumer = AIOKafkaConsumer(
        **client, isolation_level="read_uncommitted", enable_auto_commit=False
    )
    try:
        await consumer.start()
        tps = [TopicPartition(topic, p) for p in sorted(await topic_partitions(consumer, topic))]
        starts = await consumer.beginning_offsets(tps)
        ends = await consumer.end_offsets(tps)
    finally:
        await consumer.stop()
    after = await asyncio.gather(
        *(after_last_record(client, tp, starts[tp], ends[tp]) for tp in tps)
    )
    return {tp.partition: end for tp, end in zip(tps, after, strict=True) if end > starts[tp]}


async def end_offsets(
    client: Mapping[str, Any], topic: str, partitions: Iterable[int], *, committed: bool = True
) -> dict[int, int]:
    """Where each partition ends now: its committed records, or everything that was appended."""
    level = "read_committed" if committed else "read_uncommitted"
    consumer = AIOKafkaConsumer(**client, isolation_level=level)
    try:
        await consumer.start()
        ends = await consumer.end_offsets([TopicPartition(topic, p) for p in partitions])
        return {tp.partition: offset for tp, offset in ends.items()}
    finally:
        await consumer.stop()


async def read_whole(client: Mapping[str, Any], topic: str) -> AsyncIterator[list[ConsumerRecord]]:
    """Reads a topic of one partition to what was appended at the call.

    Unlike ``read_to_end`` alone it waits for transactions that are open or have just ended.
    """
    end = await end_offsets(client, topic, [0], committed=False)
    async for records in read_to_end(client, topic, [0], end=end):
        yield records


async def open_follower(
    client: Mapping[str, Any], topic: str, fetch_max_wait_ms: int, *, whole: bool = False
) -> AIOKafkaConsumer:
    """A consumer of committed records at the start of a topic's only partition.

    A position that Kafka no longer has is an error there (see ``out_of_range``), never a reason to
    start over. Raises ``TallyportError`` when there is no such topic, and ``Refused`` where the
    log must be ``whole`` and is not. The caller stops it.
    """
    consumer = AIOKafkaConsumer(
        **client,
        isolation_level="read_committed",
        enable_auto_commit=False,
        auto_offset_reset="none",
        fetch_max_wait_ms=fetch_max_wait_ms,
    )
    try:
        await consumer.start()
        await topic_partitions(consumer, topic)
        tp = TopicPartition(topic, 0)
        first = (await consumer.beginning_offsets([tp]))[tp]
        if whole and first > 0:
            raise Refused(
                f"topic {topic} partition 0 starts at offset {first}: records that must be kept "
                "for ever were deleted. Use a new topic prefix and `tallyport rebuild`"
            )
        consumer.assign([tp])
        consumer.seek(tp, first)  # no await in between: the fetcher would miss a position
    except BaseException:
        await consumer.stop()
        raise
    return consumer


def out_of_range(error: OffsetOutOfRangeError, reader: str) -> Refused:
    """Why ``reader`` cannot go on where it stands."""
    (partitions,) = error.args
    tp, offset = next(iter(partitions.items()))
    return Refused(
        f"topic {tp.topic} partition {tp.partition} no longer has offset {offset}, where "
        f"{reader} stands: the topic was recreated or lost records"
    )


async def topic_partitions(consumer: AIOKafkaConsumer, topic: str) -> set[int]:
    """The partitions of a topic. Raises ``TallyportError`` when there is no such topic."""
    # The public ``topics()`` drops the partitions that the same answer carries.
    cluster = await consumer._client.fetch_all_metadata()  # pyright: ignore[reportPrivateUsage]
    found = cluster.partitions_for_topic(topic)
    if not found:
        raise TallyportError(f"topic {topic} does not exist; run `tallyport topics`")
    return found

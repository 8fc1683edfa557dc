"""What was committed just now, as every reader sees it.

A commit is answered before its markers have reached every partition that it wrote to. Until then
whoever asks one of these where it ends, committed records only, is told that it ends before them.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition

from pipeline.stream.reader import topic_partitions
from tests.processes import WAIT_S

POLL_S = 0.02


async def until_decided(client: Mapping[str, Any], *topics: str) -> None:
    """Returns once all that stands in the topics by now is known to be committed or aborted.

    ``client`` holds aiokafka's connection arguments.
    """
    async with asyncio.timeout(WAIT_S):
        for topic in topics:
            appended = await _ends(client, topic, "read_uncommitted")
            decided = await _ends(client, topic, "read_committed")
            while any(decided[partition] < end for partition, end in appended.items()):
                await asyncio.sleep(POLL_S)
                decided = await _ends(client, topic, "read_committed")


async def _ends(client: Mapping[str, Any], topic: str, level: str) -> dict[int, int]:
    async with AIOKafkaConsumer(**client, isolation_level=level) as consumer:
        tps = [TopicPartition(topic, p) for p in await topic_partitions(consumer, topic)]
        return {tp.partition: end for tp, end in (await consumer.end_offsets(tps)).items()}

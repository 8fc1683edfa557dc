"""Where partitions begin and end, asked without a pause for a topic the client does not know yet.

To list offsets aiokafka needs the leader of each partition. For a topic that it meets for the
first time it asks for the leaders, does not wait for the answer, fails, and tries again after its
retry pause: a tenth of a second, each time a client is made only to look where a topic ends.
``install`` lets it wait for that answer, which takes a few milliseconds.
"""

from collections.abc import Mapping
from typing import Any

from aiokafka import TopicPartition
from aiokafka.consumer.fetcher import Fetcher

_list_offsets: Any = Fetcher._proc_offset_requests  # pyright: ignore[reportPrivateUsage]


def install() -> None:
    """Makes every consumer of this process wait for leaders; harmless to repeat."""
    fetcher: Any = Fetcher
    fetcher._proc_offset_requests = _with_leaders


async def _with_leaders(fetcher: Any, timestamps: Mapping[TopicPartition, int]) -> Any:
    client = fetcher._client
    unknown = {tp.topic for tp in timestamps if client.cluster.leader_for_partition(tp) is None}
    for topic in sorted(unknown):
        await client.add_topic(topic)  # without an answer the original tries again, as ever
    return await _list_offsets(fetcher, timestamps)

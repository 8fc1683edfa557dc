"""A worker's transactions, in turns: two transactional ids, one transaction after the other.

A transaction is committed once its coordinator has said so, but its markers take some more
milliseconds to reach every partition, and until then the same id can begin nothing new. With a
second id the next flush need not wait: its transaction was prepared while the one before ran.

The order is that of a single id. A transaction is sent only after the one before was answered, so
what is committed is always a beginning of what was sent: whoever fences both ids, in any order,
may find the last transaction decided either way, and all before it committed.
"""

import asyncio
from collections import deque
from collections.abc import Mapping
from typing import Any

from aiokafka.structs import RecordMetadata, TopicPartition

from pipeline.stream.transaction import NO_OFFSETS, FencedProducer, Outbox

PREPARED_FLUSHES = 4
"""A transaction is prepared with the partitions of so many before it; more cost a request."""


def transactional_ids(owner: str) -> tuple[str, str]:
    """The ids under which ``owner`` writes; the first is that of releases with only one."""
    return owner, f"{owner}-2"


class TurnProducer:
    """The transactional producer of one worker during one assignment."""

    def __init__(self, client: Mapping[str, Any], owner: str, group_id: str) -> None:
        self._producers = [
            FencedProducer(client, one, group_id) for one in transactional_ids(owner)
        ]
        self._turn = 0
        self._written: deque[frozenset[tuple[str, int]]] = deque(maxlen=PREPARED_FLUSHES)

    async def start(self) -> None:
        """Shuts out every earlier user of the ids; returns when their transactions are decided."""
        await asyncio.gather(*(producer.start() for producer in self._producers))

    async def commit(
        self,
        outbox: Outbox,
        offsets: Mapping[TopicPartition, int] = NO_OFFSETS,
        *,
        another_follows: bool,
    ) -> list[RecordMetadata]:
        """See ``FencedProducer.commit``; the last call must have returned.

        ``another_follows`` within the transaction timeout, and one after it: then a transaction
        is prepared for when this id has its turn again.
        """
        producer = self._producers[self._turn]
        self._turn = (self._turn + 1) % len(self._producers)
        written = await producer.commit(outbox, offsets)
        if another_follows:
            self._written.append(frozenset(outbox.records))
            await producer.prepare(frozenset[tuple[str, int]]().union(*self._written))
        return written

    async def close(self) -> None:
        """Ends both producers; an open transaction is left to the next owner's fence."""
        await asyncio.gather(*(producer.close() for producer in self._producers))


async def fence(client: Mapping[str, Any], owner: str) -> None:
    """Shuts out ``owner``; every transaction that it left open is decided."""
    producer = TurnProducer(client, owner, "")
    try:
        await producer.start()
    finally:
        await producer.close()

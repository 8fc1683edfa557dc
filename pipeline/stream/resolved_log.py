"""Reading ``tallyport.resolved``: the corrections that the price stages of one assignment take.

The partitions are those of ``usage.events``, and each table says where it stands, so the reader
needs no group: it is made with an assignment and ends with it.
"""

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import OffsetOutOfRangeError
from aiokafka.structs import ConsumerRecord

from pipeline.core.errors import Refused
from pipeline.stream.reader import out_of_range

POLL_S = 0.5
ROOM_POLL_S = 0.05
MAX_WAITING_RECORDS = 5_000
MAX_TAKE_RECORDS = 1_000
MAX_TAKE_BYTES = 2 * 1024 * 1024


class ResolvedInbox:
    """Resolved corrections of one partition, in order. ``reached`` is behind the last taken one."""

    def __init__(self, position: int, arrived: asyncio.Event) -> None:
        self.reached = position
        self._end = position
        self._arrived = arrived
        self._waiting: deque[ConsumerRecord] = deque()

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits."""
        return not self._waiting

    @property
    def has_room(self) -> bool:
        """Whether more may be offered."""
        return len(self._waiting) < MAX_WAITING_RECORDS

    def offer(self, records: Sequence[ConsumerRecord], next_position: int) -> None:
        """Puts records in; ``next_position`` is where reading goes on."""
        self._waiting.extend(records)
        self._end = next_position
        if records:
            self._arrived.set()

    def take(self) -> list[ConsumerRecord]:
        """What fits into one flush; moves ``reached``."""
        taken: list[ConsumerRecord] = []
        size_bytes = 0
        while self._waiting and len(taken) < MAX_TAKE_RECORDS:
            size_bytes += len(self._waiting[0].value or b"")
            if taken and size_bytes > MAX_TAKE_BYTES:
                break
            taken.append(self._waiting.popleft())
        if taken:
            self.reached = taken[-1].offset + 1
        if not self._waiting:
            self.reached = self._end  # transaction markers may lie behind the last record
        return taken


async def read_resolved(
    client: Mapping[str, Any], topic: str, inboxes: Mapping[int, ResolvedInbox]
) -> None:
    """Fills the inboxes of these partitions until cancelled.

    Raises ``Refused`` when the log ends before an inbox's position. Where it begins after it, what
    is gone may have been markers only: the numbers of the records tell.
    """
    consumer = AIOKafkaConsumer(
        **client,
        isolation_level="read_committed",
        enable_auto_commit=False,
        auto_offset_reset="none",
        fetch_max_wait_ms=int(POLL_S * 1000),
    )
    try:
        await consumer.start()
        tps = {TopicPartition(topic, partition): inboxes[partition] for partition in inboxes}
        await _seek(consumer, tps)
        while True:
            open_tps = [tp for tp, inbox in tps.items() if inbox.has_room]
            if not open_tps:
                await asyncio.sleep(ROOM_POLL_S)
                continue
            found = await consumer.getmany(*open_tps, timeout_ms=int(POLL_S * 1000))
            for tp in open_tps:
                tps[tp].offer(found.get(tp, []), await consumer.position(tp))
    except OffsetOutOfRangeError as error:
        raise out_of_range(error, "this worker's table") from error
    finally:
        await consumer.stop()


async def _seek(consumer: AIOKafkaConsumer, tps: Mapping[TopicPartition, ResolvedInbox]) -> None:
    places = list(tps)
    firsts, ends = await consumer.beginning_offsets(places), await consumer.end_offsets(places)
    for tp, inbox in tps.items():
        if inbox.reached > ends[tp]:
            raise Refused(
                f"{tp.topic} partition {tp.partition} ends at offset {ends[tp]}, but the table of "
                f"that partition has taken corrections up to {inbox.reached}: the topic was "
                "recreated or lost records"
            )
    consumer.assign(places)
    for tp, inbox in tps.items():
        consumer.seek(tp, max(inbox.reached, firsts[tp]))

"""Which rejected records were sent again: the marks on ``tallyport.replays``.

A mark is written in the transaction that sends the records, so a record is marked exactly when it
was sent. Marks are kept a day longer than rejected records are.
"""

from array import array
from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from pipeline.core.errors import CorruptRecord
from pipeline.stream.reader import read_whole
from pipeline.stream.transaction import Record


class ReplayMark(msgspec.Struct, frozen=True):
    """The offsets of one partition of ``topic`` whose records were sent again."""

    topic: str
    partition: int
    offsets: list[int]


class ReplayMarks:
    """All marks in memory, eight bytes for each record."""

    def __init__(self) -> None:
        self._offsets: dict[tuple[str, int], array[int]] = {}

    def __contains__(self, source: tuple[str, int, int]) -> bool:
        topic, partition, offset = source
        held = self._offsets.get((topic, partition), ())
        at = bisect_left(held, offset)
        return at < len(held) and held[at] == offset

    def add(self, mark: ReplayMark) -> None:
        """Takes in a mark; one that was there before changes nothing."""
        held = self._offsets.setdefault((mark.topic, mark.partition), array("q"))
        for offset in mark.offsets:
            if (mark.topic, mark.partition, offset) not in self:
                insort(held, offset)


async def read_marks(client: Mapping[str, Any], topic: str) -> ReplayMarks:
    """Every mark; waits for transactions that have just ended.

    Raises ``CorruptRecord`` for a record that is no mark.
    """
    marks = ReplayMarks()
    async for records in read_whole(client, topic):
        for record in records:
            try:
                marks.add(msgspec.json.decode(record.value or b"", type=ReplayMark))
            except msgspec.MsgspecError as error:
                raise CorruptRecord(
                    f"{topic} partition 0 offset {record.offset}: no mark of a replay: {error}"
                ) from error
    return marks


def marks_of(sources: Sequence[tuple[str, int, int]]) -> list[ReplayMark]:
    """The marks for records of these topics, partitions and offsets."""
    offsets: dict[tuple[str, int], list[int]] = {}
    for topic, partition, offset in sources:
        offsets.setdefault((topic, partition), []).append(offset)
    return [ReplayMark(*place, found) for place, found in offsets.items()]


def mark_record(mark: ReplayMark) -> Record:
    """A mark as a record of the topic."""
    return Record(f"{mark.topic}|{mark.partition}".encode(), msgspec.json.encode(mark))

"""Tables that look as if a worker had counted for weeks, written to the journals in moments.

The production encoders write them, flush by flush, until the journal of totals is ``stretch``
times as long as what of it is live.
"""

from collections.abc import Iterator
from random import Random
from typing import Any

import msgspec
from aiokafka import AIOKafkaProducer

from pipeline.core.cells import CellValue
from pipeline.core.dedupe import encode_ids
from pipeline.core.totals import SourceTotals
from pipeline.core.windows import DAY_MS, oldest_day_needed
from pipeline.stream.id_journal import IdJournal
from pipeline.stream.journal import Journal, Position
from pipeline.stream.topics import Topics
from pipeline.stream.transaction import MAX_BATCH_BYTES, MAX_REQUEST_BYTES, Record, send_records

CELL_BYTES = 48
FLUSH_CELLS = 4_000
FLUSH_IDS = 5_000
REMEMBERED_MS = 7 * DAY_MS
"""The ids of a table are spread over so much time."""
USED = (3, 9_000, 12_345_678, 12_345_678, 0, 0)
"""The totals of a cell that has seen some use."""


class PreparedTable:
    """The records of one source partition's journals, made flush by flush, as of ``now_ms``."""

    def __init__(
        self,
        partition: int,
        values: list[CellValue],
        ids: int,
        stretch: int,
        now_ms: int,
        epoch: int,
    ) -> None:
        self.partition = partition
        self._random = Random(partition)
        self._ids = ids
        self._now_ms = now_ms
        self._limit_bytes = stretch * len(values) * CELL_BYTES
        self._values = values
        self._totals = SourceTotals()
        for value in values:
            self._totals.put(*value)
        self._position = Position(
            epoch=epoch,
            watermark_ms=now_ms,
            oldest_day=oldest_day_needed(now_ms) - 1,
            cells=len(values),
        )

    def flushes(self) -> Iterator[tuple[list[Record], list[Record]]]:
        """The records for the journal of totals, and for that of ids, flush by flush."""
        journal, ids = Journal(), IdJournal()
        written, at = 0, 0
        while written < self._limit_bytes or at < len(self._values) or ids.count < self._ids:
            first = at % max(1, len(self._values))
            changed = self._values[first : first + FLUSH_CELLS]
            at += FLUSH_CELLS
            id_records = self._id_records(ids)
            self._position = msgspec.structs.replace(
                self._position,
                flush=self._position.flush + 1,
                accepted=ids.count,
                ids=ids.count,
            )
            totals = [Record(*r) for r in journal.records(self._position, changed, self._totals)]
            written += sum(len(record.value or b"") for record in totals)
            yield totals, id_records

    def _id_records(self, ids: IdJournal) -> list[Record]:
        left = self._ids - ids.count
        count = min(FLUSH_IDS, left)
        if count <= 0:
            return []
        packed = self._random.randbytes(16 * count)
        keys = [packed[at : at + 16] for at in range(0, len(packed), 16)]
        times_ms = [self._now_ms - left * REMEMBERED_MS // self._ids] * count
        return [Record(*record) for record in ids.records(encode_ids(keys, times_ms), 0)]


async def write_table(client: dict[str, Any], topics: Topics, table: PreparedTable) -> int:
    """Writes the journals of ``table``; returns how many bytes."""
    written = 0
    producer = AIOKafkaProducer(
        **client, max_batch_size=MAX_BATCH_BYTES, max_request_size=MAX_REQUEST_BYTES
    )
    await producer.start()
    try:
        for totals, ids in table.flushes():
            sent = await send_records(producer, topics.totals, table.partition, totals)
            sent += await send_records(producer, topics.ids, table.partition, ids)
            for future, _ in sent:
                await future
            written += sum(len(record.value or b"") for record in (*totals, *ids))
    finally:
        await producer.stop()
    return written

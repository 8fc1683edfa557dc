"""What one flush of a source partition sends, record by record."""

from dataclasses import dataclass
from functools import lru_cache

from pipeline.core.adjusting import Corrected
from pipeline.core.blocks import BLOCK_VERSION, PricedBlock, encode_block, packed_rows
from pipeline.core.cells import CellValue
from pipeline.core.home import partition_of
from pipeline.core.intake import Taken
from pipeline.core.partials import PARTIAL_VERSION, Partial, encode_partial
from pipeline.core.rows import Rows
from pipeline.stream.context import StreamContext
from pipeline.stream.journal import Position
from pipeline.stream.rejected_record import rejected_record
from pipeline.stream.rules import rules_record
from pipeline.stream.tables import SourceTable
from pipeline.stream.transaction import Outbox, Record

BLOCK_ROWS = 1_000
BLOCK_BYTES = 4 * 1024 * 1024
"""Of rows: half of what a broker takes as one record of the topic."""
PARTIAL_CELLS = 5_000


class BlockRun:
    """The priced blocks of one flush, which together cover its offsets without a hole.

    ``rows`` counts their rows.
    """

    def __init__(self, epoch: int, topic: str, partition: int, first_offset: int) -> None:
        self._epoch = epoch
        self._topic = topic
        self._partition = partition
        self._next_offset = first_offset
        self.rows = 0
        self.encoded: list[bytes] = []

    def seal(self, rows: Rows, taken: Taken, next_offset: int) -> None:
        """Makes blocks of ``rows``, the last of them up to ``next_offset``.

        Makes none where nothing is left to be covered.
        """
        first = 0
        while first < len(rows):
            last = rows.run_from(first, BLOCK_ROWS, BLOCK_BYTES)
            end = int(rows.offsets[last - 1]) + 1 if last < len(rows) else next_offset
            self._seal(last - first, rows.cut(first, last), taken, end)
            first = last
        if next_offset > self._next_offset:
            self._seal(0, b"", taken, next_offset)

    def _seal(self, count: int, rows: bytes | memoryview, taken: Taken, next_offset: int) -> None:
        span = range(self._next_offset, next_offset)
        block = PricedBlock(
            BLOCK_VERSION,
            self._epoch,
            self._topic,
            self._partition,
            span.start,
            span.stop,
            packed_rows(count, rows),
            [r.record.offset for r in taken.rejected if r.record.offset in span],
            [offset for offset in taken.duplicates if offset in span],
            [f.record.offset for f in taken.forwarded if f.record.offset in span],
        )
        self.encoded.append(encode_block(block))
        self.rows += count
        self._next_offset = next_offset


@dataclass(slots=True)
class Flush:
    """One flush: the position before and after it, fates, corrections, the cells that changed.

    ``homes`` are the partitions that merge those, in the same order. ``blocks`` are encoded.
    ``rules`` says what decided (see ``stream.rules``); empty where no record was taken.
    """

    before: Position
    position: Position
    taken: Taken
    blocks: list[bytes]
    corrected: Corrected
    changed: list[CellValue]
    homes: list[int]
    rules: bytes

    def release(self) -> None:
        """Lets go of what the outbox has as bytes by now; the next flush needs the memory."""
        self.changed, self.homes, self.blocks = [], [], []
        self.taken.ids = bytearray()


@lru_cache(maxsize=65_536)
def scope_home(scope: str, partitions: int) -> int:
    """The partition whose merge owns ``scope`` and whose ``budget.state`` holds its records."""
    return partition_of(scope.encode(), partitions)


def split_partials(source: int, flush: Flush) -> list[tuple[int, Partial]]:
    """The changed cells as (merge partition, partial), the last part of each marked complete."""
    by_home: dict[int, list[CellValue]] = {}
    for home, value in zip(flush.homes, flush.changed, strict=True):
        by_home.setdefault(home, []).append(value)
    return [
        (home, partial)
        for home, cells in by_home.items()
        for partial in _parts(source, flush, cells)
    ]


def _parts(source: int, flush: Flush, cells: list[CellValue]) -> list[Partial]:
    starts = range(0, len(cells), PARTIAL_CELLS)
    return [
        Partial(
            version=PARTIAL_VERSION,
            epoch=flush.position.epoch,
            source=source,
            flush=flush.position.flush,
            part=number,
            complete=number == len(starts) - 1,
            next_offset=flush.position.next_offset,
            as_of_ms=flush.position.watermark_ms,
            cells=cells[start : start + PARTIAL_CELLS],
        )
        for number, start in enumerate(starts)
    ]


def fill_outbox(
    context: StreamContext,
    table: SourceTable,
    flush: Flush,
    partials: list[tuple[int, Partial]],
    outbox: Outbox,
) -> None:
    """Puts everything that ``flush`` sends into ``outbox``."""
    topics, partition, taken = context.topics, table.partition, flush.taken
    for key, value in table.journal.records(flush.position, flush.changed, table.totals):
        outbox.add(topics.totals, partition, Record(key, value))
    forget_before_ms = flush.position.watermark_ms - table.dedupe.horizon_ms
    for key, body in table.ids.records(bytes(taken.ids), forget_before_ms):
        outbox.add(topics.ids, partition, Record(key, body))
    if flush.position.rules_digest != flush.before.rules_digest:
        key = b"%d|%d" % (partition, flush.before.next_offset)
        value = rules_record(flush.rules, partition, flush.before.next_offset)
        outbox.add(topics.rules, 0, Record(key, value))
    for home, partial in partials:
        outbox.add(topics.partials, home, Record(b"%d" % partition, encode_partial(partial)))
    corrections = map(encode_block, _corrections(context, partition, flush))
    for block in (*flush.blocks, *corrections):
        outbox.add(topics.priced, partition, Record(b"%d" % partition, block))
    for refused in taken.rejected:
        record = rejected_record(refused.record, refused.rejection, topics.events, partition)
        outbox.add(topics.rejected, partition, record)
    for forwarded in taken.forwarded:
        source = forwarded.record  # never large: the intake rejects what could not be forwarded
        record = Record(source.key, source.value, forwarded.headers)
        outbox.add(topics.events, forwarded.home, record)


def _corrections(context: StreamContext, partition: int, flush: Flush) -> list[PricedBlock]:
    """The corrections in blocks that cover what was read of ``tallyport.resolved``."""
    corrected, first_offset = flush.corrected, flush.before.resolved_offset
    if flush.position.resolved_offset == first_offset:
        return []
    blocks: list[PricedBlock] = []
    for start in range(0, max(1, len(corrected.rows)), BLOCK_ROWS):
        stop = start + BLOCK_ROWS
        is_last = stop >= len(corrected.rows)
        next_offset = flush.position.resolved_offset if is_last else corrected.offsets[stop]
        blocks.append(
            PricedBlock(
                BLOCK_VERSION,
                flush.position.epoch,
                context.topics.resolved,
                partition,
                first_offset,
                next_offset,
                corrected.rows[start:stop],
                [],
                [offset for offset in corrected.repeats if first_offset <= offset < next_offset],
                [],
                corrected.marks[start:stop],
            )
        )
        first_offset = next_offset
    return blocks

"""The price stage: one partition of ``usage.events`` at a time, one transaction per flush.

The order of side effects of a flush (a fault point lies between each pair):

    1  take      records become rows, rejected, duplicate or forwarded; memory only
    2  begin     the transaction of this partition's own transactional id
    3  send      journal delta, ids, rules, partials, priced blocks, rejected, forwarded
    4  acked     every record is acknowledged by the broker
    5  offsets   the group's committed offset (information: the table owns the position)
    6  commit    all of it becomes visible at once, or nothing does
    7  after     the local merges hear of it, old ids and days are let go

A crash before 6 leaves nothing visible: the next owner's fence aborts the transaction, recovery
reads the table as of the last commit, and the same input is taken again. A crash after 6 loses
only what 7 does, and recovery does that too. An error in 2–6 ends the process, because memory
then knows more than the log.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import msgspec
from aiokafka import TopicPartition
from aiokafka.structs import ConsumerRecord

from pipeline import metrics
from pipeline.core.intake import Intake, Taken
from pipeline.core.partials import Partial
from pipeline.core.prices import PriceVersion
from pipeline.core.windows import DAY_MS, oldest_day_needed
from pipeline.faults import point
from pipeline.stream.context import StreamContext
from pipeline.stream.flush import Flush, fill_outbox, split_partials
from pipeline.stream.inbox import Inbox
from pipeline.stream.journal import Position
from pipeline.stream.rules import encode_rules, rules_digest
from pipeline.stream.tables import SourceTable
from pipeline.stream.transaction import FencedProducer
from pipeline.stream.transport import FetchState

log = logging.getLogger(__name__)

MAX_FLUSH_RECORDS = 20_000
CHUNK_RECORDS = 1_000
FLUSH_INTERVAL_S = 0.020
OFFSETS_INTERVAL_S = 5.0


@dataclass(slots=True)
class Mark:
    """Up to which offset, and until when, a source partition is contained in its table."""

    source: int
    flush: int
    next_offset: int
    as_of_ms: int


class PriceStage:
    """Owns one source partition between its assignment and its revocation."""

    def __init__(
        self,
        context: StreamContext,
        table: SourceTable,
        producer: FencedProducer,
        seek: Callable[[int], Awaitable[None]],
        on_commit: Callable[[list[tuple[int, Partial]]], None],
    ) -> None:
        self._context = context
        self._table = table
        self._producer = producer
        self._on_commit = on_commit
        self._intake = Intake(table.partition, context.partitions, table.totals, table.dedupe)
        self._tp = TopicPartition(context.topics.events, table.partition)
        self._offsets_sent_at = 0.0
        self._flushing = False
        self._as_of_ms = table.position.watermark_ms
        self.inbox = Inbox(table.position.next_offset, seek)

    @property
    def position(self) -> Position:
        """What the last flush committed."""
        return self._table.position

    @property
    def cell_count(self) -> int:
        """Live cells of this partition."""
        return len(self._table.totals)

    def mark(self, fetched: FetchState | None) -> Mark:
        """What this partition contains now; ``fetched`` is the last fetch of its input."""
        idle = not self._flushing and not len(self.inbox)
        next_offset = self._table.position.next_offset
        if idle and fetched is not None and self.inbox.reached >= fetched.highwater:
            # Nothing was there beyond what is contained, as of that fetch.
            age_ms = max(0, int(time.time() * 1000) - fetched.fetched_at_ms)
            self._as_of_ms = self._context.clock.now_ms() - age_ms
            next_offset = max(next_offset, self.inbox.reached)
        return Mark(self._table.partition, self.position.flush, next_offset, self._as_of_ms)

    async def run(self) -> None:
        """Flushes what arrives until cancelled; a flush that has begun is finished first."""
        while True:
            await self.inbox.arrived.wait()
            records = self.inbox.take(MAX_FLUSH_RECORDS)
            if records:
                flush = asyncio.ensure_future(self._flush(records))
                try:
                    await asyncio.shield(flush)
                except asyncio.CancelledError:
                    await flush
                    raise
                # All partitions go on at the same ticks, so that their requests, and what the
                # merges make of them, travel together.
                await asyncio.sleep(FLUSH_INTERVAL_S - time.monotonic() % FLUSH_INTERVAL_S)

    async def _flush(self, records: list[ConsumerRecord]) -> None:
        self._flushing = True
        started_s = time.perf_counter()
        await self._context.rates.wait_confirmed(self._context.settings.price_lead_s)
        prices = self._context.rates.version
        taken = await self._take(records, prices)
        point("price-taken")
        flush = self._close_flush(taken, prices)
        partials = split_partials(self._context, self._table.partition, flush)
        outbox = fill_outbox(self._context, self._table, flush, partials)
        await self._producer.commit(outbox, self._due_offsets(flush.position))
        point("price-committed")
        self._after(flush, partials)
        self._flushing = False
        metrics.FLUSH_SECONDS.observe(time.perf_counter() - started_s)

    async def _take(self, records: list[ConsumerRecord], prices: PriceVersion) -> Taken:
        taken = Taken()
        for first in range(0, len(records), CHUNK_RECORDS):
            chunk = records[first : first + CHUNK_RECORDS]
            self._intake.take(chunk, prices, self._context.limits, taken)
            await asyncio.sleep(0)  # other partitions and the merges run in this loop too
        return taken

    def _close_flush(self, taken: Taken, prices: PriceVersion) -> Flush:
        """What the taken records do to the table's position; the totals have moved already."""
        before = self._table.position
        totals = self._table.totals
        watermark_ms = max(before.watermark_ms, taken.watermark_ms)
        oldest_day = max(before.oldest_day, self._oldest_day(watermark_ms))
        # Also when no day has ended: a forwarding header may make an event of any age pass.
        totals.drop_before(oldest_day)
        changed = [
            (cell.scope, cell.day, cell.totals())
            for cell in totals.take_changed()
            if cell.day >= oldest_day
        ]
        rules = encode_rules(self._context, prices)
        position = msgspec.structs.replace(
            before,
            epoch=self._context.epoch,
            flush=before.flush + 1,
            next_offset=self.inbox.reached,
            accepted=before.accepted + len(taken.rows),
            rejected=before.rejected + len(taken.rejected),
            duplicates=before.duplicates + len(taken.duplicates),
            forwarded=before.forwarded + len(taken.forwarded),
            unpriced=before.unpriced + taken.unpriced,
            watermark_ms=watermark_ms,
            oldest_day=oldest_day,
            cells=len(totals),
            rules_digest=rules_digest(rules),
        )
        return Flush(before, position, taken, changed, rules)

    def _oldest_day(self, watermark_ms: int) -> int:
        slack_days = self._context.settings.max_event_age_days
        return min(oldest_day_needed(watermark_ms), watermark_ms // DAY_MS - slack_days - 1)

    def _due_offsets(self, position: Position) -> dict[TopicPartition, int]:
        now_s = time.monotonic()
        if now_s - self._offsets_sent_at < OFFSETS_INTERVAL_S:
            return {}
        self._offsets_sent_at = now_s
        return {self._tp: position.next_offset}

    def _after(self, flush: Flush, partials: list[tuple[int, Partial]]) -> None:
        self._table.position = flush.position
        self._as_of_ms = max(self._as_of_ms, flush.taken.watermark_ms)
        self._on_commit(partials)
        self._table.dedupe.forget_before(flush.position.watermark_ms)
        taken = flush.taken
        metrics.EVENTS_ACCEPTED.inc(len(taken.rows))
        metrics.EVENTS_DUPLICATE.inc(len(taken.duplicates))
        metrics.EVENTS_FORWARDED.inc(len(taken.forwarded))
        metrics.EVENTS_UNPRICED.inc(taken.unpriced)
        unknown = self._intake.unknown_fields
        metrics.UNKNOWN_FIELDS.inc(unknown.count)
        unknown.count = 0
        for rejected in taken.rejected:
            metrics.EVENTS_REJECTED.labels(rejected.rejection.reason).inc()

"""The price stage: what one partition of ``usage.events`` puts into a flush.

Its memory moves with ``gather``; ``committed`` says that the broker holds what was gathered. The
order in which a flush takes effect stands in ``stream.flush_loop``.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

import msgspec

from pipeline import metrics
from pipeline.core.adjusting import Corrected, take_resolved
from pipeline.core.cells import Cell
from pipeline.core.dedupe import encode_ids
from pipeline.core.errors import CorruptRecord
from pipeline.core.intake import Intake, Taken
from pipeline.core.partials import PARTIAL_VERSION, Partial
from pipeline.core.prices import PriceVersion
from pipeline.core.rows import Rows
from pipeline.core.windows import DAY_MS, oldest_day_needed
from pipeline.native.slice import usual_reader
from pipeline.stream.context import StreamContext
from pipeline.stream.flush import BlockRun, Flush, fill_outbox, scope_home
from pipeline.stream.inbox import Inbox
from pipeline.stream.resolved_log import ResolvedInbox
from pipeline.stream.rules import encode_rules, rules_digest
from pipeline.stream.tables import SourceTable
from pipeline.stream.transaction import Outbox
from pipeline.stream.transport import FetchState, Records

CHUNK_RECORDS = 1_000
POSITION_INTERVAL_S = 60.0
"""So long a position may lie behind transaction markers that nothing has followed yet."""


class PriceStage:
    """Owns one source partition between its assignment and its revocation."""

    def __init__(
        self,
        context: StreamContext,
        table: SourceTable,
        seek: Callable[[int], Awaitable[None]],
        arrived: asyncio.Event,
    ) -> None:
        self._context = context
        self._table = table
        usual = usual_reader(table.partition, context.partitions)
        self._chunk_records = CHUNK_RECORDS if usual is None else usual.max_records
        self._intake = Intake(
            table.partition, context.partitions, table.totals, table.dedupe, usual
        )
        # What has been gathered, which the table's position follows once it is committed.
        self._gathered = table.position
        self._gathered_at_s = time.monotonic()
        self._as_of_ms = table.position.watermark_ms
        self.inbox = Inbox(table.position.next_offset, seek, arrived)
        self.corrections = ResolvedInbox(table.position.resolved_offset, arrived)

    @property
    def partition(self) -> int:
        """The partition of ``usage.events``."""
        return self._table.partition

    @property
    def next_offset(self) -> int:
        """The next input offset after what was gathered."""
        return self._gathered.next_offset

    @property
    def is_idle(self) -> bool:
        """Whether neither records nor corrections wait, nor the position to be written."""
        return self.inbox.is_empty and self.corrections.is_empty and not self._must_move

    @property
    def _must_move(self) -> bool:
        # Markers alone write nothing. But when retention has deleted all there was, an offset
        # before the last marker can no longer be read from, and looks like a loss.
        waited_s = time.monotonic() - self._gathered_at_s
        return waited_s >= POSITION_INTERVAL_S and self.inbox.reached > self._gathered.next_offset

    async def gather(self, prices: PriceVersion, limit: int) -> Flush | None:
        """Takes about ``limit`` pending records at most, and corrections; None without any."""
        records = self.inbox.take(limit)
        if not records and self.corrections.is_empty and not self._must_move:
            return None
        taken, blocks = await self._take(records, prices)
        rules = encode_rules(self._context, prices) if records else None
        flush = self._close(taken, blocks, self._correct(taken), rules)
        self._gathered, self._gathered_at_s = flush.position, time.monotonic()
        self._as_of_ms = max(self._as_of_ms, flush.taken.watermark_ms)
        return flush

    def fill(self, outbox: Outbox, flush: Flush, partials: list[tuple[int, Partial]]) -> None:
        """Puts what ``flush`` writes into ``outbox``, with the partials that have to travel."""
        fill_outbox(self._context, self._table, flush, partials, outbox)
        flush.release()

    def mark(self, fetched: FetchState | None) -> Partial:
        """Up to which offset, and until when, this partition is contained in what was gathered.

        ``fetched`` is the last fetch of its input. The mark belongs into the next transaction.
        """
        next_offset = self._gathered.next_offset
        if self.inbox.is_empty and fetched is not None and self.inbox.reached >= fetched.highwater:
            # Nothing was there beyond what is contained, when that fetch was asked for. To where it
            # can be read would not do: acknowledged events may wait behind an open transaction.
            self._as_of_ms = max(self._as_of_ms, self._context.clock.at_ms(fetched.asked_at_s))
            next_offset = max(next_offset, self.inbox.reached)
        return Partial(
            PARTIAL_VERSION,
            self._context.epoch,
            self.partition,
            self._gathered.flush,
            0,
            True,
            next_offset,
            self._as_of_ms,
            [],
        )

    def committed(self, flush: Flush) -> None:
        """Takes it that the broker has committed ``flush``."""
        self._table.position = flush.position
        self._table.dedupe.forget_before(flush.position.watermark_ms)
        taken = flush.taken
        metrics.EVENTS_ACCEPTED.inc(flush.position.accepted - flush.before.accepted)
        metrics.EVENTS_DUPLICATE.inc(len(taken.duplicates))
        metrics.EVENTS_FORWARDED.inc(len(taken.forwarded))
        metrics.EVENTS_UNPRICED.inc(taken.unpriced)
        unknown = self._intake.unknown_fields
        metrics.UNKNOWN_FIELDS.inc(unknown.count)
        unknown.count = 0
        metrics.CORRECTIONS_APPLIED.inc(len(flush.corrected.rows))
        for rejected in taken.rejected:
            metrics.EVENTS_REJECTED.labels(rejected.rejection.reason).inc()

    async def _take(self, records: Records, prices: PriceVersion) -> tuple[Taken, BlockRun]:
        taken = Taken()
        context, first_offset = self._context, self._gathered.next_offset
        blocks = BlockRun(context.epoch, context.topics.events, self.partition, first_offset)
        for first in range(0, len(records), self._chunk_records):
            chunk = records[first : first + self._chunk_records]
            rows = self._intake.take(chunk, prices, self._context.limits, taken)
            blocks.seal(rows, taken, chunk[-1].offset + 1)
            if first:
                await asyncio.sleep(0)  # the fetcher, heartbeats and health run in this loop too
        blocks.seal(Rows.of([]), taken, self.inbox.reached)
        return taken, blocks

    def _correct(self, taken: Taken) -> Corrected:
        """Takes the corrections that wait; they are remembered beside the ids of ``taken``."""
        table, after = self._table, self._gathered.corrected
        try:
            records = self.corrections.take()
            corrected = take_resolved(records, after, table.totals, table.dedupe)
        except CorruptRecord as error:
            where = f"{self._context.topics.resolved} partition {table.partition}"
            raise CorruptRecord(f"{where} {error}") from error
        taken.ids += encode_ids(corrected.keys, corrected.times_ms)
        return corrected

    def _close(
        self, taken: Taken, blocks: BlockRun, corrected: Corrected, rules: bytes | None
    ) -> Flush:
        """What was taken does to the table's position; the totals have moved already.

        ``rules`` are what decided the records, None without any.
        """
        before = self._gathered
        totals = self._table.totals
        watermark_ms = max(before.watermark_ms, taken.watermark_ms)
        oldest_day = max(before.oldest_day, self._oldest_day(watermark_ms))
        # Also when no day has ended: a forwarding header may make an event of any age pass.
        totals.drop_before(oldest_day)
        cells = [cell for cell in totals.take_changed() if cell.day >= oldest_day]
        changed = [(cell.scope, cell.day, cell.totals()) for cell in cells]
        position = msgspec.structs.replace(
            before,
            epoch=self._context.epoch,
            flush=before.flush + 1,
            next_offset=self.inbox.reached,
            accepted=before.accepted + blocks.rows,
            rejected=before.rejected + len(taken.rejected),
            duplicates=before.duplicates + len(taken.duplicates),
            forwarded=before.forwarded + len(taken.forwarded),
            unpriced=before.unpriced + taken.unpriced,
            watermark_ms=watermark_ms,
            oldest_day=oldest_day,
            cells=len(totals),
            rules_digest=before.rules_digest if rules is None else rules_digest(rules),
            ids=before.ids + taken.id_count,
            resolved_offset=self.corrections.reached,
            corrected=corrected.last_number or before.corrected,
        )
        homes = [self._home(cell) if cell.home is None else cell.home for cell in cells]
        encoded = blocks.encoded
        return Flush(before, position, taken, encoded, corrected, changed, homes, rules or b"")

    def _home(self, cell: Cell) -> int:
        """The cell keeps it: with more scopes than ``scope_home`` remembers, it would be computed
        for each change."""
        home = cell.home = scope_home(cell.scope, self._context.partitions)
        return home

    def _oldest_day(self, watermark_ms: int) -> int:
        slack_days = self._context.settings.max_event_age_days
        return min(oldest_day_needed(watermark_ms), watermark_ms // DAY_MS - slack_days - 1)

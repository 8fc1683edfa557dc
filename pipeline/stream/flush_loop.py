"""The flush loop: one worker, one flush at a time, one Kafka transaction for each.

The order of side effects of a flush (a fault point lies between each pair):

    1  take      pending records of every source partition become rows, rejected, duplicate or
                 forwarded, and resolved corrections become deltas; memory only
    2  merge     their partials, and those of other workers, move the accounts that live here, and
                 changed states become records; memory only
    3  begin     the transaction of this worker's transactional id whose turn it is
    4  send      journal deltas, ids, rules, partials, priced blocks, rejected, forwarded, states,
                 heartbeats
    5  acked     every record is acknowledged by the broker
    6  offsets   the group's committed offsets (information: the table owns the position)
    7  commit    all of it becomes visible at once, or nothing does
    8  after     the tables' positions follow, old ids are let go

A crash before 7 leaves nothing visible: the next owner's fence aborts the transaction, recovery
reads the tables as of the last commit, and the same input is taken again. A crash after 7 loses
only what 8 does, and recovery does that too. An error in 3–7 ends the process, because memory then
knows more than the log.

With much input waiting, 1 and 2 of the next flush run while 3–7 of the one before are under way:
memory may be two flushes ahead of the log, one that is being sent and one that is gathered, never
three.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from aiokafka import TopicPartition
from faust.types import TP

from pipeline import metrics
from pipeline.core.partials import Partial, encode_partial
from pipeline.faults import point
from pipeline.stream.context import StreamContext
from pipeline.stream.flush import Flush, split_partials
from pipeline.stream.merging import MergeStage
from pipeline.stream.pricing import PriceStage
from pipeline.stream.transaction import Outbox, Record
from pipeline.stream.transport import FetchState
from pipeline.stream.turns import TurnProducer

MAX_FLUSH_RECORDS = 40_000
EARLY_RECORDS = 32_000
"""While a transaction is under way the next flush is begun only with so many waiting: every flush
writes each cell and state that it moved, so few large ones cost less than many small ones."""
FLUSH_INTERVAL_S = 0.004
MARK_INTERVAL_S = 0.25
OFFSETS_INTERVAL_S = 5.0
LOG_APPEND_TIME = 1

Fetched = Callable[[TP], FetchState | None]


@dataclass(slots=True)
class _Round:
    """What one transaction writes, and what to tell the stages once it has."""

    outbox: Outbox = field(default_factory=Outbox)
    flushes: list[tuple[PriceStage, Flush]] = field(default_factory=list[tuple[PriceStage, Flush]])
    offsets: dict[TopicPartition, int] = field(default_factory=dict[TopicPartition, int])
    started_s: float = 0.0


class FlushLoop:
    """Moves the stages of one assignment. ``arrived`` is set when any of them has work."""

    def __init__(
        self,
        context: StreamContext,
        producer: TurnProducer,
        prices: dict[int, PriceStage],
        merges: dict[int, MergeStage],
        arrived: asyncio.Event,
        fetched: Fetched,
    ) -> None:
        self._context = context
        self._producer = producer
        self._prices = prices
        self._merges = merges
        self._arrived = arrived
        self._fetched = fetched
        self._committing: asyncio.Task[None] | None = None
        self.commits = 0
        """How many transactions this loop has committed."""
        self.doing = "it has not gathered anything yet"
        self.awaits_rates = False
        """Whether input waits until the end of the rates has been seen."""
        self._round_at_s = 0.0
        self._marked_at_s = 0.0
        self._offsets_sent_at_s = 0.0

    async def run(self) -> None:
        """Flushes what arrives until cancelled; a commit that has begun is finished first."""
        try:
            while True:
                await self._until_due()
                if self._backlog() < EARLY_RECORDS:
                    await self._committed()
                gathered = await self._gather()
                await self._committed()
                if gathered.outbox.records:
                    self._committing = asyncio.ensure_future(self._commit(gathered))
        finally:
            await self._committed()

    async def _until_due(self) -> None:
        """Returns when something has arrived or time is up, flushes some milliseconds apart."""
        pause_s = self._round_at_s + FLUSH_INTERVAL_S - time.monotonic()
        if pause_s > 0:
            await asyncio.sleep(pause_s)
        now_s = time.monotonic()
        due_s = min(
            (merge.due_s(now_s) for merge in self._merges.values()),
            default=now_s + MARK_INTERVAL_S,
        )
        until_s = min(due_s, self._marked_at_s + MARK_INTERVAL_S) - now_s
        if until_s > 0 and not self._has_input():
            self._arrived.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(until_s):
                    await self._arrived.wait()
        self._round_at_s = time.monotonic()

    def _has_input(self) -> bool:
        return not (
            all(stage.is_idle for stage in self._prices.values())
            and all(merge.inbox.is_empty for merge in self._merges.values())
        )

    def _backlog(self) -> int:
        return sum(len(stage.inbox) for stage in self._prices.values())

    async def _gather(self) -> _Round:
        """Takes what is pending; memory only."""
        gathered = _Round(started_s=time.perf_counter())
        await self._take(gathered)
        if gathered.flushes:
            gathered.offsets = self._due_offsets()
            point("price-taken")
        self._mark(gathered.outbox)
        now_s = time.monotonic()
        for merge in self._merges.values():
            merge.gather(gathered.outbox, now_s)
        if gathered.outbox.records:
            point("merge-computed")
        return gathered

    async def _take(self, gathered: _Round) -> None:
        if all(stage.is_idle for stage in self._prices.values()):
            return
        rates = self._context.rates
        self.doing = "it takes records"
        # Marks and states go on meanwhile, and so do transactions, which may not last long.
        lead_s = self._context.settings.price_lead_s
        self.awaits_rates = not await rates.confirmed_within(MARK_INTERVAL_S, lead_s)
        if self.awaits_rates:
            return
        now_s = time.monotonic()
        limits = [merge.input_limit(now_s, MAX_FLUSH_RECORDS) for merge in self._merges.values()]
        most = min(limits, default=MAX_FLUSH_RECORDS)
        if not most:
            return
        limit = max(1, most // len(self._prices))
        for stage in self._prices.values():
            flush = await stage.gather(rates.version, limit)
            if flush is not None:
                gathered.flushes.append((stage, flush))
                stage.fill(gathered.outbox, flush, self._apply_local(stage.partition, flush))

    def _apply_local(self, source: int, flush: Flush) -> list[tuple[int, Partial]]:
        """Gives the merges that live here their partials; returns those of other workers'.

        A partial that stays here need not be written: whoever takes one of these merges over
        fences this worker first, and then finds all it committed in the totals journals.
        """
        remote: list[tuple[int, Partial]] = []
        for home, partial in split_partials(source, flush):
            if home in self._merges:
                self._merges[home].apply_local(partial)
            else:
                remote.append((home, partial))
        return remote

    def _mark(self, outbox: Outbox) -> None:
        """Now and then tells every merge partition what our source partitions contain."""
        now_s = time.monotonic()
        if now_s - self._marked_at_s < MARK_INTERVAL_S:
            return
        self._marked_at_s = now_s
        context = self._context
        for stage in self._prices.values():
            fetched = self._fetched(TP(context.topics.events, stage.partition))
            mark = stage.mark(fetched)
            if fetched is not None:
                lag = fetched.highwater - mark.next_offset
                metrics.SOURCE_LAG.labels(stage.partition).set(lag)
            record = Record(b"%d" % mark.source, encode_partial(mark))
            for home in range(context.partitions):
                outbox.add(context.topics.partials, home, record)
            for merge in self._merges.values():
                merge.apply_local(mark)

    async def _commit(self, gathered: _Round) -> None:
        self.doing = "its transaction has not been committed"
        written = await self._producer.commit(
            gathered.outbox, gathered.offsets, another_follows=True
        )
        self.commits += 1
        point("price-committed")
        for batch in written:
            if batch.timestamp_type == LOG_APPEND_TIME and batch.timestamp is not None:
                self._context.clock.observe(batch.timestamp)
        if any(flush.corrected.rows for _, flush in gathered.flushes):
            point("corrections-committed")
        for stage, flush in gathered.flushes:
            stage.committed(flush)
        metrics.FLUSH_SECONDS.observe(time.perf_counter() - gathered.started_s)

    def _due_offsets(self) -> dict[TopicPartition, int]:
        now_s = time.monotonic()
        if now_s - self._offsets_sent_at_s < OFFSETS_INTERVAL_S:
            return {}
        self._offsets_sent_at_s = now_s
        topic = self._context.topics.events
        return {
            TopicPartition(topic, stage.partition): stage.next_offset
            for stage in self._prices.values()
        }

    async def _committed(self) -> None:
        """Waits for the commit under way, if any, also while this task is being cancelled."""
        commit, self._committing = self._committing, None
        if commit is None:
            return
        try:
            await asyncio.shield(commit)
        except asyncio.CancelledError:
            await commit
            raise

"""The merge stage: the states of the scopes that are homed at one partition.

It is a view: cells come cumulative and stamped from every source partition, so any of them may be
applied again, and nothing but ``budget.state`` is written. What a crash can leave behind is a
state that was computed and not sent; recovery computes it again and sends it.

A former owner that wakes up late may still send an old state, which a plain producer cannot
prevent. Each acknowledgement says at which offset our records were written: when that is not where
our last ones ended, somebody else wrote in between, and those keys are published again with a
higher version, at the latest with the next heartbeat.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable

from aiokafka import AIOKafkaProducer
from aiokafka.structs import ConsumerRecord

from pipeline import metrics
from pipeline.core.accounts import Accounts, Change
from pipeline.core.budgets import (
    Heartbeat,
    heartbeat_json,
    heartbeat_key,
    is_heartbeat,
    parse_state,
    state_json,
)
from pipeline.core.errors import CorruptRecord
from pipeline.core.partials import Partial, decode_partial
from pipeline.core.windows import DAY_MS
from pipeline.faults import point
from pipeline.stream.context import StreamContext
from pipeline.stream.inbox import Inbox
from pipeline.stream.reader import read_to_end
from pipeline.stream.transaction import Record, send_records

log = logging.getLogger(__name__)

HEARTBEAT_S = 0.5
PUBLISH_RECORDS = 2_000
BUSY_RECORDS = 200
BUSY_INTERVAL_S = 0.1
# Without a moment when everything was published no heartbeat may move on: then input waits.
CATCH_UP_S = 1.0
TAKE_RECORDS = 1_000
VERSION_BITS = 36
VERSION_STEP = 16
VERSION_HEADER = "version"


class MergeStage:
    """Owns the states of one partition between its assignment and its revocation."""

    def __init__(
        self,
        context: StreamContext,
        partition: int,
        accounts: Accounts,
        applied: dict[int, int],
        version: int,
        state_offset: int,
        producer: AIOKafkaProducer,
        position: int,
        seek: Callable[[int], Awaitable[None]],
    ) -> None:
        self._context = context
        self._partition = partition
        self.accounts = accounts
        # By source: the last flush that is contained completely, and the part after it.
        self._applied = applied
        self._parts: dict[int, tuple[int, int]] = {}
        self._marks: dict[int, tuple[int, int]] = {}
        self._published_marks: dict[int, tuple[int, int]] = {}
        self._version = version
        self._state_offset = state_offset
        self._producer = producer
        self._local: list[Partial] = []
        self._heartbeat_at = 0.0
        self._day = 0
        self._busy_until = 0.0
        self._caught_up_at = 0.0
        self.inbox = Inbox(position, seek)

    def offer_local(self, partial: Partial) -> None:
        """Takes a partial whose transaction this process has just committed."""
        self._local.append(partial)
        self.inbox.arrived.set()

    def wake(self) -> None:
        """Makes the stage look at its accounts now, after a policy has changed."""
        self.inbox.arrived.set()

    async def run(self) -> None:
        """Applies and publishes until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._wait(loop)
            if not self._must_catch_up(loop):
                self._apply_local()
                for record in self.inbox.take(TAKE_RECORDS):
                    self._apply_record(record)
            await self._publish(loop)
            if loop.time() - self._heartbeat_at >= HEARTBEAT_S:
                self._heartbeat_at = loop.time()
                if len(self._published_marks) == self._context.partitions:
                    await self._send([self._heartbeat()])

    async def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        if self.accounts.dirty > BUSY_RECORDS and loop.time() >= self._busy_until:
            await asyncio.sleep(0)
            return
        until_s = max(0.001, self._heartbeat_at + HEARTBEAT_S - loop.time())
        if self.accounts.dirty:
            until_s = min(until_s, max(0.001, self._busy_until - loop.time()))
        try:
            await asyncio.wait_for(self.inbox.arrived.wait(), until_s)
        except TimeoutError:
            return

    def _apply_local(self) -> None:
        partials, self._local = self._local, []
        for partial in partials:
            self._apply(partial)

    def _apply_record(self, record: ConsumerRecord) -> None:
        try:
            partial = decode_partial(record.value)
        except CorruptRecord as error:
            topic = self._context.topics.partials
            where = f"{topic} partition {self._partition} offset {record.offset}"
            raise CorruptRecord(f"{where}: {error}") from error
        # The broker's time in the log ends periods; no wall clock of a worker does.
        day = record.timestamp // DAY_MS
        if day > self._day:
            self._day = day
            self.accounts.expire(record.timestamp)
        self.accounts.advance(record.timestamp)
        self._apply(partial)

    def _apply(self, partial: Partial) -> None:
        source = partial.source
        if source < 0 or partial.epoch != self._context.epoch:
            return
        if partial.cells and self._is_new(partial):
            apply_cell = self.accounts.apply_cell
            for scope, day, totals in partial.cells:
                apply_cell(source, scope, day, totals)
            self._parts[source] = (partial.flush, partial.part)
            if partial.complete:
                self._applied[source] = partial.flush
        if partial.complete:
            old_offset, old_as_of_ms = self._marks.get(source, (0, 0))
            if partial.next_offset >= old_offset:
                as_of_ms = max(old_as_of_ms, partial.as_of_ms)
                self._marks[source] = (partial.next_offset, as_of_ms)

    def _is_new(self, partial: Partial) -> bool:
        source = partial.source
        if partial.flush <= self._applied.get(source, 0):
            return False
        return (partial.flush, partial.part) > self._parts.get(source, (0, -1))

    def _must_catch_up(self, loop: asyncio.AbstractEventLoop) -> bool:
        return self.accounts.dirty > 0 and loop.time() - self._caught_up_at >= CATCH_UP_S

    async def _publish(self, loop: asyncio.AbstractEventLoop) -> None:
        accounts = self.accounts
        is_due = accounts.has_urgent or loop.time() >= self._busy_until
        if accounts.dirty and (is_due or self._must_catch_up(loop)):
            changes = accounts.changes(PUBLISH_RECORDS)
            if len(changes) > BUSY_RECORDS:
                self._busy_until = loop.time() + BUSY_INTERVAL_S
            if changes:
                point("merge-computed")
                await self._send(self._state_records(changes))
                metrics.STATES_PUBLISHED.inc(len(changes))
        if not accounts.dirty:
            self._published_marks = dict(self._marks)
            self._caught_up_at = loop.time()

    def _state_records(self, changes: Iterable[Change]) -> list[Record]:
        self._version += 1
        as_of_ms = self._context.clock.now_ms()
        return [
            Record(
                change.key.encode(),
                None if change.state is None else state_json(change.state, self._version, as_of_ms),
            )
            for change in changes
        ]

    def _heartbeat(self) -> Record:
        marks = self._published_marks
        sources = range(self._context.partitions)
        as_of_ms = min(marks[source][1] for source in sources)
        through = {source: marks[source][0] for source in sources}
        value = heartbeat_json(Heartbeat(self._partition, as_of_ms, through))
        # The header outlives compaction, so versions grow even when every state is a tombstone.
        headers = [(VERSION_HEADER, b"%d" % self._version)]
        return Record(heartbeat_key(self._partition).encode(), value, headers)

    async def _send(self, records: list[Record]) -> None:
        topic = self._context.topics.state
        for future, count in await send_records(self._producer, topic, self._partition, records):
            offset = (await future).offset
            if offset != self._state_offset:
                await self._heal(offset)
            self._state_offset = offset + count

    async def _heal(self, our_offset: int) -> None:
        """Compares anew every key that somebody else wrote before ``our_offset``."""
        topic = self._context.topics.state
        log.warning("partition %d of %s has another writer", self._partition, topic)
        start = {self._partition: self._state_offset}
        async for records in read_to_end(
            self._context.client, topic, [self._partition], start=start
        ):
            for record in records:
                key = (record.key or b"").decode(errors="replace")
                if record.offset < our_offset and not is_heartbeat(key):
                    self._version = max(self._version, version_of(record))
                    self.accounts.publish_again(key)


def version_of(record: ConsumerRecord) -> int:
    """The version a record of ``budget.state`` carries; 0 where it has none."""
    for name, value in record.headers:
        if name == VERSION_HEADER and value.isdigit():
            return int(value)
    if record.value is None or is_heartbeat(record.key or b""):
        return 0
    try:
        return parse_state(record.key or b"", record.value).version
    except CorruptRecord:
        return 0

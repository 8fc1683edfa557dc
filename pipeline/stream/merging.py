"""The merge stage: the states of the scopes that are homed at one partition.

It is a view: cells come cumulative and stamped from every source partition, so any of them may be
applied again, and nothing but ``budget.state`` is written. Its records travel in the same
transactions as everything else this worker writes, so a former owner cannot publish; what a crash
leaves unsent is computed again by the next owner.
"""

from collections.abc import Iterable

from aiokafka.structs import ConsumerRecord

from pipeline import metrics
from pipeline.core.accounts import Accounts, Change
from pipeline.core.budgets import (
    Heartbeat,
    heartbeat_json,
    heartbeat_key,
    is_heartbeat,
    parse_heartbeat,
    parse_state,
    state_json,
)
from pipeline.core.errors import CorruptRecord
from pipeline.core.partials import Partial, decode_partial
from pipeline.core.windows import DAY_MS
from pipeline.stream.context import StreamContext
from pipeline.stream.inbox import Inbox
from pipeline.stream.transaction import Outbox, Record

HEARTBEAT_S = 0.5
# Beside new states: whoever holds a reservation until ``through`` has passed is waiting for it.
STATES_HEARTBEAT_S = 0.1
PUBLISH_RECORDS = 2_000
BUSY_RECORDS = 200
BUSY_INTERVAL_S = 0.1
# Without a moment when everything was published no heartbeat may move on: then more is published at
# a time, and the sources of this worker take few records or none.
CATCH_UP_S = 1.0
CATCH_UP_RECORDS = 5_000
HELD_BACK_RECORDS = 750
TAKE_RECORDS = 1_000
VERSION_BITS = 36
VERSION_HEADER = "version"


class MergeStage:
    """Owns the states of one partition between its assignment and its revocation.

    ``last_beat`` is the heartbeat of a former owner, whose claims still hold: what it contained was
    committed, and is contained here.
    ``sources`` are the source partitions that live in the same worker: their partials come by
    ``apply_local``, and need not be read back.
    """

    def __init__(
        self,
        context: StreamContext,
        partition: int,
        accounts: Accounts,
        applied: dict[int, int],
        version: int,
        sources: Iterable[int],
        inbox: Inbox,
        last_beat: Heartbeat | None = None,
    ) -> None:
        self._context = context
        self._partition = partition
        self.accounts = accounts
        self.inbox = inbox
        # By source: the last flush that is contained completely, and the part after it.
        self._applied = applied
        self._parts: dict[int, tuple[int, int]] = {}
        self._marks: dict[int, tuple[int, int]] = {}
        self._published_marks: dict[int, tuple[int, int]] = {}
        self._version = version
        self._last_beat = last_beat or Heartbeat(partition, 0, {})
        self._local_keys = {b"%d" % source for source in sources}
        self._heartbeat_at_s = 0.0
        self._day = 0
        self._busy_until_s = 0.0
        self._caught_up_at_s = 0.0
        # What was still due after the last time; what is due before the next one came since.
        self._left_due = 0
        self._let_in_at_due: int | None = None

    def apply_local(self, partial: Partial) -> None:
        """Takes a partial of a source partition that lives in this worker."""
        self._apply(partial)

    def due_s(self, now_s: float) -> float:
        """When this stage wants to be asked again, without anything having arrived."""
        if not self.accounts.dirty:
            return self._heartbeat_at_s + HEARTBEAT_S if self._is_marked else now_s + HEARTBEAT_S
        if self.accounts.has_urgent:
            return now_s
        return max(now_s, self._busy_until_s)

    def gather(self, outbox: Outbox, now_s: float) -> None:
        """Applies what arrived, and puts the states and heartbeats that are due into ``outbox``."""
        if not self.is_behind(now_s):
            for record in self.inbox.take(TAKE_RECORDS):
                self._apply_record(record)
        has_published = self._publish(outbox, now_s)
        interval_s = STATES_HEARTBEAT_S if has_published else HEARTBEAT_S
        if self._is_marked and now_s - self._heartbeat_at_s >= interval_s:
            self._heartbeat_at_s = now_s
            outbox.add(self._context.topics.state, self._partition, self._heartbeat())

    def is_behind(self, now_s: float) -> bool:
        """Whether states have been due for too long, and more of them than go out at a time."""
        return self._left_due > 0 and self._must_catch_up(now_s)

    def input_limit(self, now_s: float, most: int) -> int:
        """How many records the sources of this worker may take now.

        ``most``; few while states have been due for too long; and none until fewer of them are
        due than when the last few were taken. A record may make any number of states due, but so
        there is always a moment when none is, after which heartbeats move on.
        """
        if not self.is_behind(now_s):
            self._let_in_at_due = None
            return most
        if self._let_in_at_due is not None and self._left_due >= self._let_in_at_due:
            return 0
        self._let_in_at_due = self._left_due
        return min(most, HELD_BACK_RECORDS)

    @property
    def _is_marked(self) -> bool:
        """Whether every source partition has said what it contains."""
        return len(self._published_marks) == self._context.partitions

    def _apply_record(self, record: ConsumerRecord) -> None:
        # The broker's time in the log ends periods; no wall clock of a worker does.
        day = record.timestamp // DAY_MS
        if day > self._day:
            self._day = day
            self.accounts.expire(record.timestamp)
        self.accounts.advance(record.timestamp)
        if record.key in self._local_keys:
            return
        try:
            partial = decode_partial(record.value)
        except CorruptRecord as error:
            topic = self._context.topics.partials
            where = f"{topic} partition {self._partition} offset {record.offset}"
            raise CorruptRecord(f"{where}: {error}") from error
        self._apply(partial)

    def _apply(self, partial: Partial) -> None:
        source = partial.source
        if source < 0 or partial.epoch != self._context.epoch:
            return
        if partial.cells and self._is_new(partial):
            self.accounts.apply_cells(source, partial.cells)
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

    def _must_catch_up(self, now_s: float) -> bool:
        return self.accounts.dirty > 0 and now_s - self._caught_up_at_s >= CATCH_UP_S

    def _publish(self, outbox: Outbox, now_s: float) -> bool:
        """Puts the states that are due into ``outbox``; whether there were any."""
        accounts = self.accounts
        changes: list[Change] = []
        is_due = accounts.has_urgent or now_s >= self._busy_until_s
        is_late = self._must_catch_up(now_s)
        if accounts.dirty and (is_due or is_late):
            changes = accounts.changes(CATCH_UP_RECORDS if is_late else PUBLISH_RECORDS)
            if len(changes) > BUSY_RECORDS:
                self._busy_until_s = now_s + BUSY_INTERVAL_S
            if changes:
                self._add_states(outbox, changes)
                metrics.STATES_PUBLISHED.inc(len(changes))
        self._left_due = accounts.dirty
        if not accounts.dirty:
            self._published_marks = dict(self._marks)
            self._caught_up_at_s = now_s
        return bool(changes)

    def _add_states(self, outbox: Outbox, changes: Iterable[Change]) -> None:
        self._version += 1
        version, as_of_ms = self._version, self._context.clock.now_ms()
        records = [
            Record(key.encode(), None if state is None else state_json(state, version, as_of_ms))
            for key, state in changes
        ]
        outbox.add_all(self._context.topics.state, self._partition, records)

    def _heartbeat(self) -> Record:
        marks, last = self._published_marks, self._last_beat
        sources = range(self._context.partitions)
        # What a new owner has seen for itself may be less than what the one before could say.
        as_of_ms = max(last.as_of_ms, min(marks[source][1] for source in sources))
        through = {source: max(last.through.get(source, 0), marks[source][0]) for source in sources}
        value = heartbeat_json(Heartbeat(self._partition, as_of_ms, through))
        # The header outlives compaction, so versions grow even when every state is a tombstone.
        headers = [(VERSION_HEADER, b"%d" % self._version)]
        return Record(heartbeat_key(self._partition).encode(), value, headers)


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


def heartbeat_in(record: ConsumerRecord, epoch: int) -> Heartbeat | None:
    """The heartbeat that a record of ``budget.state`` is; None for any other, also for one of
    another epoch, whose tables are not those of this one."""
    if record.value is None or not is_heartbeat(record.key or b""):
        return None
    if version_of(record) >> VERSION_BITS != epoch:
        return None
    try:
        return parse_heartbeat(record.key or b"", record.value)
    except CorruptRecord:
        return None

"""An in-memory Kafka: topics, partitions, offsets, transactions with fencing and their markers.

Only what readers and writers can observe is modelled. A transaction is decided at once, by its
coordinator; its markers reach the partitions one by one and later, and until then the partition's
last stable offset holds readers of committed records back. Markers and aborted records occupy
offsets. ``tests/sim/test_log_like_kafka.py`` holds this against the real one.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from aiokafka.errors import (
    ConcurrentTransactions,
    InvalidTxnState,
    OffsetOutOfRangeError,
    ProducerFenced,
    UnknownTopicOrPartitionError,
)

ONGOING, COMMITTED, ABORTED = "ongoing", "committed", "aborted"


class Draft(NamedTuple):
    """A record on its way to the log; ``timestamp_ms`` is the client's own."""

    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    timestamp_ms: int


class Entry:
    """A record, or a transaction marker, as it stands in a partition.

    It has the names by which the worker knows a record. ``appended_s`` is the simulation's own
    time, ``writer`` the process that sent it.
    """

    __slots__ = (
        "appended_s",
        "headers",
        "is_marker",
        "key",
        "offset",
        "partition",
        "timestamp",
        "timestamp_type",
        "topic",
        "transaction",
        "value",
        "writer",
    )

    def __init__(self, topic: str, partition: int, offset: int, timestamp_ms: int) -> None:
        self.topic = topic
        self.partition = partition
        self.offset = offset
        self.timestamp = timestamp_ms
        self.timestamp_type = 1
        self.key: bytes | None = None
        self.value: bytes | None = None
        self.headers: tuple[tuple[str, bytes], ...] = ()
        self.transaction: Transaction | None = None
        self.is_marker = False
        self.appended_s = 0.0
        self.writer = ""

    @property
    def is_record(self) -> bool:
        """Whether a reader of committed records may ever see it (once its fate is known)."""
        if self.is_marker:
            return False
        return self.transaction is None or self.transaction.outcome == COMMITTED


class Transaction:
    """``pending`` are the partitions that still lack the marker of the decided outcome."""

    def __init__(self, owner: "TransactionalId") -> None:
        self.owner = owner
        self.outcome = ONGOING
        self.partitions: dict[tuple[str, int], Partition] = {}
        self.pending: set[tuple[str, int]] = set()
        self.waiters: list[Callable[[], None]] = []


class MarkersUnderWay(ConcurrentTransactions):
    """The producer must come again once ``transaction`` has all its markers."""

    def __init__(self, transaction: Transaction) -> None:
        super().__init__()
        self.transaction = transaction


@dataclass
class TransactionalId:
    """What the coordinator knows of one ``transactional.id``."""

    name: str
    epoch: int = -1
    current: Transaction | None = None
    timeout_s: float = 10.0


@dataclass
class TopicConfig:
    """What the simulation needs to know of a topic."""

    name: str
    partitions: int
    compacted: bool
    log_append_time: bool


class Partition:
    """One log. ``entries`` may have holes where compaction took records away."""

    def __init__(self, config: TopicConfig, number: int) -> None:
        self.config = config
        self.topic = config.name
        self.number = number
        self.entries: list[Entry] = []
        self.history: list[Entry] = []
        self.start = 0
        self.end = 0
        self.open: dict[Transaction, int] = {}
        self.waiters: list[Callable[[], None]] = []

    @property
    def last_stable(self) -> int:
        """Where the records whose fate is known end."""
        return min(self.open.values()) if self.open else self.end

    def append(self, entry: Entry) -> None:
        self.entries.append(entry)
        self.history.append(entry)
        self.end = entry.offset + 1

    def read(self, position: int, limit: int, *, committed: bool = True) -> tuple[list[Entry], int]:
        """Up to ``limit`` visible records from ``position`` on, and the position after them."""
        if not self.start <= position <= self.end:
            raise OffsetOutOfRangeError({(self.topic, self.number): position})
        end = self.last_stable if committed else self.end
        records: list[Entry] = []
        first = bisect_left(self.entries, position, key=_offset_of)
        for entry in self.entries[first:]:
            if entry.offset >= end:
                break
            visible = entry.is_record if committed else not entry.is_marker
            if visible:
                if len(records) >= limit:
                    return records, entry.offset
                records.append(entry)
        return records, max(position, end)

    def records(self) -> Iterator[Entry]:
        """All visible records of the log as it is now."""
        end = self.last_stable
        return (e for e in self.entries if e.offset < end and e.is_record)

    def record_history(self) -> Iterator[Entry]:
        """All visible records that ever were, also those that compaction or retention removed."""
        end = self.last_stable
        return (e for e in self.history if e.offset < end and e.is_record)

    def wake(self) -> None:
        waiters, self.waiters = self.waiters, []
        for waiter in waiters:
            waiter()


def _offset_of(entry: Entry) -> int:
    return entry.offset


@dataclass
class Log:
    """All topics and the transaction coordinator. Every method is one step at the broker.

    ``now_ms`` is the broker's wall clock, ``now_s`` the simulation's time. ``later`` schedules a
    marker's arrival: it gets (number of markers already waiting, what to do).
    """

    now_ms: Callable[[], int]
    now_s: Callable[[], float]
    later: Callable[[int, Callable[[], None]], None]
    topics: dict[str, dict[int, Partition]] = field(default_factory=dict[str, dict[int, Partition]])
    ids: dict[str, TransactionalId] = field(default_factory=dict[str, TransactionalId])
    on_append: list[Callable[[Partition, list[Entry]], None]] = field(
        default_factory=list[Callable[["Partition", list[Entry]], None]]
    )

    def create(self, configs: Iterable[TopicConfig]) -> None:
        for config in configs:
            self.topics[config.name] = {
                number: Partition(config, number) for number in range(config.partitions)
            }

    def partition(self, topic: str, number: int) -> Partition:
        try:
            return self.topics[topic][number]
        except KeyError:
            raise UnknownTopicOrPartitionError(topic) from None

    # -- writing ---------------------------------------------------

    def append(
        self,
        topic: str,
        number: int,
        drafts: Iterable[Draft],
        writer: str = "",
        producer: tuple[str, int] | None = None,
    ) -> tuple[int, int]:
        """Appends a batch; returns its first offset and timestamp.

        ``producer`` is (transactional id, epoch) inside a transaction.
        """
        partition = self.partition(topic, number)
        transaction = None if producer is None else self._joined(producer, partition)
        now_ms = self.now_ms()
        first, timestamp = partition.end, now_ms
        added: list[Entry] = []
        for draft in drafts:
            timestamp = now_ms if partition.config.log_append_time else draft.timestamp_ms
            entry = Entry(topic, number, partition.end, timestamp)
            entry.key, entry.value, entry.headers = draft.key, draft.value, draft.headers
            entry.transaction, entry.writer, entry.appended_s = transaction, writer, self.now_s()
            partition.append(entry)
            added.append(entry)
        for listener in self.on_append:
            listener(partition, added)
        if transaction is None:
            partition.wake()
        return first, timestamp

    def register(self, producer: tuple[str, int], topic: str, number: int) -> None:
        """Adds a partition to the open transaction: it gets a marker, whatever is written."""
        transaction = self._ongoing(producer)
        transaction.partitions[topic, number] = self.partition(topic, number)

    def _joined(self, producer: tuple[str, int], partition: Partition) -> Transaction:
        transaction = self._ongoing(producer)
        transaction.partitions[partition.topic, partition.number] = partition
        # Readers are held back from the first data on.
        partition.open.setdefault(transaction, partition.end)
        return transaction

    def _ongoing(self, producer: tuple[str, int]) -> Transaction:
        transaction = self._current(producer)
        if transaction is None or transaction.outcome != ONGOING:
            raise InvalidTxnState()
        return transaction

    # -- transactions ---------------------------------------------------

    def init_producer(self, name: str, timeout_s: float) -> int:
        """Shuts out earlier producers of that id; returns the new epoch.

        Raises ``MarkersUnderWay`` until what was left open has its markers everywhere.
        """
        owner = self.ids.setdefault(name, TransactionalId(name))
        owner.timeout_s = timeout_s
        transaction = owner.current
        if transaction is not None:
            if transaction.outcome == ONGOING:
                owner.epoch += 1
                self._decide(transaction, ABORTED)
            if transaction.pending:
                raise MarkersUnderWay(transaction)
            owner.current = None
        owner.epoch += 1
        return owner.epoch

    def begin(self, producer: tuple[str, int]) -> None:
        """The first partition of a new transaction is being added.

        Raises ``MarkersUnderWay`` while the markers of the one before are on their way.
        """
        transaction = self._current(producer)
        owner = self.ids[producer[0]]
        if transaction is not None:
            if transaction.pending:
                raise MarkersUnderWay(transaction)
            if transaction.outcome == ONGOING:
                return
        owner.current = Transaction(owner)

    def end_transaction(self, producer: tuple[str, int], outcome: str) -> None:
        """Decides; asking again for what was decided already is harmless."""
        transaction = self._current(producer)
        if transaction is None:
            raise InvalidTxnState()
        if transaction.outcome == ONGOING:
            self._decide(transaction, outcome)
        elif transaction.outcome != outcome:
            raise InvalidTxnState()

    def expire(self, transaction: Transaction) -> None:
        """The coordinator aborts what took too long, and shuts its producer out."""
        if transaction.outcome == ONGOING and transaction.owner.current is transaction:
            transaction.owner.epoch += 1
            self._decide(transaction, ABORTED)

    def _current(self, producer: tuple[str, int]) -> Transaction | None:
        owner = self.ids.get(producer[0])
        if owner is None or producer[1] != owner.epoch:
            raise ProducerFenced()
        return owner.current

    def _decide(self, transaction: Transaction, outcome: str) -> None:
        transaction.outcome = outcome
        transaction.pending = set(transaction.partitions)
        for number, place in enumerate(transaction.partitions):
            self.later(number, lambda place=place: self._mark(transaction, place))

    def _mark(self, transaction: Transaction, place: tuple[str, int]) -> None:
        partition = transaction.partitions[place]
        marker = Entry(partition.topic, partition.number, partition.end, self.now_ms())
        marker.is_marker, marker.transaction = True, transaction
        marker.appended_s = self.now_s()
        partition.append(marker)
        partition.open.pop(transaction, None)
        transaction.pending.discard(place)
        if not transaction.pending:
            waiters, transaction.waiters = transaction.waiters, []
            for waiter in waiters:
                waiter()
        partition.wake()

    # -- what brokers do on their own ---------------------------------------------------

    def compact(self, topic: str, number: int, until_s: float, keeps: Callable[[], bool]) -> int:
        """A pass of the cleaner over what was appended before ``until_s``; returns what went.

        A record goes when a later committed one, also below the bound, has its key. ``keeps``
        says of each that could go whether it stays for now, as the cleaner works in parts.
        """
        partition = self.partition(topic, number)
        stable = partition.last_stable
        old = [e for e in partition.entries if e.offset < stable and e.appended_s < until_s]
        newest = {e.key: e.offset for e in old if e.is_record}
        gone = {
            e.offset for e in old if not (e.is_record and newest[e.key] == e.offset) and not keeps()
        }
        partition.entries = [e for e in partition.entries if e.offset not in gone]
        return len(gone)

    def delete_before(self, topic: str, number: int, offset: int) -> int:
        """Retention: the log starts at ``offset`` from now on; returns how much went."""
        partition = self.partition(topic, number)
        before = len(partition.entries)
        partition.start = max(partition.start, min(offset, partition.last_stable))
        partition.entries = [e for e in partition.entries if e.offset >= partition.start]
        return before - len(partition.entries)

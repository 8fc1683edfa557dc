"""The newest states of ``budget.state`` in memory, and how far they can be trusted.

Pure: it is handed records and the time, and asks nobody. Times are seconds of a monotonic clock.
"""

from collections.abc import Iterable
from typing import NamedTuple

from pipeline.core.budgets import (
    Heartbeat,
    StateRecord,
    StateTable,
    is_heartbeat,
    parse_heartbeat,
)
from pipeline.core.decision import INITIALIZING, LIVE, STALE, Asked
from pipeline.core.errors import CorruptRecord, InvalidField
from pipeline.core.scopes import RecordKey, parse_key

STALE_AFTER_S = 5.0
"""A partition whose ``as_of`` has not advanced for so long no longer counts."""


class Entry(NamedTuple):
    """A state that holds for an id, and the partition that keeps it up to date.

    ``partition`` is None where a wildcard's state stands in: the id's own may come on any.
    """

    record: StateRecord
    partition: int | None


class Standing(Asked):
    """A mirrored policy that is asked; its ``as_of_ms`` moves on with its partition."""

    __slots__ = ("entry",)

    def __init__(self, entry: Entry, as_of_ms: int, freshness: str, reserved: int) -> None:
        super().__init__(entry.record.state, as_of_ms, freshness, reserved)
        self.entry = entry


class _Beat:
    """What one partition last said about itself, and when ``as_of`` advanced, as seen here."""

    __slots__ = ("advanced_s", "as_of_ms", "through")

    def __init__(self, now_s: float) -> None:
        self.as_of_ms = 0
        self.advanced_s = now_s
        self.through: dict[int, int] = {}


class _Snapshot:
    """States with the partition each came from."""

    def __init__(self) -> None:
        self.table = StateTable()
        self.partition_of: dict[tuple[str, str, str], int] = {}


class Mirror:
    """Takes the records of ``budget.state`` in the order of each partition.

    A reader calls ``begin`` before it reads the topic from its start, ``take`` for every record,
    and ``caught_up`` when all that was there has been taken; then it goes on with ``take``. A
    second ``begin`` starts anew beside the old states, which hold until the next ``caught_up``.
    """

    def __init__(self, partitions: int = 0) -> None:
        self.unreadable = 0
        self._partitions = partitions
        self._snapshot = _Snapshot()
        self._incoming: _Snapshot | None = self._snapshot
        self._beats: dict[int, _Beat] = {}
        self._is_initialized = False

    def __len__(self) -> int:
        """How many states are mirrored."""
        return len(self._snapshot.table)

    def begin(self, partitions: int) -> None:
        """All states will be sent again, those of ``partitions`` partitions."""
        self._partitions = partitions
        self._incoming = _Snapshot()

    def caught_up(self, now_s: float, partitions: int | None = None) -> None:
        """Everything that was there at ``begin`` has been taken."""
        if partitions is not None:
            self._partitions = partitions
        if self._incoming is not None:
            self._snapshot, self._incoming = self._incoming, None
        if not self._is_initialized:
            self._is_initialized = True
            # What was said before anybody listened says nothing about now.
            for beat in self._beats.values():
                beat.advanced_s = now_s
        for partition in range(self._partitions):
            self._beat_of(partition, now_s)

    def take(
        self, partition: int, key: bytes | str, value: bytes | None, now_s: float
    ) -> StateRecord | RecordKey | Heartbeat | None:
        """Takes one record; returns the new state, the key that was taken away, or the heartbeat.

        None for what changes nothing: an older version, or a record that cannot be read, which
        ``unreadable`` counts and which leaves the last readable one in place.
        """
        try:
            if is_heartbeat(key):
                return None if value is None else self._beat(parse_heartbeat(key, value), now_s)
            return self._state(partition, key, value)
        except (CorruptRecord, InvalidField):
            self.unreadable += 1
            return None

    def freshness(self, now_s: float, partition: int | None = None) -> str:
        """That of one partition, or without one the worst of all: INITIALIZING, LIVE or STALE."""
        if not self._is_initialized:
            return INITIALIZING
        since_s = now_s - STALE_AFTER_S
        if partition is not None and partition in self._beats:
            return LIVE if self._beats[partition].advanced_s > since_s else STALE
        is_live = all(beat.advanced_s > since_s for beat in self._beats.values())
        return LIVE if is_live else STALE

    def turns_stale_s(self, now_s: float) -> float:
        """When the next partition becomes stale, unless it advances."""
        fresh = (beat.advanced_s + STALE_AFTER_S for beat in self._beats.values())
        return min((at_s for at_s in fresh if at_s > now_s), default=now_s + STALE_AFTER_S)

    def as_of_ms(self, partition: int | None = None) -> int:
        """Up to when a partition's states are contained, or without one those of all."""
        if partition is not None and partition in self._beats:
            return self._beats[partition].as_of_ms
        return min((beat.as_of_ms for beat in self._beats.values()), default=0)

    def through(self, partition: int) -> dict[int, int]:
        """By partition of ``usage.events``, the next offset that a partition's states contain."""
        beat = self._beats.get(partition)
        return {} if beat is None else beat.through

    @property
    def partitions(self) -> Iterable[int]:
        """The partitions of ``budget.state`` that are known."""
        return self._beats.keys()

    def now_ms(self, now_s: float) -> int | None:
        """The time by the newest heartbeat; None while none is fresh.

        Periods end by this clock: that of the machine may be wrong and would open a cap early.
        """
        return max(
            (
                beat.as_of_ms + int((now_s - beat.advanced_s) * 1000)
                for beat in self._beats.values()
                if beat.as_of_ms and beat.advanced_s > now_s - STALE_AFTER_S
            ),
            default=None,
        )

    def entries(self, scope: str, now_ms: int) -> list[Entry]:
        """The states that count for ``scope`` (internal form) at ``now_ms``."""
        if not self._is_initialized:
            return []
        partition_of = self._snapshot.partition_of
        return [
            # A plain tuple is found as its named kind is, and is quicker made.
            Entry(record, partition_of.get((scope, record.state.unit, record.state.period)))
            for record in self._snapshot.table.asked([scope], now_ms)
        ]

    def everything(self) -> list[Entry]:
        """Every mirrored state as it was last sent, with its partition."""
        partition_of = self._snapshot.partition_of
        return [
            Entry(record, partition_of.get(RecordKey(state.scope, state.unit, state.period)))
            for record in self._snapshot.table.records()
            for state in (record.state,)
        ]

    def asked(self, scopes: Iterable[str], now_ms: int, now_s: float) -> list[Standing]:
        """The policies to ask for ``scopes``, each with the freshness of its partition."""
        return [self.ask(entry, now_s) for scope in scopes for entry in self.entries(scope, now_ms)]

    def ask(self, entry: Entry, now_s: float, reserved: int = 0) -> Standing:
        """One policy as it stands now, with ``reserved`` beside what it counts as used."""
        return Standing(
            entry, self.contained_ms(entry), self.freshness(now_s, entry.partition), reserved
        )

    def contained_ms(self, entry: Entry) -> int:
        """Up to when the state contains everything."""
        return max(entry.record.as_of_ms, self.as_of_ms(entry.partition))

    def _beat(self, heartbeat: Heartbeat, now_s: float) -> Heartbeat | None:
        beat = self._beat_of(heartbeat.partition, now_s)
        if heartbeat.as_of_ms < beat.as_of_ms:  # from before, when everything is sent again
            return None
        beat.through = heartbeat.through
        if heartbeat.as_of_ms > beat.as_of_ms:
            beat.as_of_ms, beat.advanced_s = heartbeat.as_of_ms, now_s
        return heartbeat

    def _beat_of(self, partition: int, now_s: float) -> _Beat:
        beat = self._beats.get(partition)
        if beat is None:
            beat = _Beat(now_s)
            # Replaced, not changed: other threads may be looking through it.
            self._beats = {**self._beats, partition: beat}
        return beat

    def _state(
        self, partition: int, key: bytes | str, value: bytes | None
    ) -> StateRecord | RecordKey | None:
        snapshot = self._snapshot if self._incoming is None else self._incoming
        record = snapshot.table.put(key, value)
        if record is not None:
            state = record.state
            snapshot.partition_of[RecordKey(state.scope, state.unit, state.period)] = partition
            return record
        if value is not None:
            return None
        gone = parse_key(key)
        snapshot.partition_of.pop(gone, None)
        return gone

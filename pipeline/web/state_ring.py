"""The latest changes of budget states in the order they came, for subscribers to catch up with.

One ring serves all of them: a subscriber is no more than a place in it, so nobody's slowness
takes memory. Who falls behind the oldest entry is sent everything anew. Pure: no I/O, no clock.
"""

import re
from typing import Final, NamedTuple

import msgspec

from pipeline.core.budgets import StateRecord, state_fields
from pipeline.core.scopes import RecordKey, format_scope, record_key

ENTRIES: Final = 20_000
RESUME_WITHIN_S: Final = 12 * 3600
"""Kafka forgets deletions after a day, so a subscriber that was away longer starts anew."""

_ID: Final = re.compile(r"([0-9a-f]{8})-([0-9]{1,12})-([0-9]{1,19}(?:\.[0-9]{1,19}){0,9999})")


class Entry:
    """One change: a state, or without ``record`` its removal."""

    __slots__ = ("_data", "key", "offset", "partition", "record")

    def __init__(
        self, partition: int, offset: int, key: RecordKey, record: StateRecord | None
    ) -> None:
        self.partition = partition
        self.offset = offset
        self.key = key
        self.record = record
        self._data: bytes | None = None

    @property
    def data(self) -> bytes:
        """The change as JSON, made once for all subscribers."""
        if self._data is None:
            self._data = msgspec.json.encode(change_fields(self.key, self.record, self.partition))
        return self._data


def change_fields(
    key: RecordKey, record: StateRecord | None, partition: int | None
) -> dict[str, object]:
    """A state as on the wire, with its record key (JSON alone cannot tell the id ``*`` from the
    wildcard) and the partition whose heartbeat speaks for it."""
    where = {"key": record_key(*key), "partition": partition}
    if record is not None:
        return {**state_fields(*record), **where}
    scope = format_scope(key.scope)
    return {"scope": scope, "unit": key.unit, "period": key.period, **where, "deleted": True}


def key_of(record: StateRecord) -> RecordKey:
    """The parts of the key that a state is kept under."""
    return RecordKey(record.state.scope, record.state.unit, record.state.period)


class Position(NamedTuple):
    """Where a subscriber stands: its next entry, and by partition the next offset it lacks."""

    place: int
    offsets: tuple[int, ...]


class StateRing:
    """The last ``ENTRIES`` changes of a log, which is named ``log_id``."""

    def __init__(self, log_id: str, partitions: int, entries: int = ENTRIES) -> None:
        self.log_id = log_id
        self._entries: list[Entry | None] = [None] * entries
        self._next_place = 0
        self._taken = [0] * partitions
        self._floor = [0] * partitions

    @property
    def end(self) -> Position:
        """Where a subscriber stands that has everything."""
        return Position(self._next_place, tuple(self._taken))

    @property
    def _oldest_place(self) -> int:
        return max(0, self._next_place - len(self._entries))

    def begin(self, partition: int, offset: int) -> None:
        """The first record that will come from a partition has at least this offset."""
        self._floor[partition] = self._taken[partition] = offset

    def passed(self, partition: int, next_offset: int) -> None:
        """Everything of a partition below ``next_offset`` has been taken."""
        self._taken[partition] = max(self._taken[partition], next_offset)

    def add(self, entry: Entry) -> None:
        """Takes the next change; the oldest one makes room for it."""
        at = self._next_place % len(self._entries)
        oldest = self._entries[at]
        if oldest is not None:
            self._floor[oldest.partition] = oldest.offset + 1
        self._entries[at] = entry
        self._next_place += 1

    def since(self, position: Position, most: int) -> list[Entry] | None:
        """The next changes after a position, in order; None when they are no longer there."""
        if position.place < self._oldest_place:
            return None
        end = min(position.place + most, self._next_place)
        size = len(self._entries)
        found = (self._entries[place % size] for place in range(position.place, end))
        return [
            entry
            for entry in found
            if entry is not None and entry.offset >= position.offsets[entry.partition]
        ]

    def after(self, position: Position, most: int, seen: list[Entry]) -> Position:
        """The position behind the ``seen`` entries that ``since`` gave."""
        place = min(position.place + most, self._next_place)
        if place == self._next_place:
            return self.end
        offsets = list(position.offsets)
        for entry in seen:
            offsets[entry.partition] = max(offsets[entry.partition], entry.offset + 1)
        return Position(place, tuple(offsets))

    def event_id(self, offsets: tuple[int, ...], now_s: float) -> str:
        """The id under which a subscriber that lacks ``offsets`` and later ones can come back."""
        return f"{self.log_id}-{int(now_s)}-{'.'.join(map(str, offsets))}"

    def resume(self, event_id: str, now_s: float) -> Position | None:
        """The position of a subscriber that comes back; None when it has to start anew."""
        match = _ID.fullmatch(event_id)
        if match is None or match[1] != self.log_id:
            return None
        offsets = tuple(map(int, match[3].split(".")))
        if len(offsets) != len(self._taken) or not -60 < now_s - int(match[2]) < RESUME_WITHIN_S:
            return None
        bounds = zip(self._floor, offsets, self._taken, strict=True)
        if not all(floor <= offset <= taken for floor, offset, taken in bounds):
            return None
        return Position(self._oldest_place, offsets)

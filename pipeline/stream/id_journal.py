"""The journal of remembered event ids on one compacted partition.

Each flush writes its new ids as a *delta* in a slot of a ring (key ``d|SLOT``). When the ring is
full its deltas are written again as one *segment* (key ``g|NUMBER``) and the slots are used anew.
A segment whose youngest id is beyond the horizon gets a tombstone. Loading an id twice is harmless.
"""

import struct
from collections import deque

from pipeline.core.dedupe import ENTRY_BYTES, DedupeWindow, encode_ids
from pipeline.core.errors import CorruptRecord

RING_SLOTS = 256
SEGMENT_BYTES = 512 * 1024
_HEADER = struct.Struct(">Bq")
_VERSION = 1

JournalRecords = list[tuple[bytes, bytes | None]]


def segment_record(number: int, newest_ms: int, ids: bytes) -> tuple[bytes, bytes]:
    """The (key, value) of a segment; ``ids`` as ``encode_ids`` packs them."""
    return b"g|%d" % number, _HEADER.pack(_VERSION, newest_ms) + ids


class IdJournal:
    """Which records a flush must send so that its ids survive, and what to read back."""

    def __init__(self) -> None:
        self._deltas: dict[int, bytes] = {}
        self._delta_bytes = 0
        self._newest_ms = 0
        self._segments: deque[tuple[int, int]] = deque()
        self._next_segment = 0

    def records(
        self, keys: list[bytes], times_ms: list[int], forget_before_ms: int
    ) -> JournalRecords:
        """The (key, value) records of a flush that accepted ``keys`` at ``times_ms``."""
        written: JournalRecords = []
        if keys:
            if len(self._deltas) >= RING_SLOTS or self._delta_bytes >= SEGMENT_BYTES:
                written.append(self._seal())
            slot = len(self._deltas)
            ids = encode_ids(keys, times_ms)
            newest_ms = max(times_ms)
            self._deltas[slot] = ids
            self._delta_bytes += len(ids)
            self._newest_ms = max(self._newest_ms, newest_ms)
            written.append((b"d|%d" % slot, _HEADER.pack(_VERSION, newest_ms) + ids))
        while self._segments and self._segments[0][1] < forget_before_ms:
            number, _ = self._segments.popleft()
            written.append((b"g|%d" % number, None))
        return written

    def restore_segment(self, number: int, newest_ms: int) -> None:
        """Takes a segment that recovery found; in the order of their numbers."""
        self._segments.append((number, newest_ms))
        self._next_segment = max(self._next_segment, number + 1)

    def restore_delta(self, slot: int, newest_ms: int, ids: bytes) -> None:
        """Takes a delta that recovery found in ``slot``."""
        self._deltas[slot] = ids
        self._delta_bytes += len(ids)
        self._newest_ms = max(self._newest_ms, newest_ms)

    def _seal(self) -> tuple[bytes, bytes]:
        number = self._next_segment
        self._next_segment += 1
        record = segment_record(number, self._newest_ms, b"".join(self._deltas.values()))
        self._segments.append((number, self._newest_ms))
        self._deltas.clear()
        self._delta_bytes = 0
        return record


class IdJournalReader:
    """Feeds one partition's id journal into a dedupe window and readies its journal."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._values: dict[tuple[bytes, int], bytes] = {}

    def feed(self, key: bytes | None, value: bytes | None, offset: int) -> None:
        """Takes one record; raises ``CorruptRecord`` naming the topic, partition and offset."""
        kind, _, number = (key or b"").partition(b"|")
        if kind not in (b"d", b"g") or not number.isdigit():
            raise CorruptRecord(f"{self._name} offset {offset}: unknown journal key {key!r}")
        place = (kind, int(number))
        if value is None:
            self._values.pop(place, None)
            return
        size = len(value) - _HEADER.size
        if size < 0 or size % ENTRY_BYTES or value[0] != _VERSION:
            raise CorruptRecord(f"{self._name} offset {offset}: not an id record of version 1")
        self._values[place] = value

    def restore(self, dedupe: DedupeWindow) -> IdJournal:
        """Loads every id into ``dedupe`` and returns the journal to go on with."""
        journal = IdJournal()
        for (kind, number), value in sorted(self._values.items()):
            _, newest_ms = _HEADER.unpack_from(value)
            ids = value[_HEADER.size :]
            dedupe.load(ids)
            if kind == b"g":
                journal.restore_segment(number, newest_ms)
            else:
                journal.restore_delta(number, newest_ms, ids)
        return journal

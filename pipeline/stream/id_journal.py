"""The journal of remembered event ids on one compacted partition.

Each flush writes its new ids as a *delta* in a slot of a ring (key ``d|SLOT``). When the ring is
full its deltas are written again as one *segment* (key ``g|NUMBER``) and the slots are used anew,
from 0 on. A segment whose youngest id is beyond the horizon gets a tombstone.

Every record says how many ids were journalled before its own. So segments and deltas join end to
end up to the number in the table's position, and a hole or a lost end is noticed.
"""

import struct
from collections import deque
from itertools import pairwise
from typing import NamedTuple

from pipeline.core.dedupe import ENTRY_BYTES, DedupeWindow, newest_of
from pipeline.core.errors import CorruptRecord

RING_SLOTS = 256
SEGMENT_BYTES = 512 * 1024
_HEADER = struct.Struct(">Bqq")
_VERSION = 2

JournalRecords = list[tuple[bytes, bytes | None]]


def segment_record(number: int, first: int, newest_ms: int, ids: bytes) -> tuple[bytes, bytes]:
    """The (key, value) of a segment of ids packed by ``encode_ids``.

    ``first`` ids were journalled before them; ``newest_ms`` is their latest Kafka time.
    """
    return b"g|%d" % number, _HEADER.pack(_VERSION, newest_ms, first) + ids


class IdJournal:
    """Which records a flush must send so that its ids survive, and what to read back."""

    def __init__(self) -> None:
        self._deltas: list[bytes] = []
        self._delta_bytes = 0
        self._newest_ms = 0
        self._segments: deque[tuple[int, int]] = deque()
        self._next_segment = 0
        self.count = 0
        """How many ids have been journalled since the epoch began."""

    def records(self, ids: bytes, forget_before_ms: int) -> JournalRecords:
        """The (key, value) records of a flush that accepted ``ids`` (see ``encode_ids``)."""
        written: JournalRecords = []
        if ids:
            if len(self._deltas) >= RING_SLOTS or self._delta_bytes >= SEGMENT_BYTES:
                written.append(self._seal())
            slot = len(self._deltas)
            newest_ms = newest_of(ids)
            written.append((b"d|%d" % slot, _HEADER.pack(_VERSION, newest_ms, self.count) + ids))
            self.restore_delta(newest_ms, ids)
            self.count += len(ids) // ENTRY_BYTES
        while self._segments and self._segments[0][1] < forget_before_ms:
            number, _ = self._segments.popleft()
            written.append((b"g|%d" % number, None))
        return written

    def restore_segment(self, number: int, newest_ms: int) -> None:
        """Takes a segment that recovery found; in the order of their numbers."""
        self._segments.append((number, newest_ms))
        self._next_segment = max(self._next_segment, number + 1)

    def restore_delta(self, newest_ms: int, ids: bytes) -> None:
        """Takes the delta in the next slot."""
        self._deltas.append(ids)
        self._delta_bytes += len(ids)
        self._newest_ms = max(self._newest_ms, newest_ms)

    def _seal(self) -> tuple[bytes, bytes]:
        number = self._next_segment
        self._next_segment += 1
        ids = b"".join(self._deltas)
        record = segment_record(number, self.count - len(ids) // ENTRY_BYTES, self._newest_ms, ids)
        self._segments.append((number, self._newest_ms))
        self._deltas.clear()
        self._delta_bytes = 0
        return record


class _Span(NamedTuple):
    """A record's ids by their count: ``[first, next)``; ``ids`` None once they are loaded."""

    offset: int
    newest_ms: int
    first: int
    next: int
    ids: bytes | None


class IdJournalReader:
    """Feeds one partition's id journal into a dedupe window and readies its journal.

    Segments go into ``dedupe`` as they come, but for those whose ids are all older than
    ``forget_before_ms``; of the deltas only the newest in each slot is held.
    """

    def __init__(self, name: str, dedupe: DedupeWindow, forget_before_ms: int = 0) -> None:
        self._name = name
        self._dedupe = dedupe
        self._forget_before_ms = forget_before_ms
        self._deltas: dict[int, _Span] = {}
        self._segments: dict[int, _Span] = {}

    def feed(self, key: bytes | None, value: bytes | None, offset: int) -> None:
        """Takes one record; raises ``CorruptRecord`` naming the topic, partition and offset."""
        kind, _, number = (key or b"").partition(b"|")
        if kind not in (b"d", b"g") or not number.isdigit():
            raise CorruptRecord(f"{self._name} offset {offset}: unknown journal key {key!r}")
        if value is None and kind == b"g":
            self._segments.pop(int(number), None)
            return
        span = self._span(value, offset)
        if kind == b"d":
            self._deltas[int(number)] = span
            return
        if span.newest_ms >= self._forget_before_ms:
            self._dedupe.load(span.ids or b"")
        self._segments[int(number)] = span._replace(ids=None)

    def restore(self, count: int) -> IdJournal:
        """Loads what is left and returns the journal to go on with.

        ``count`` is how many ids the table's position states. Raises ``CorruptRecord`` when
        records are missing, or there are more or fewer ids than that.
        """
        journal = IdJournal()
        segments = sorted(self._segments.items())
        deltas = self._current_deltas()
        self._verify_numbers([number for number, _ in segments])
        self._verify_joined([*(span for _, span in segments), *deltas], count)
        for number, span in segments:
            journal.restore_segment(number, span.newest_ms)
        for span in deltas:
            self._dedupe.load(span.ids or b"")
            journal.restore_delta(span.newest_ms, span.ids or b"")
        journal.count = count
        return journal

    def _span(self, value: bytes | None, offset: int) -> _Span:
        where = f"{self._name} offset {offset}"
        if value and value[0] != _VERSION:
            raise CorruptRecord(
                f"{where}: id record of version {value[0]}; this release reads {_VERSION}"
            )
        size_bytes = len(value or b"") - _HEADER.size
        if value is None or size_bytes < 0 or size_bytes % ENTRY_BYTES:
            raise CorruptRecord(f"{where}: not an id record")
        _, newest_ms, first = _HEADER.unpack_from(value)
        if first < 0:
            raise CorruptRecord(f"{where}: not an id record: {first} ids before its own")
        ids = value[_HEADER.size :]
        return _Span(offset, newest_ms, first, first + size_bytes // ENTRY_BYTES, ids)

    def _current_deltas(self) -> list[_Span]:
        """The deltas since the last seal; slots above theirs are left over from before it."""
        current: list[_Span] = []
        for _, span in sorted(self._deltas.items()):
            if current and span.first < current[-1].next:
                break
            current.append(span)
        return current

    def _verify_numbers(self, numbers: list[int]) -> None:
        for number, following in pairwise(numbers):
            if following != number + 1:
                offset = self._segments[following].offset
                raise CorruptRecord(
                    f"{self._name} offset {offset}: segment {number + 1} is missing from the "
                    f"journal of ids (next found is {following})"
                )

    def _verify_joined(self, spans: list[_Span], count: int) -> None:
        for span, following in pairwise(spans):
            if following.first != span.next:
                raise CorruptRecord(
                    f"{self._name} offset {following.offset}: starts at id {following.first}, but "
                    f"the record before it, at offset {span.offset}, ends at {span.next}"
                )
        reached = spans[-1].next if spans else 0
        if reached != count:
            where = f" offset {spans[-1].offset}" if spans else ""
            raise CorruptRecord(
                f"{self._name}{where}: the journal of ids ends at id {reached}, but the totals "
                f"count {count}; one of the two has lost its end"
            )

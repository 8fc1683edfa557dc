"""A stage's inbox: slices of one partition in order, bounded, with nothing missing.

Faust may drop slices at a rebalance and go on with later ones. The inbox compares where each slice
starts with where the table stands: an older slice is left out, a jump makes the stage seek back.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from pipeline.core.record_columns import RecordColumns
from pipeline.stream.transport import Records, Slice, one_behind_the_other

MAX_PENDING_RECORDS = 40_000
MAX_PENDING_BYTES = 32 * 1024 * 1024
MAX_TAKE_BYTES = 8 * 1024 * 1024
MAX_JOURNAL_BYTES = 4 * 1024 * 1024
"""What becomes of the records of one take has to fit into one record of a journal."""
MAX_CELLS_BYTES = 4 * 1024
"""However large an event is, a journal has no more of it than the scopes and totals of five cells:
896 characters of ids, up to four bytes each, and 365 bytes."""
RESEEK_S = 2.0


@dataclass(slots=True)
class _Part:
    piece: Slice
    size_bytes: int
    journal_bytes: int


def _parts(piece: Slice) -> list[_Part]:
    """The slice, cut wherever the bytes of a take would be full."""
    records = piece.records
    sizes_bytes = _sizes_bytes(records)
    for_journal = _for_journal(sizes_bytes)
    whole = _Part(piece, sum(sizes_bytes), sum(for_journal))
    if _fits(whole.size_bytes, whole.journal_bytes):
        return [whole]
    parts: list[_Part] = []
    position, first = piece.position, 0
    filled, journal = 0, 0
    for index, (size_bytes, counted) in enumerate(zip(sizes_bytes, for_journal, strict=True)):
        if index > first and not _fits(filled + size_bytes, journal + counted):
            offset = records[index].offset
            cut = Slice(piece.tp, position, offset, records[first:index])
            parts.append(_Part(cut, filled, journal))
            position, first = offset, index
            filled, journal = 0, 0
        filled += size_bytes
        journal += counted
    rest = Slice(piece.tp, position, piece.next_position, records[first:]) if first else piece
    parts.append(_Part(rest, filled, journal))
    return parts


def _halves(part: _Part, count: int) -> tuple[_Part, _Part]:
    """The first ``count`` records, which are not all, and the others."""
    piece = part.piece
    records, middle = piece.records, piece.records[count].offset
    sizes_bytes = _sizes_bytes(records[:count])
    size_bytes, journal_bytes = sum(sizes_bytes), sum(_for_journal(sizes_bytes))
    return (
        _Part(Slice(piece.tp, piece.position, middle, records[:count]), size_bytes, journal_bytes),
        _Part(
            Slice(piece.tp, middle, piece.next_position, records[count:]),
            part.size_bytes - size_bytes,
            part.journal_bytes - journal_bytes,
        ),
    )


def _fits(size_bytes: int, journal_bytes: int) -> bool:
    return size_bytes <= MAX_TAKE_BYTES and journal_bytes <= MAX_JOURNAL_BYTES


def _for_journal(sizes_bytes: list[int]) -> list[int]:
    """How much of records of these sizes a journal may have at most."""
    if max(sizes_bytes, default=0) <= MAX_CELLS_BYTES:
        return sizes_bytes
    return [min(size_bytes, MAX_CELLS_BYTES) for size_bytes in sizes_bytes]


def _sizes_bytes(records: Records) -> list[int]:
    """The size of each record's value, key and headers."""
    if isinstance(records, RecordColumns):
        return records.sizes_bytes.tolist()
    return [
        len(record.value or b"")
        + len(record.key or b"")
        + (_headers_bytes(headers) if (headers := record.headers) else 0)
        for record in records
    ]


def _headers_bytes(headers: Sequence[tuple[str, bytes | None]]) -> int:
    return sum(len(name) + len(value or b"") for name, value in headers)


def _from_offset(records: Records, first: int) -> Records:
    if isinstance(records, RecordColumns):
        return records.from_offset(first)
    return [record for record in records if record.offset >= first]


class Inbox:
    """``reached`` is the position after the last slice that was taken out.

    ``arrived`` is set when something was put in; whoever waits for it clears it.
    """

    def __init__(
        self, position: int, seek: Callable[[int], Awaitable[None]], arrived: asyncio.Event
    ) -> None:
        self.reached = position
        self._arrived = arrived
        self._seek = seek
        self._expected = position
        self._slices: deque[_Part] = deque()
        self._pending = 0
        self._pending_bytes = 0
        self._closed = False
        self._sought_at = float("-inf")
        self._offered_at = asyncio.get_running_loop().time()
        self._is_seeking = False
        self._room = asyncio.Event()
        self._room.set()

    def __len__(self) -> int:
        return self._pending

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits, not even a slice without records."""
        return not self._slices

    async def offer(self, piece: Slice) -> None:
        """Puts a slice in; waits while ``MAX_PENDING_RECORDS`` or ``_BYTES`` are pending."""
        await self._room.wait()
        if self._closed or piece.next_position <= self._expected:
            return
        if piece.position > self._expected:
            await self._seek_back()
            return
        self._expected = piece.next_position
        self._offered_at = asyncio.get_running_loop().time()
        self._is_seeking = False
        for part in _parts(piece):
            self._slices.append(part)
            self._pending += len(part.piece.records)
            self._pending_bytes += part.size_bytes
        if not self._has_room():
            self._room.clear()
        self._arrived.set()

    def take(self, limit: int) -> Records:
        """The pending records, ``limit`` at most; moves ``reached``.

        They hold at most ``MAX_TAKE_BYTES``, or are a single larger record, and at most
        ``MAX_JOURNAL_BYTES`` for a journal.
        """
        pieces, count, taken_bytes, journal_bytes = list[Records](), 0, 0, 0
        while self._slices and count < limit:
            part = self._slices.popleft()
            if len(part.piece.records) > limit - count:
                part, rest = _halves(part, limit - count)
                self._slices.appendleft(rest)
            taken_bytes += part.size_bytes
            journal_bytes += part.journal_bytes
            if count and not _fits(taken_bytes, journal_bytes):
                self._slices.appendleft(part)
                break
            piece = part.piece
            self._pending -= len(piece.records)
            self._pending_bytes -= part.size_bytes
            found = piece.records
            if found and found[0].offset < self.reached:
                found = _from_offset(found, self.reached)
            if found:
                pieces.append(found)
                count += len(found)
            self.reached = piece.next_position
        if self._has_room():
            self._room.set()
        return one_behind_the_other(pieces)

    def _has_room(self) -> bool:
        return self._pending < MAX_PENDING_RECORDS and self._pending_bytes < MAX_PENDING_BYTES

    def close(self) -> None:
        """Lets go of whoever waits for room; nothing is taken any more."""
        self._closed = True
        self._room.set()

    async def look_for_missing(self, log_end: int | None) -> None:
        """Seeks back when something is missing and nothing has come for ``RESEEK_S``.

        Either the last seek brought nothing, or the last slice before ``log_end``, where the log
        was seen to end, was dropped on the way and no later one shows the gap.
        """
        if self._closed:
            return
        is_behind = log_end is not None and self._expected < log_end and self.is_empty
        now_s = asyncio.get_running_loop().time()
        if self._is_seeking or (is_behind and now_s - self._offered_at >= RESEEK_S):
            await self._seek_back()

    async def _seek_back(self) -> None:
        # Slices that were fetched before the seek still arrive; they must not each seek again.
        self._is_seeking = True
        now_s = asyncio.get_running_loop().time()
        if now_s - self._sought_at >= RESEEK_S:
            self._sought_at = now_s
            await self._seek(self._expected)

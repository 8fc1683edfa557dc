"""Compact memories of the recount: what is remembered of millions of records, in plain arrays."""

from array import array
from bisect import bisect_left
from collections.abc import Iterator
from hashlib import blake2b

_FREE = -(2**63)
_FIRST_SLOTS = 1_024
_MAX_LOAD = 0.66
_WORD = 2**64 - 1


def digest_of(text: str) -> int:
    """A text as a number of 128 bits; two texts that differ practically never share it."""
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest())


class TimedDigests:
    """Digests, each with one or more times in ms: 24 bytes a slot, two thirds full at most.

    Open addressing with linear probing; nothing is ever taken out.
    """

    def __init__(self) -> None:
        self._count = 0
        self._allocate(_FIRST_SLOTS)

    def __len__(self) -> int:
        return self._count

    def add(self, digest: int, time_ms: int) -> None:
        """Remembers a time of a digest."""
        if self._count >= len(self._times) * _MAX_LOAD:
            self._grow()
        self._put(digest >> 64, digest & _WORD, time_ms)
        self._count += 1

    def has_near(self, digest: int, time_ms: int, distance_ms: int) -> bool:
        """Whether a time at most ``distance_ms`` away is remembered of ``digest``."""
        high, low = digest >> 64, digest & _WORD
        highs, lows, times, mask = self._highs, self._lows, self._times, self._mask
        at = low & mask
        while (found_ms := times[at]) != _FREE:
            if lows[at] == low and highs[at] == high and abs(time_ms - found_ms) <= distance_ms:
                return True
            at = (at + 1) & mask
        return False

    def _allocate(self, slots: int) -> None:
        self._highs = array("Q", bytes(8 * slots))
        self._lows = array("Q", bytes(8 * slots))
        self._times = array("q", [_FREE]) * slots
        self._mask = slots - 1

    def _put(self, high: int, low: int, time_ms: int) -> None:
        times, mask = self._times, self._mask
        at = low & mask
        while times[at] != _FREE:
            at = (at + 1) & mask
        self._highs[at], self._lows[at], times[at] = high, low, time_ms

    def _grow(self) -> None:
        highs, lows, times = self._highs, self._lows, self._times
        self._allocate(2 * len(times))
        for at, time_ms in enumerate(times):
            if time_ms != _FREE:
                self._put(highs[at], lows[at], time_ms)


class OffsetDigests:
    """Records in the order of their offsets, each with a digest of ``width`` bytes and a note.

    A note is a number from 0 to 32,767 that means something to the owner. ``seen`` marks what a
    comparison has met.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self.offsets = array("q")
        self._digests = bytearray()
        self._notes = array("h")
        self._seen = bytearray()

    def __len__(self) -> int:
        return len(self.offsets)

    def append(self, offset: int, digest: bytes, note: int = 0) -> None:
        """Adds a record behind the last one."""
        self.offsets.append(offset)
        self._digests += digest
        self._notes.append(note)

    def below(self, offset: int) -> int:
        """How many records lie below ``offset``."""
        return bisect_left(self.offsets, offset)

    def find(self, offset: int) -> int | None:
        """The place of the record at ``offset``; None where there is none."""
        at = bisect_left(self.offsets, offset)
        return at if at < len(self.offsets) and self.offsets[at] == offset else None

    def digest(self, at: int) -> bytes:
        """The digest of the record at a place."""
        return bytes(self._digests[at * self.width : (at + 1) * self.width])

    def note(self, at: int) -> int:
        """The note of the record at a place."""
        return self._notes[at]

    def forget_seen(self) -> None:
        """Marks nothing as seen."""
        self._seen = bytearray(len(self.offsets))

    def see(self, at: int) -> bool:
        """Marks the record at a place as seen; True when it was before."""
        was, self._seen[at] = self._seen[at], 1
        return bool(was)

    def unseen(self, start: int, stop: int) -> Iterator[int]:
        """The places between two that are not marked."""
        at = self._seen.find(0, start, stop)
        while at >= 0:
            yield at
            at = self._seen.find(0, at + 1, stop)

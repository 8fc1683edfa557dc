"""The window of remembered event ids: the first accepted wins, the others are duplicates.

Ids are 16-byte keys in segments, filled in order of arrival and never rehashed. A lookup asks
every segment; forgetting drops a segment as a whole once its newest id is beyond the horizon.
So no step takes longer than its batch, and a remembered id takes 28 to 36 bytes.
"""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Final, Protocol

import numpy as np

from pipeline.core.dedupe_segment import (
    LOW_HALF,
    Mask,
    Segment,
    Times,
    Words,
    filter_mask,
    filter_masks,
)

KEY_BYTES: Final = 16
ENTRY_BYTES: Final = 24

HASH_KEY: Final = b"tallyport event id 1"
_hasher: Final = blake2b(digest_size=KEY_BYTES, key=HASH_KEY)
_ENTRY: Final = np.dtype([("high", "<u8"), ("low", "<u8"), ("time_ms", "<i8")])

# A new segment takes a quarter of what is remembered: few to ask, little kept beyond its time.
# Small windows grow in larger steps; the last bound keeps the allocation of one short.
_SEGMENTS_PER_WINDOW: Final = 4
_FIRST_CAPACITY: Final = 3_000
_EARLY_GROWTH: Final = 7
_EARLY_CAPACITY: Final = 250_000
_MAX_CAPACITY: Final = 400_000
# A segment is closed after this share of the horizon, full or not.
_SEGMENTS_PER_HORIZON: Final = 2
# Up to here a loop in Python beats the fixed cost of numpy's calls.
_SMALL_BATCH: Final = 64
_LOAD_CHUNK: Final = 65_536


def event_key(port_id: str, event_id: str) -> bytes:
    """The identity ``(port_id, event_id)`` as 16 bytes of keyed BLAKE2b.

    The length of the first part goes in too, so ("a", "bc") and ("ab", "c") differ.
    """
    hasher = begun_event_key(port_id)
    hasher.update(event_id.encode())
    return hasher.digest()


def begun_event_key(port_id: str) -> blake2b:
    """What the keys of a port's events have in common, more than half of the work.

    ``event_key`` is the digest of a copy that has taken the event's id.
    """
    hasher = _hasher.copy()
    hasher.update(f"{len(port_id)}:{port_id}".encode())
    return hasher


def correction_key(port_id: str, correction_id: str) -> bytes:
    """The identity of a correction of an event of ``port_id``; never that of an event."""
    hasher = _hasher.copy()
    hasher.update(f"correction {len(port_id)}:{port_id}{correction_id}".encode())
    return hasher.digest()


def as_words(keys: Sequence[bytes]) -> Words:
    """Keys as rows of two words each."""
    return np.frombuffer(b"".join(keys), "<u8").reshape(-1, 2)


def encode_ids(keys: Sequence[bytes], times_ms: Sequence[int]) -> bytes:
    """Keys with their Kafka times, packed in 24 bytes each: the key, then a little-endian i64."""
    return encode_words(as_words(keys), np.array(times_ms, np.int64))


def encode_words(words: Words, times_ms: Times) -> bytes:
    """``encode_ids`` of keys as words."""
    entries = np.empty(len(words), _ENTRY)
    entries["high"], entries["low"] = words[:, 0], words[:, 1]
    entries["time_ms"] = times_ms
    return entries.tobytes()


def newest_of(ids: bytes) -> int:
    """The latest Kafka time (ms) among ids that ``encode_ids`` packed."""
    return int(np.frombuffer(ids, _ENTRY)["time_ms"].max())


class IdSearch(Protocol):
    """Looks ids up and adds them faster than it is done here, on the same memory."""

    def admit(
        self,
        segments: Sequence[Segment],
        words: Words,
        times_ms: Times,
        arrived_ms: Times,
        horizon_ms: int,
        admitted: Mask,
        start: int,
        is_open: bool,
    ) -> int:
        """``DedupeWindow.admit_words`` from number ``start`` on, until an id does not fit into the
        last segment, into which none does unless it ``is_open``. Returns where it stopped."""
        ...


class DedupeWindow:
    """Remembers the accepted ids of one source partition, each with its Kafka time.

    A record is a duplicate when it arrived at most ``horizon_ms`` away from a remembered time of
    its key, whichever is the earlier; each accepted time of a key counts on its own. Not safe for
    several threads.
    """

    def __init__(self, horizon_ms: int, search: "IdSearch | None" = None) -> None:
        self.horizon_ms = horizon_ms
        self._search = search
        self._segments: list[Segment] = []
        self._watermark_ms: int | None = None
        self._opened_at_watermark_ms: int | None = None

    def __len__(self) -> int:
        return sum(segment.count for segment in self._segments)

    def admit(
        self,
        keys: Sequence[bytes],
        times_ms: Sequence[int],
        arrived_ms: Sequence[int] | None = None,
    ) -> list[bool]:
        """In order of arrival: True and remembered from now on, or False for a duplicate.

        ``times_ms`` are remembered. ``arrived_ms`` are the Kafka times on this partition, by which
        ids are forgotten, too: a first arrival elsewhere may be long before. None where both are
        the same.
        """
        arrived_ms = times_ms if arrived_ms is None else arrived_ms
        if not len(keys) == len(times_ms) == len(arrived_ms):
            raise ValueError(f"{len(keys)} keys, but {len(times_ms)}, {len(arrived_ms)} times")
        times = np.array(times_ms, np.int64)
        arrived = times if arrived_ms is times_ms else np.array(arrived_ms, np.int64)
        return self.admit_words(as_words(keys), times, arrived).tolist()

    def admit_words(self, words: Words, times_ms: Times, arrived_ms: Times) -> Mask:
        """``admit`` of keys as words, which must be as many as the times."""
        if self._search is not None or len(words) > _SMALL_BATCH:
            return self._admit_all(words, times_ms, arrived_ms, self.horizon_ms)
        pairs = zip(words.tolist(), times_ms.tolist(), arrived_ms.tolist(), strict=True)
        return np.array(
            [
                self._admit_one(high or 1, low, time_ms, at_ms, self.horizon_ms)
                for (high, low), time_ms, at_ms in pairs
            ],
            np.bool_,
        )

    def load(self, entries: bytes) -> None:
        """Remember what ``encode_ids`` packed; loading the same again changes nothing."""
        packed = np.frombuffer(entries, _ENTRY)
        for start in range(0, len(packed), _LOAD_CHUNK):
            chunk = packed[start : start + _LOAD_CHUNK]
            words = np.stack((chunk["high"], chunk["low"]), axis=1)
            times = chunk["time_ms"].astype(np.int64)
            # All of them were accepted, however near to each other their times may be.
            self._admit_all(words, times, times, 0)

    def forget_before(self, committed_watermark_ms: int) -> None:
        """Drop ids that no record of that Kafka time or later can be a duplicate of.

        ``committed_watermark_ms`` is the latest time among records whose offset is committed. An
        id may be kept longer together with its segment, by half a horizon and then some.
        """
        oldest_ms = committed_watermark_ms - self.horizon_ms
        self._segments = [kept for kept in self._segments if kept.newest_ms >= oldest_ms]
        self._watermark_ms = committed_watermark_ms
        if self._opened_at_watermark_ms is None:
            self._opened_at_watermark_ms = committed_watermark_ms

    def _admit_all(self, words: Words, times_ms: Times, arrived_ms: Times, horizon_ms: int) -> Mask:
        if self._search is None:
            return self._admit_batch(words, times_ms, arrived_ms, horizon_ms)
        return self._admit_searched(self._search, words, times_ms, arrived_ms, horizon_ms)

    def _admit_searched(
        self,
        search: "IdSearch",
        words: Words,
        times_ms: Times,
        arrived_ms: Times,
        horizon_ms: int,
    ) -> Mask:
        admitted: Mask = np.empty(len(words), np.bool_)
        at = 0
        while at < len(words):
            is_open = not self._is_aged()
            at = search.admit(
                self._segments, words, times_ms, arrived_ms, horizon_ms, admitted, at, is_open
            )
            if at < len(words):
                high, low = words[at].tolist()
                time_ms, at_ms = int(times_ms[at]), int(arrived_ms[at])
                admitted[at] = self._admit_one(high or 1, low, time_ms, at_ms, horizon_ms)
                at += 1
        return admitted

    def _admit_one(self, high: int, low: int, time_ms: int, at_ms: int, horizon_ms: int) -> bool:
        low_half, mask = high & LOW_HALF, filter_mask(low)
        for segment in self._segments:
            if segment.filter_at[low_half * segment.filter_words >> 32] & mask != mask:
                continue
            if segment.holds(high, low, at_ms, horizon_ms):
                return False
        self._open_segment(time_ms).add(high, low, time_ms)
        return True

    def _admit_batch(
        self, words: Words, times_ms: Times, arrived_ms: Times, horizon_ms: int
    ) -> Mask:
        if not words[:, 0].all():
            words = words.copy()
            words[words[:, 0] == 0, 0] = 1
        masks = filter_masks(words)
        accepted: Mask = np.ones(len(words), np.bool_)
        for segment in self._segments:
            accepted &= ~segment.find_batch(words, masks, arrived_ms, horizon_ms)
        repeated = accepted & _repeated(words[:, 0])
        fresh = accepted & ~repeated
        if fresh.all():
            self._add(words, masks, times_ms)
            return accepted
        self._add(words[fresh], masks[fresh], times_ms[fresh])
        for row in np.flatnonzero(repeated).tolist():
            high, low = words[row].tolist()
            time_ms, at_ms = int(times_ms[row]), int(arrived_ms[row])
            accepted[row] = self._admit_one(high, low, time_ms, at_ms, horizon_ms)
        return accepted

    def _add(self, words: Words, masks: Words, times_ms: Times) -> None:
        start = 0
        while start < len(words):
            segment = self._open_segment(int(times_ms[start]))
            end = start + segment.room()
            segment.add_batch(words[start:end], masks[start:end], times_ms[start:end])
            start = end

    def _open_segment(self, time_ms: int) -> Segment:
        """The segment that new ids go to: the last one, or a new one when that is closed."""
        if self._segments and self._segments[-1].room() and not self._is_aged():
            return self._segments[-1]
        count = len(self)
        early = min(_EARLY_GROWTH * count, _EARLY_CAPACITY)
        capacity = max(count // _SEGMENTS_PER_WINDOW, early, _FIRST_CAPACITY)
        self._segments.append(Segment(min(capacity, _MAX_CAPACITY), time_ms))
        self._opened_at_watermark_ms = self._watermark_ms
        return self._segments[-1]

    def _is_aged(self) -> bool:
        if self._watermark_ms is None or self._opened_at_watermark_ms is None:
            return False
        open_ms = self._watermark_ms - self._opened_at_watermark_ms
        return open_ms > self.horizon_ms // _SEGMENTS_PER_HORIZON


def _repeated(high: Words) -> Mask:
    """Which rows share their high word with another row."""
    ordered = np.sort(high)
    twins = ordered[1:][ordered[1:] == ordered[:-1]]
    if not len(twins):
        return np.zeros(len(high), np.bool_)
    return np.isin(high, twins)

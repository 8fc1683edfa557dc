"""One table of remembered ids: a filter in front of open addressing, in flat arrays."""

from typing import Any, Final

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]
Times = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.int64]

# Ids per slot: beyond it probing takes long, below it memory is wasted.
_LOAD: Final = 0.78
# Of a full segment one new id in a hundred passes the filter; only then are the slots looked at.
_FILTER_BITS_PER_ID: Final = 16
_WORD_BITS: Final = 64
# Times are kept in 32 bits as a distance from this long before the segment's first time.
_TIME_REACH_MS: Final = 1 << 31
# Fewer pending ids than this are finished one by one: numpy's calls have a fixed cost.
_FEW: Final = 64
LOW_HALF: Final = 0xFFFF_FFFF


def filter_mask(low: int) -> int:
    """The three bits of an id in its word of a filter."""
    return 1 << (low & 63) | 1 << (low >> 6 & 63) | 1 << (low >> 12 & 63)


def filter_masks(words: Words) -> Words:
    """``filter_mask`` of many ids."""
    low, one, bits = words[:, 1], np.uint64(1), np.uint64(63)
    first, second = one << (low & bits), one << (low >> np.uint64(6) & bits)
    return first | second | one << (low >> np.uint64(12) & bits)


class Segment:
    """Holds up to ``capacity`` ids and is then closed; entries are never moved or removed.

    An id is two 64-bit words, ``high`` and ``low``; ``high`` is never 0, which marks a free slot.
    The upper half of ``high`` chooses the slot at which to look first, the lower half the word of
    the filter, in which ``low`` chooses three bits. The same id may be held several times, with
    different times. ``newest_ms`` is the latest time held.
    """

    def __init__(self, capacity: int, first_time_ms: int) -> None:
        self.capacity = capacity
        self.count = 0
        self.newest_ms = first_time_ms
        self._slots = int(capacity / _LOAD) + 1
        self.filter_words = capacity * _FILTER_BITS_PER_ID // _WORD_BITS + 1
        self._time_base_ms = self._earliest_ms = first_time_ms - _TIME_REACH_MS
        self._latest_ms = first_time_ms + _TIME_REACH_MS - 1
        self._filter: Words = np.zeros(self.filter_words, np.uint64)
        self._high: Words = np.zeros(self._slots, np.uint64)
        self._low: Words = np.zeros(self._slots, np.uint64)
        self._times: npt.NDArray[Any] = np.zeros(self._slots, np.uint32)
        # Views of the same memory: single items are read faster through them.
        self.filter_at = self._filter.data
        self._high_at = self._high.data
        self._low_at = self._low.data
        self._note_layout()

    def _note_layout(self) -> None:
        """For who works on the same memory: where filter, high and low words and times are, and
        how many words and slots there are, the bytes of a time, what times are counted from, and
        the earliest and latest one that fit."""
        arrays = (self._filter, self._high, self._low, self._times)
        self.addresses: list[int] = [a.__array_interface__["data"][0] for a in arrays]
        self.measures: tuple[int, ...] = (
            self.filter_words, self._slots, self._times.itemsize, self._time_base_ms,
            self._earliest_ms, self._latest_ms,
        )  # fmt: skip

    def room(self) -> int:
        """How many ids still fit."""
        return self.capacity - self.count

    def holds(self, high: int, low: int, time_ms: int, horizon_ms: int) -> bool:
        """Whether the id is held with a time at most ``horizon_ms`` away.

        Needed only where the filter has all bits of ``filter_mask(low)``, in the word
        ``filter_at[(high & LOW_HALF) * filter_words >> 32]``.
        """
        slots, high_at = self._slots, self._high_at
        slot = (high >> 32) * slots >> 32
        while seen := high_at[slot]:
            if seen == high and self._low_at[slot] == low:
                held_ms = int(self._times[slot]) + self._time_base_ms
                if abs(held_ms - time_ms) <= horizon_ms:
                    return True
            slot += 1
            if slot == slots:
                slot = 0
        return False

    def add(self, high: int, low: int, time_ms: int) -> None:
        """Hold the id with its time; there must be room."""
        if not self._earliest_ms <= time_ms <= self._latest_ms:
            self._fit_times(time_ms, time_ms)
        self.filter_at[(high & LOW_HALF) * self.filter_words >> 32] |= filter_mask(low)
        self._place(high, low, time_ms)
        if time_ms > self.newest_ms:
            self.newest_ms = time_ms
        self.count += 1

    def find_batch(self, words: Words, masks: Words, times_ms: Times, horizon_ms: int) -> Mask:
        """``holds`` for many ids: one row of ``words`` each, high and low, and its filter mask."""
        found: Mask = np.zeros(len(words), np.bool_)
        seen_bits = self._filter[self._filter_places(words[:, 0])] & masks
        pending: Indices = np.flatnonzero(seen_bits == masks)
        high = words[pending, 0]
        slots = self._first_slots(high)
        while len(pending) > _FEW:
            seen = self._high[slots]
            same = np.flatnonzero(seen == high)
            if len(same):
                rows, hits = pending[same], slots[same]
                held_ms = self._times[hits].astype(np.int64) + self._time_base_ms
                meant = np.abs(held_ms - times_ms[rows]) <= horizon_ms
                meant &= self._low[hits] == words[rows, 1]
                found[rows[meant]] = True
                seen[same[meant]] = 0
            go_on = np.flatnonzero(seen)
            pending, high = pending[go_on], high[go_on]
            slots = self._next_slots(slots[go_on])
        rest = zip(
            pending.tolist(), words[pending].tolist(), times_ms[pending].tolist(), strict=True
        )
        for row, (high_word, low_word), time_ms in rest:
            found[row] = self.holds(high_word, low_word, time_ms, horizon_ms)
        return found

    def add_batch(self, words: Words, masks: Words, times_ms: Times) -> None:
        """``add`` for many ids that differ in their high words; there must be room for all."""
        if not len(words):
            return
        latest_ms = int(times_ms.max())
        self._fit_times(int(times_ms.min()), latest_ms)
        np.bitwise_or.at(self._filter, self._filter_places(words[:, 0]), masks)
        pending: Indices = np.arange(len(words))
        slots, high = self._first_slots(words[:, 0]), words[:, 0]
        while len(pending) > _FEW:
            free = np.flatnonzero(self._high[slots] == 0)
            self._high[slots[free]] = high[free]
            # Of several at one slot the last stays.
            placed = free[self._high[slots[free]] == high[free]]
            rows, taken = pending[placed], slots[placed]
            self._low[taken] = words[rows, 1]
            self._times[taken] = times_ms[rows] - self._time_base_ms
            left: Mask = np.ones(len(pending), np.bool_)
            left[placed] = False
            pending, high, slots = pending[left], high[left], self._next_slots(slots[left])
        rest = zip(words[pending].tolist(), times_ms[pending].tolist(), strict=True)
        for (high_word, low_word), time_ms in rest:
            self._place(high_word, low_word, time_ms)
        self.newest_ms = max(self.newest_ms, latest_ms)
        self.count += len(words)

    def _place(self, high: int, low: int, time_ms: int) -> None:
        slots, high_at = self._slots, self._high_at
        slot = (high >> 32) * slots >> 32
        while high_at[slot]:
            slot += 1
            if slot == slots:
                slot = 0
        high_at[slot] = high
        self._low_at[slot] = low
        self._times[slot] = time_ms - self._time_base_ms

    def _filter_places(self, high: Words) -> Indices:
        scaled = (high & np.uint64(LOW_HALF)) * np.uint64(self.filter_words) >> np.uint64(32)
        return scaled.view(np.int64)

    def _first_slots(self, high: Words) -> Indices:
        scaled = (high >> np.uint64(32)) * np.uint64(self._slots) >> np.uint64(32)
        return scaled.view(np.int64)

    def _next_slots(self, slots: Indices) -> Indices:
        following = slots + 1
        following[following == self._slots] = 0
        return following

    def _fit_times(self, earliest_ms: int, latest_ms: int) -> None:
        """Widen the times to 64 bits when these are too far off for 32."""
        if self._earliest_ms <= earliest_ms and latest_ms <= self._latest_ms:
            return
        self._times = self._times.astype(np.int64)
        self._earliest_ms, self._latest_ms = -(1 << 63), (1 << 63) - 1
        self._note_layout()

"""Rows of a priced block as they travel: MessagePack, one behind the other."""

from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from pipeline.core.events import PricedEvent

Ints = npt.NDArray[np.int64]

_encoder: Final = msgspec.msgpack.Encoder()


class Rows:
    """``packed`` are the rows, ``ends`` where each one ends in it, ``offsets`` the source offset
    of each."""

    __slots__ = ("ends", "offsets", "packed")

    def __init__(self, packed: bytes | memoryview, ends: Ints, offsets: Ints) -> None:
        self.packed = packed
        self.ends = ends
        self.offsets = offsets

    @classmethod
    def of(cls, events: Sequence[PricedEvent]) -> "Rows":
        """The rows of ``events``."""
        packed, ends = bytearray(), list[int]()
        for event in events:
            _encoder.encode_into(event, packed, -1)
            ends.append(len(packed))
        offsets = [event.source_offset for event in events]
        return cls(bytes(packed), np.array(ends, np.int64), np.array(offsets, np.int64))

    def __len__(self) -> int:
        return len(self.ends)

    def cut(self, first: int, last: int) -> bytes | memoryview:
        """The rows from number ``first`` up to ``last`` (exclusive)."""
        return self.packed[self._starts_at(first) : self._starts_at(last)]

    def run_from(self, first: int, most_rows: int, most_bytes: int) -> int:
        """Where a run from number ``first`` on ends (exclusive): it has so many rows and bytes at
        most, and one row at least."""
        end = int(np.searchsorted(self.ends, self._starts_at(first) + most_bytes, side="right"))
        return min(max(end, first + 1), first + most_rows, len(self))

    def merged(self, other: "Rows", before: Ints) -> "Rows":
        """These with the ``other`` ones among them; ``before`` each of those so many of these."""
        pieces, reached = list[bytes | memoryview](), 0
        for number, place in enumerate(before.tolist()):
            at = self._starts_at(place)
            pieces += self.packed[reached:at], other.cut(number, number + 1)
            reached = at
        pieces.append(self.packed[reached:])
        lengths = np.insert(_lengths(self), before, _lengths(other))
        offsets = np.insert(self.offsets, before, other.offsets)
        return Rows(b"".join(pieces), np.cumsum(lengths), offsets)

    def _starts_at(self, number: int) -> int:
        return int(self.ends[number - 1]) if number else 0


def _lengths(rows: Rows) -> Ints:
    return np.diff(rows.ends, prepend=0)

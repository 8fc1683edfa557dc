"""A stage's inbox: slices of one partition in order, bounded, with nothing missing.

Faust may drop slices at a rebalance and go on with later ones. The inbox compares where each slice
starts with where the table stands: an older slice is left out, a jump makes the stage seek back.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from aiokafka.structs import ConsumerRecord

from pipeline.stream.transport import Slice

MAX_PENDING_RECORDS = 40_000
RESEEK_S = 2.0


class Inbox:
    """``reached`` is the position after the last slice that was taken out."""

    def __init__(self, position: int, seek: Callable[[int], Awaitable[None]]) -> None:
        self.reached = position
        self._seek = seek
        self._expected = position
        self._slices: deque[Slice] = deque()
        self._pending = 0
        self._closed = False
        self._sought_at = float("-inf")
        self.arrived = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    def __len__(self) -> int:
        return self._pending

    async def offer(self, piece: Slice) -> None:
        """Puts a slice in; waits while ``MAX_PENDING_RECORDS`` are pending."""
        await self._room.wait()
        if self._closed or piece.next_position <= self._expected:
            return
        if piece.position > self._expected:
            await self._seek_back()
            return
        self._expected = piece.next_position
        self._slices.append(piece)
        self._pending += len(piece.records)
        if self._pending >= MAX_PENDING_RECORDS:
            self._room.clear()
        self.arrived.set()

    def take(self, limit: int) -> list[ConsumerRecord]:
        """The pending records, whole slices, about ``limit`` at most; moves ``reached``."""
        records: list[ConsumerRecord] = []
        while self._slices and len(records) < limit:
            piece = self._slices.popleft()
            self._pending -= len(piece.records)
            if records or piece.records:
                records += [r for r in piece.records if r.offset >= self.reached]
            self.reached = piece.next_position
        if not self._slices:
            self.arrived.clear()
        if self._pending < MAX_PENDING_RECORDS:
            self._room.set()
        return records

    def close(self) -> None:
        """Lets go of whoever waits for room; nothing is taken any more."""
        self._closed = True
        self._room.set()

    async def _seek_back(self) -> None:
        # Slices that were fetched before the seek still arrive; they must not each seek again.
        now_s = asyncio.get_running_loop().time()
        if now_s - self._sought_at >= RESEEK_S:
            self._sought_at = now_s
            await self._seek(self._expected)

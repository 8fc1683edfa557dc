"""The changes that the API writes to one log: one after the other, and then seen here."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from pipeline.web.log_feed import LogFeed
from pipeline.web.problems import unavailable

MAX_WAITING: Final = 32
SEEN_TIMEOUT_S: Final = 2.0


class ChangeQueue:
    """``feed`` follows the log that is written."""

    def __init__(self, feed: LogFeed) -> None:
        self._feed = feed
        self._turn = asyncio.Lock()
        self._waiting = 0

    async def write(self, change: Callable[[], Awaitable[int]]) -> None:
        """Awaits ``change`` in turn; returns once the feed has taken in the offset it gives.

        That is waited for ``SEEN_TIMEOUT_S`` at most; a negative offset means that nothing was
        written. Raises ``Problem`` 503 when too many wait, and what ``change`` raises.
        """
        if self._waiting >= MAX_WAITING:
            raise unavailable("too many changes are under way")
        self._waiting += 1
        try:
            async with self._turn:
                offset = await change()
        finally:
            self._waiting -= 1
        await self._feed.wait_for(offset + 1, SEEN_TIMEOUT_S)

"""The API's own view of all prices."""

import asyncio
from collections.abc import Mapping
from typing import Any

from pipeline.core.book import builtin_book
from pipeline.core.prices import PriceVersion
from pipeline.stream.rate_log import RateTail
from pipeline.web.log_feed import LogFeed
from pipeline.web.problems import unavailable


class RateFeed(LogFeed):
    """``version`` is None until the rates have been read once; then it only moves on."""

    def __init__(self, client: Mapping[str, Any], topic: str, lead_s: int, currency: str) -> None:
        super().__init__("prices")
        self.version: PriceVersion | None = None
        self._client = dict(client)
        self._topic = topic
        self._lead_s = lead_s
        self._currency = currency

    @property
    def next_offset(self) -> int:
        return 0 if self.version is None else self.version.key[0]

    def current(self) -> PriceVersion:
        """The version. Raises ``Problem`` 503 until the rates have been read once."""
        if self.version is None:
            raise unavailable(self.problems()[0])
        return self.version

    async def _follow(self) -> None:
        tail = RateTail(
            self._client,
            self._topic,
            await asyncio.to_thread(builtin_book),
            lead_s=self._lead_s,
            currency=self._currency,
            on_change=self._take,
        )
        try:
            await tail.start()
            self.version, self._trouble = tail.version, None
            await tail.wait()
        finally:
            await tail.stop()

    def _take(self, version: PriceVersion) -> None:
        if self.version is None or version.key[0] >= self.version.key[0]:
            self.version = version

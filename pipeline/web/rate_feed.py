"""The API's own view of all prices: followed from the log's beginning, for ever."""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from aiokafka.errors import KafkaError

from pipeline.core.book import Book, builtin_book
from pipeline.core.errors import TallyportError
from pipeline.core.prices import PriceVersion
from pipeline.stream.rate_log import RateTail

log = logging.getLogger(__name__)

RETRY_S = 2.0


class RateFeed:
    """``version`` is None until the rates have been read once; then it only moves on."""

    def __init__(self, client: Mapping[str, Any], topic: str, lead_s: int, currency: str) -> None:
        self.version: PriceVersion | None = None
        self._client = dict(client)
        self._topic = topic
        self._lead_s = lead_s
        self._currency = currency
        self._book: Book | None = None
        self._trouble: str | None = "prices have not been read yet"

    def problems(self) -> list[str]:
        """Why prices cannot be told now."""
        return [self._trouble] if self._trouble else []

    async def run(self) -> None:
        """Follows the rates; after a failure from the beginning, beside the last version."""
        self._book = await asyncio.to_thread(builtin_book)
        while True:
            tail = RateTail(
                self._client,
                self._topic,
                self._book,
                lead_s=self._lead_s,
                currency=self._currency,
                on_change=self._take,
            )
            try:
                await tail.start()
                self.version, self._trouble = tail.version, None
                await tail.wait()
            except (KafkaError, OSError, TallyportError) as error:
                self._trouble = f"prices: {' '.join(str(error).split())[:200]}"
                log.warning("%s", self._trouble)
            finally:
                await tail.stop()
            await asyncio.sleep(RETRY_S)

    def _take(self, version: PriceVersion) -> None:
        if self.version is None or version.key[0] >= self.version.key[0]:
            self.version = version

    async def wait_for(self, next_offset: int, timeout_s: float) -> None:
        """Returns once everything below ``next_offset`` has been read, or after ``timeout_s``."""
        deadline_s = asyncio.get_running_loop().time() + timeout_s
        while self.version is None or self.version.key[0] < next_offset:
            if asyncio.get_running_loop().time() > deadline_s:
                return
            await asyncio.sleep(0.02)

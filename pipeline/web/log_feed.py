"""The API's own view of a log: followed from its beginning, for ever."""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from aiokafka.errors import KafkaError

from pipeline.core.errors import TallyportError
from pipeline.stream.policy_log import OnRecord, PolicyTail
from pipeline.web.problems import unavailable

log = logging.getLogger(__name__)

RETRY_S = 2.0
_POLL_S = 0.02

TableT = TypeVar("TableT")


class LogFeed(ABC):
    """Follows one log; after a failure from the beginning, beside what was read last.

    ``subject`` is what the log tells of, in the plural, as problems name it.
    """

    def __init__(self, subject: str) -> None:
        self._subject = subject
        self._trouble: str | None = f"{subject} have not been read yet"

    @property
    @abstractmethod
    def next_offset(self) -> int:
        """Everything below this offset has been taken; 0 while nothing is followed."""

    @abstractmethod
    async def _follow(self) -> None:
        """Follows the log until that fails, and resets ``_trouble`` once it has been read."""

    def problems(self) -> list[str]:
        """Why the log's content cannot be told now."""
        return [self._trouble] if self._trouble else []

    async def run(self) -> None:
        """Follows until cancelled."""
        while True:
            try:
                await self._follow()
            except (KafkaError, OSError, TallyportError) as error:
                self._trouble = f"{self._subject}: {' '.join(str(error).split())[:200]}"
                log.warning("%s", self._trouble)
            await asyncio.sleep(RETRY_S)

    async def wait_for(self, next_offset: int, timeout_s: float) -> None:
        """Returns once everything below ``next_offset`` was taken, or after ``timeout_s``."""
        deadline_s = asyncio.get_running_loop().time() + timeout_s
        while self.next_offset < next_offset:
            if asyncio.get_running_loop().time() > deadline_s:
                return
            await asyncio.sleep(_POLL_S)


class TableFeed(LogFeed, Generic[TableT]):
    """A log of keys and what holds for each; ``table`` is None until it has been read once."""

    def __init__(self, subject: str, client: Mapping[str, Any], topic: str) -> None:
        super().__init__(subject)
        self.table: TableT | None = None
        self._client = dict(client)
        self._topic = topic
        self._tail: PolicyTail | None = None

    @abstractmethod
    async def _begin(self) -> tuple[TableT, OnRecord]:
        """A table as it is before the log's first record, and what puts a record into it."""

    @property
    def next_offset(self) -> int:
        return 0 if self._tail is None else self._tail.position

    def current(self) -> TableT:
        """The table. Raises ``Problem`` 503 until the log has been read once."""
        if self.table is None:
            raise unavailable(self.problems()[0])
        return self.table

    async def _follow(self) -> None:
        table, take = await self._begin()
        tail = PolicyTail(self._client, self._topic, take)
        await tail.start()
        try:
            await tail.confirmed
            self.table, self._tail, self._trouble = table, tail, None
            await tail.wait()
        finally:
            self._tail = None
            await tail.stop()

"""The API's own view of the policies in force: followed from the log's beginning, for ever."""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from aiokafka.errors import KafkaError

from pipeline.core.errors import TallyportError
from pipeline.core.policies import PolicyTable
from pipeline.stream.policy_log import PolicyTail, PolicyTopics
from pipeline.stream.reader import read_to_end

log = logging.getLogger(__name__)

RETRY_S = 2.0
_POLL_S = 0.02


class PolicyFeed:
    """``table`` is None until the policies have been read once."""

    def __init__(self, client: Mapping[str, Any], topics: PolicyTopics) -> None:
        self.table: PolicyTable | None = None
        self._client = dict(client)
        self._topics = topics
        self._tail: PolicyTail | None = None
        self._trouble: str | None = "policies have not been read yet"

    def problems(self) -> list[str]:
        """Why policies cannot be told now."""
        return [self._trouble] if self._trouble else []

    async def run(self) -> None:
        """Follows the policies; after a failure from the beginning, beside the last table."""
        while True:
            try:
                await self._follow()
            except (KafkaError, OSError, TallyportError) as error:
                self._trouble = f"policies: {' '.join(str(error).split())[:200]}"
                log.warning("%s", self._trouble)
            await asyncio.sleep(RETRY_S)

    async def wait_for(self, offset: int, timeout_s: float) -> None:
        """Returns once the record at ``offset`` has been taken, or after ``timeout_s``."""
        deadline_s = asyncio.get_running_loop().time() + timeout_s
        while self._tail is None or self._tail.position <= offset:
            if asyncio.get_running_loop().time() > deadline_s:
                return
            await asyncio.sleep(_POLL_S)

    async def _follow(self) -> None:
        table = PolicyTable()
        async for records in read_to_end(self._client, self._topics.registry):
            for record in records:
                table.seed(record.key or b"", record.value)

        def take(offset: int, key: bytes, value: bytes | None) -> None:
            table.apply(offset, key, value)

        tail = PolicyTail(self._client, self._topics.policies, take)
        await tail.start()
        try:
            await tail.confirmed
            self.table, self._tail, self._trouble = table, tail, None
            await tail.wait()
        finally:
            self._tail = None
            await tail.stop()

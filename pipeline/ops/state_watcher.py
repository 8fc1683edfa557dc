"""A subscriber of ``budget.state`` that notes when it saw what: how long news takes to arrive."""

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from aiokafka import AIOKafkaConsumer

from pipeline.core.errors import TallyportError

POLL_MS = 500


class NotSeen(TallyportError):
    """Something that should have shown on ``budget.state`` did not, in time."""


@dataclass
class Sighting:
    """A state as it was seen at ``seen_s`` (monotonic seconds). ``status`` is the new one."""

    key: str
    seen_s: float
    used: str
    status: str
    former_status: str


@dataclass
class StateWatcher:
    """An async context manager that follows every partition of the topic from its start.

    ``states`` holds the newest state by record key, ``sightings`` every state in the order of
    arrival, ``through`` by partition of ``budget.state`` what its last heartbeat contains.
    """

    client: Mapping[str, Any]
    topic: str
    states: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    sightings: list[Sighting] = field(default_factory=list[Sighting])
    through: dict[int, dict[int, int]] = field(default_factory=dict[int, dict[int, int]])
    partitions: int = 0
    _consumer: AIOKafkaConsumer | None = None
    _task: asyncio.Task[None] | None = None
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def __aenter__(self) -> "StateWatcher":
        # Without a group it follows every partition of the topic.
        self._consumer = consumer = AIOKafkaConsumer(
            self.topic,
            **self.client,
            isolation_level="read_committed",
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=POLL_MS,
        )
        await consumer.start()
        self.partitions = len(consumer.assignment())
        self._task = asyncio.create_task(self._follow(consumer))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._consumer is not None:
            await self._consumer.stop()

    async def until(self, what: str, holds: Callable[[], bool], timeout_s: float) -> None:
        """Waits until ``holds``; raises ``NotSeen`` naming ``what`` after ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        while not holds():
            if self._task is not None and self._task.done():
                await self._task
            self._changed.clear()
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise NotSeen(f"{what}: not seen on {self.topic} within {timeout_s:.0f} s")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), min(left_s, 1.0))

    def contains(self, next_offsets: Mapping[int, int]) -> bool:
        """Whether every partition's last heartbeat has reached ``next_offsets``."""
        if not self.partitions or len(self.through) < self.partitions:
            return False
        return all(
            marks.get(partition, 0) >= offset
            for marks in self.through.values()
            for partition, offset in next_offsets.items()
        )

    async def _follow(self, consumer: AIOKafkaConsumer) -> None:
        while True:
            batches = await consumer.getmany(timeout_ms=POLL_MS)
            seen_s = time.monotonic()
            for tp, records in batches.items():
                for record in records:
                    key = (record.key or b"").decode()
                    self._take(tp.partition, key, record.value, seen_s)
            if batches:
                self._changed.set()

    def _take(self, partition: int, key: str, value: bytes | None, seen_s: float) -> None:
        if value is None:
            self.states.pop(key, None)
            return
        body: dict[str, Any] = json.loads(value)
        if key.startswith("!heartbeat|"):
            self.through[partition] = {int(p): n for p, n in body["through"].items()}
            return
        former = self.states.get(key)
        self.states[key] = body
        self.sightings.append(
            Sighting(
                key,
                seen_s,
                str(body["used"]),
                body["status"],
                former["status"] if former is not None else "",
            )
        )

"""The load of a chaos run: a simulated day over and over, sent by a producer that tries again.

Every record is sent until it is acknowledged. Where the answer was lost nobody knows whether it
arrived, so it is sent again with the same id, and the worker has to see that it is a duplicate.
"""

import asyncio
import json
from collections import deque
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from random import Random
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from producers.malformed import MAKERS, malformed
from producers.partitions import home_partition
from producers.simulator import REJECTED_PREFIX, Sent, simulate

CHUNK = 1_000
TICK_S = 0.1
MAX_PENDING = 4_000
REMEMBERED = 5_000
OLD_SHARE = 0.01
REQUEST_TIMEOUT_MS = 3_000


class Load:
    """Sends ``rate`` records a second, and one that breaks a rule to each partition each tick.

    ``produced`` are the ids that the ledger must come to hold, by port. ``resent`` counts sends
    whose fate was unknown.
    """

    def __init__(
        self, client: Mapping[str, Any], topic: str, partitions: int, rate: int, rng: Random
    ) -> None:
        self.produced: dict[str, set[str]] = {}
        self.acknowledged = 0
        self.resent = 0
        self._client = dict(client)
        self._topic = topic
        self._partitions = partitions
        self._per_tick = max(1, round(rate * TICK_S))
        self._rng = rng
        self._records = self._day()
        self._old: dict[int, deque[Sent]] = {}  # by home partition
        self._again: deque[Sent] = deque()
        self._pending = 0
        self._stop = asyncio.Event()

    async def run(self) -> None:
        """Sends until ``finish`` is called, and then until all is acknowledged."""
        producer = AIOKafkaProducer(
            **self._client,
            acks="all",
            request_timeout_ms=REQUEST_TIMEOUT_MS,
            linger_ms=2,
            max_request_size=2 * 1024 * 1024,
        )
        await producer.start()
        try:
            while not self._stop.is_set():
                await self._tick(producer)
                await asyncio.sleep(TICK_S)
            while not self.is_done:
                await self._send_again(producer)
                await asyncio.sleep(TICK_S)
        finally:
            await producer.stop()

    @property
    def is_done(self) -> bool:
        """Whether everything is acknowledged, after ``finish``."""
        return self._stop.is_set() and not self._pending and not self._again

    def pick(self, rng: Random) -> tuple[str, str] | None:
        """Port and id of some event that was sent lately; None before the first.

        Each partition as often, however few events it has: a worker that owns only a quiet one
        is to have corrections, too.
        """
        return identity(self._some_old(rng)) if self._old else None

    def finish(self) -> None:
        """Nothing new from now on; ``run`` ends once everything is acknowledged."""
        self._stop.set()

    async def _tick(self, producer: AIOKafkaProducer) -> None:
        await self._send_again(producer)
        if self._pending > MAX_PENDING:
            return
        for _ in range(self._per_tick):
            await self._send(producer, next(self._records))
        for partition in range(self._partitions):
            await self._send(producer, self._poison(partition))

    async def _send_again(self, producer: AIOKafkaProducer) -> None:
        for _ in range(len(self._again)):
            await self._send(producer, self._again.popleft())

    async def _send(self, producer: AIOKafkaProducer, record: Sent) -> None:
        self._note(record)
        where = record.partition
        if where is None:
            where = home_partition(record.key or b"", self._partitions)
        self._pending += 1
        try:
            future = await producer.send(
                self._topic, record.value, record.key, headers=list(record.headers), partition=where
            )
        except KafkaError:  # no room, or no broker knows the partition's leader
            self._settled(record, None)
        else:
            future.add_done_callback(partial(self._settled, record))

    def _settled(self, record: Sent, done: "asyncio.Future[Any] | None") -> None:
        self._pending -= 1
        if done is None or done.cancelled() or done.exception() is not None:
            self.resent += 1
            self._again.append(record)
        else:
            self.acknowledged += 1

    def _note(self, record: Sent) -> None:
        if record.label.startswith(REJECTED_PREFIX):
            return
        port_id, event_id = identity(record)
        self.produced.setdefault(port_id, set()).add(event_id)
        home = home_partition(port_id.encode(), self._partitions)
        self._old.setdefault(home, deque(maxlen=REMEMBERED)).append(record)

    def _some_old(self, rng: Random) -> Sent:
        return rng.choice(self._old[rng.choice(list(self._old))])

    def _day(self) -> Iterator[Sent]:
        """Records for ever: days up to now, each shuffled, with repeats of earlier ones."""
        while True:
            seed = self._rng.getrandbits(60)
            chunk = simulate(seed, CHUNK, datetime.now(UTC), partitions=self._partitions)
            self._rng.shuffle(chunk)
            for record in chunk:
                yield record
                if self._old and self._rng.random() < OLD_SHARE:
                    yield self._some_old(self._rng)

    def _poison(self, partition: int) -> Sent:
        body = {
            "event_id": "poison",
            "occurred_at": datetime.now(UTC).isoformat(),
            "port_id": "harbor-1",
            "provider": "openai",
            "model": "gpt-5",
        }
        reason = self._rng.choice(list(MAKERS))
        value, headers = malformed(reason, body, self._rng)
        return Sent(value, b"poison", headers, partition, REJECTED_PREFIX + reason)


def identity(record: Sent) -> tuple[str, str]:
    """Port and id of a valid record, also of a CloudEvent."""
    outer = json.loads(record.value or b"")
    body = outer.get("data", outer)
    attributes = {name.removeprefix("ce_"): text.decode() for name, text in record.headers}
    port_id = body.get("port_id") or outer.get("subject") or attributes["subject"]
    return port_id, body.get("event_id") or outer.get("id") or attributes["id"]

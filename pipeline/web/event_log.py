"""Sending events to ``usage.events``: acknowledged by all replicas, or reported as not.

Each partition has one batch on its way at a time; what arrives meanwhile makes up the next one.
So a single event goes at once, and under load batches grow by themselves.

Batches are sent again without idempotence: a record that stands twice is counted once, and a
producer that forgets what it could not deliver needs no memory for it.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from aiokafka.producer.message_accumulator import BatchBuilder

from pipeline.web.bodies import InFlight
from pipeline.web.event_forms import Headers
from pipeline.web.problems import unavailable
from producers.partitions import home_partition

log = logging.getLogger(__name__)

ACK_TIMEOUT_S = 10.0
REQUEST_TIMEOUT_MS = 8_000
BATCH_BYTES = 512 * 1024
STOP_TIMEOUT_S = 5.0
RETRY_S = 1.0
BROKER_AWAY_S = 2
_NO_COMPRESSION = 0


Outgoing = tuple[bytes, bytes, Headers]
"""A record to send: its key, which is the port's id and decides the partition, value, headers."""


class Placed(NamedTuple):
    """Where acknowledged records stand, in their order."""

    partitions: list[int]
    offsets: list[int]


class _Parcel:
    """The records of one request for one partition; ``done`` ends when all are acknowledged."""

    __slots__ = ("done", "offsets", "records", "taken")

    def __init__(self, records: list[Outgoing]) -> None:
        self.records = records
        self.offsets: list[int] = []
        self.taken = 0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def acknowledge(self, first_offset: int, count: int) -> None:
        """Takes note of the next ``count`` records."""
        self.offsets += range(first_offset, first_offset + count)
        if len(self.offsets) == len(self.records) and not self.done.done():
            self.done.set_result(None)

    def fail(self, error: BaseException) -> None:
        """Not all of it will arrive."""
        if not self.done.done():
            self.done.set_exception(error)
            self.done.exception()  # whoever waits sees it; nobody has to


class _Share(NamedTuple):
    """How many records of a parcel are in a batch, in order of the batch."""

    parcel: _Parcel
    records: int


class _Batch(BatchBuilder):
    """Records on their way to one partition, taken by the run: half of what singly costs."""

    def __init__(self) -> None:
        super().__init__(BATCH_BYTES, _NO_COMPRESSION)

    def extend(self, records: Sequence[Outgoing], now_ms: int) -> int:
        """Adds records until the batch is full; how many it took."""
        append: Any = self._builder.append
        first = offset = self._relative_offset
        for key, value, headers in records:
            if append(offset, now_ms, key, value, headers) is None:
                break
            offset += 1
        self._relative_offset = offset
        return offset - first


class _Lane:
    """What waits for one partition."""

    def __init__(self, partition: int) -> None:
        self.partition = partition
        self.waiting: deque[_Parcel] = deque()
        self.wake = asyncio.Event()

    def add(self, parcel: _Parcel) -> None:
        self.waiting.append(parcel)
        self.wake.set()

    def fill(self, batch: _Batch) -> list[_Share]:
        """Moves as much as fits into a batch."""
        shares: list[_Share] = []
        now_ms = int(time.time() * 1000)
        while self.waiting:
            parcel = self.waiting[0]
            first = parcel.taken
            added = batch.extend(parcel.records[first:] if first else parcel.records, now_ms)
            if added:
                parcel.taken = first + added
                shares.append(_Share(parcel, added))
            if parcel.taken < len(parcel.records):
                break
            self.waiting.popleft()
        if not self.waiting:
            self.wake.clear()
        return shares

    def fail_all(self, error: BaseException) -> None:
        while self.waiting:
            self.waiting.popleft().fail(error)
        self.wake.clear()


class EventLog:
    """Sends records while ``run`` runs; it connects again by itself when the broker was away."""

    def __init__(self, client: Mapping[str, Any], topic: str, in_flight: InFlight) -> None:
        self.topic = topic
        self._client = dict(client)
        self._in_flight = in_flight
        self._lanes: list[_Lane] = []
        self._broken: asyncio.Event | None = None
        self._trouble: str | None = "Kafka has not been reached yet"

    def problems(self) -> list[str]:
        """Why events cannot be taken now."""
        return [self._trouble] if self._trouble else []

    async def send(self, records: Sequence[Outgoing]) -> Placed:
        """Sends the records and waits; where each of them stands.

        Raises ``Problem`` 503 unless every one of them was acknowledged in time. Some may then
        have arrived all the same; sent again they are duplicates, which are counted once.
        """
        if not self._lanes:
            raise unavailable(self._trouble or "Kafka is away", BROKER_AWAY_S)
        partitions = len(self._lanes)
        homes = [home_partition(key, partitions) for key, _, _ in records]
        sorted_out: list[list[Outgoing]] = [[] for _ in range(partitions)]
        for record, partition in zip(records, homes, strict=True):
            sorted_out[partition].append(record)
        parcels = {number: _Parcel(found) for number, found in enumerate(sorted_out) if found}
        for partition, parcel in parcels.items():
            self._lanes[partition].add(parcel)
        await self._settled([*parcels.values()])
        offsets = {p: iter(parcel.offsets).__next__ for p, parcel in parcels.items()}
        return Placed(homes, [offsets[partition]() for partition in homes])

    async def _settled(self, parcels: list[_Parcel]) -> None:
        waiting = [parcel.done for parcel in parcels]
        await asyncio.wait(waiting, timeout=ACK_TIMEOUT_S)
        for parcel in parcels:
            if not parcel.done.done():
                self._remember(parcel)
        failed = [one for one in waiting if not one.done() or one.exception() is not None]
        if not failed:
            return
        error = failed[0].exception() if failed[0].done() else None
        why = f": {error}" if isinstance(error, KafkaError) else " in time"
        raise unavailable(
            f"the broker did not acknowledge{why}; nothing is claimed accepted, send it again",
            BROKER_AWAY_S,
        )

    def _remember(self, parcel: _Parcel) -> None:
        """What nobody waits for any more still takes memory until it is settled."""
        size = sum(len(value) for _, value, _ in parcel.records)
        self._in_flight.keep(size)
        parcel.done.add_done_callback(lambda _: self._in_flight.give(size))

    async def run(self) -> None:
        """Keeps a producer, for ever; a new one after whatever ended the last."""
        while True:
            try:
                await self._serve()
            except (KafkaError, OSError) as error:
                self._fail(f"Kafka: {' '.join(str(error).split())[:200]}")
                await asyncio.sleep(RETRY_S)

    async def _serve(self) -> None:
        producer = AIOKafkaProducer(
            **self._client,
            acks="all",
            linger_ms=0,
            max_batch_size=BATCH_BYTES,
            max_request_size=2 * BATCH_BYTES,
            request_timeout_ms=REQUEST_TIMEOUT_MS,
        )
        pumps: list[asyncio.Task[None]] = []
        try:
            await producer.start()
            partitions = len(await producer.partitions_for(self.topic))
            self._broken = asyncio.Event()
            lanes = [_Lane(partition) for partition in range(partitions)]
            pumps = [asyncio.create_task(self._pump(producer, lane)) for lane in lanes]
            broken = asyncio.create_task(self._broken.wait())
            self._lanes, self._trouble = lanes, None
            ended, _ = await asyncio.wait([broken, *pumps], return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                task.result()
            raise KafkaError(self._trouble or "the producer gave up")
        finally:
            lanes, self._lanes = self._lanes, []
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            for lane in lanes:
                lane.fail_all(KafkaError("the connection was given up"))
            with suppress(TimeoutError, KafkaError):
                async with asyncio.timeout(STOP_TIMEOUT_S):
                    await producer.stop()

    async def _pump(self, producer: AIOKafkaProducer, lane: _Lane) -> None:
        while True:
            await lane.wake.wait()
            batch = _Batch()
            shares = lane.fill(batch)
            batch.close()
            try:
                future = await producer.send_batch(batch, self.topic, partition=lane.partition)
                sent = await future
            except asyncio.CancelledError:
                _fail_shares(shares, KafkaError("the connection was given up"))
                raise
            except Exception as error:
                _fail_shares(shares, error)
                self._note_failure(error)
                continue
            self._trouble = None
            offset: int = sent.offset
            for share in shares:
                share.parcel.acknowledge(offset, share.records)
                offset += share.records

    def _note_failure(self, error: Exception) -> None:
        self._fail(f"Kafka: {' '.join(str(error).split())[:200] or type(error).__name__}")
        if not getattr(error, "retriable", False) and self._broken is not None:
            self._broken.set()

    def _fail(self, trouble: str) -> None:
        if self._trouble is None:
            log.warning("events cannot be sent: %s", trouble)
        self._trouble = trouble


def _fail_shares(shares: list[_Share], error: BaseException) -> None:
    for share in shares:
        share.parcel.fail(error)

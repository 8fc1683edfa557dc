"""Reading and following ``pricing.rates`` (contract, sections 4 and 7)."""

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError, OffsetOutOfRangeError
from aiokafka.structs import ConsumerRecord

from pipeline import metrics
from pipeline.core.book import Book
from pipeline.core.errors import TallyportError
from pipeline.core.prices import PriceVersion
from pipeline.core.rates import RateLog, RateSet
from pipeline.core.restored import first_timestamp_ms
from pipeline.stream.reader import open_follower, out_of_range, read_to_end

FETCH_MAX_WAIT_MS = 200
START_TIMEOUT_S = 60.0
CONFIRM_TIMEOUT_S = 60.0
POLL_S = 0.01
# A fetch's answer speaks of the moment the broker wrote it, a little before it is seen here.
CONFIRM_MARGIN_S = 1.0
# A shorter wait could never be met by fetches that are themselves this old when they are seen.
SHORTEST_LEAD_S = 2.0


class RateLogError(TallyportError):
    """The rates could not be read or written."""


async def load_rates(
    client: Mapping[str, Any],
    topic: str,
    lead_s: int,
    currency: str = "USD",
    before_offset: int | None = None,
) -> RateSet:
    """Reads all rates once, to where the log ends at the call.

    ``client`` holds aiokafka's connection arguments. ``before_offset`` stops at an earlier
    version (its ``rates_next_offset``). Raises ``ReadTimedOut`` and ``RateLogError``.
    """
    log = RateLog(currency)
    try:
        async for records in read_to_end(client, topic):
            for record in records:
                if before_offset is None or record.offset < before_offset:
                    _feed(log, record, lead_s)
    except KafkaError as error:
        raise RateLogError(f"topic {topic} cannot be read: {error}") from error
    return log.snapshot()


class RateTail:
    """Follows ``pricing.rates`` and holds the price version of everything read so far.

    ``confirmed_s`` is the time of the monotonic clock at which the end of the log was last known
    to have been read; None before the first time. When following fails, ``wait_confirmed`` and
    ``wait`` raise ``RateLogError``; the version then stays as it was.
    """

    def __init__(
        self,
        client: Mapping[str, Any],
        topic: str,
        book: Book,
        *,
        lead_s: int,
        currency: str = "USD",
        on_change: Callable[[PriceVersion], None] | None = None,
    ) -> None:
        self.confirmed_s: float | None = None
        self._polled_ms: int | None = None
        self._client = dict(client)
        self._tp = TopicPartition(topic, 0)
        self._book = book
        self._lead_s = lead_s
        self._on_change = on_change
        self._log = RateLog(currency)
        self._version = PriceVersion(self._log.snapshot(), book)
        self._task: asyncio.Task[None] | None = None

    @property
    def version(self) -> PriceVersion:
        """The prices of everything read so far."""
        return self._version

    @property
    def next_offset(self) -> int:
        """The offset after the last rate read; part of the version's key."""
        return self._version.rates.next_offset

    async def start(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Reads to the end, then goes on in a task. Raises ``RateLogError``."""
        self._task = asyncio.create_task(self._follow(), name=f"rate tail {self._tp.topic}")
        try:
            if not await self._until(lambda: self.confirmed_s is not None, timeout_s):
                raise self._not_reached(timeout_s)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Ends following; harmless when it has ended."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def wait(self) -> None:
        """Returns when ``stop`` is called; raises ``RateLogError`` when following fails."""
        task = self._task
        if task is not None:
            await asyncio.wait([task])
            self._raise_failure(task)

    async def wait_confirmed(self, lead_s: float) -> None:
        """Returns once the end of the log was seen no longer than ``lead_s`` ago.

        Raises ``RateLogError`` when that does not come true in time.
        """
        if not await self.confirmed_within(CONFIRM_TIMEOUT_S, lead_s):
            raise self._not_reached(CONFIRM_TIMEOUT_S)

    async def confirmed_within(self, wait_s: float, lead_s: float) -> bool:
        """Waits up to ``wait_s``; whether the end of the log was seen no longer than ``lead_s``
        ago by then. Raises ``RateLogError`` when following has failed.
        """
        allowed_s = max(lead_s, SHORTEST_LEAD_S)
        if self.age_s() <= allowed_s:
            return True
        return await self._until(lambda: self.age_s() <= allowed_s, wait_s)

    def age_s(self) -> float:
        """Seconds since the end of the log was last known to have been read."""
        confirmed_s = self.confirmed_s
        return math.inf if confirmed_s is None else time.monotonic() - confirmed_s

    async def _until(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            self._raise_failure(self._task)
            if time.monotonic() > deadline_s:
                return False
            await asyncio.sleep(POLL_S)
        return True

    def _not_reached(self, timeout_s: float) -> RateLogError:
        topic = self._tp.topic
        return RateLogError(f"the end of topic {topic} was not reached in {timeout_s:.0f} s")

    def _raise_failure(self, task: "asyncio.Task[None] | None") -> None:
        if task is None or not task.done():
            return
        failure = None if task.cancelled() else task.exception()
        raise RateLogError(
            f"following topic {self._tp.topic} has ended: {failure or 'stopped'}"
        ) from failure

    async def _follow(self) -> None:
        consumer = await open_follower(self._client, self._tp.topic, FETCH_MAX_WAIT_MS, whole=True)
        try:
            while True:
                await self._take(consumer)
        except OffsetOutOfRangeError as error:
            raise out_of_range(error, "the reader of rates") from error
        finally:
            await consumer.stop()

    async def _take(self, consumer: AIOKafkaConsumer) -> None:
        """Takes what has arrived, and notes whether that was all there is."""
        records: list[ConsumerRecord] = []
        asked_s = time.monotonic()
        for batch in (await consumer.getmany(self._tp, timeout_ms=FETCH_MAX_WAIT_MS)).values():
            records += batch
        for record in records:
            _feed(self._log, record, self._lead_s)
        if records:
            self._version = PriceVersion(self._log.snapshot(), self._book)
            metrics.RATES_UNUSED.set(len(self._version.rates.ignored))
            if self._on_change is not None:
                self._on_change(self._version)
        end = consumer.last_stable_offset(self._tp)
        polled_ms = consumer.last_poll_timestamp(self._tp)
        if end is None or polled_ms == self._polled_ms:
            return
        self._polled_ms = polled_ms  # of the wall clock, and so only good to tell fetches apart
        if await consumer.position(self._tp) >= end:
            self.confirmed_s = asked_s - CONFIRM_MARGIN_S


def _feed(log: RateLog, record: ConsumerRecord, lead_s: int) -> None:
    arrived_ms = first_timestamp_ms(record.headers, record.timestamp)
    log.feed(record.offset, record.key, record.value, arrived_ms, lead_s)

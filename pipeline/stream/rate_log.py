"""Reading, following and writing ``pricing.rates`` (contract, sections 4 and 7)."""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError
from aiokafka.structs import ConsumerRecord

from pipeline import metrics
from pipeline.core.book import Book
from pipeline.core.errors import TallyportError
from pipeline.core.prices import PriceVersion
from pipeline.core.rates import Rate, RateLog, RateSet, encode_rate, parse_rate
from pipeline.stream.reader import read_to_end

FETCH_MAX_WAIT_MS = 200
START_TIMEOUT_S = 60.0
WRITE_TIMEOUT_S = 15.0
CONFIRM_TIMEOUT_S = 60.0
POLL_S = 0.01
# A fetch's answer speaks of the moment the broker wrote it, a little before it is seen here.
CONFIRM_MARGIN_MS = 1_000
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


async def publish_rates(
    client: Mapping[str, Any], topic: str, rates: Iterable[Rate | Mapping[str, Any]]
) -> list[int]:
    """Writes rates in order and returns their offsets, once all in-sync replicas have them.

    Raises ``InvalidField`` before anything is written when a record breaks a rule, and
    ``RateLogError`` when the broker does not acknowledge; then some may have been written.
    """
    checked = [parse_rate(rate) if isinstance(rate, Mapping) else rate for rate in rates]
    producer = AIOKafkaProducer(**client, acks="all", enable_idempotence=True)
    offsets: list[int] = []
    try:
        async with asyncio.timeout(WRITE_TIMEOUT_S):
            await producer.start()
        for rate in checked:
            sent = producer.send_and_wait(
                topic, key=rate.rate_id.encode(), value=encode_rate(rate), partition=0
            )
            metadata = await asyncio.wait_for(sent, WRITE_TIMEOUT_S)
            offsets.append(metadata.offset)
    except TimeoutError as error:
        raise RateLogError(f"topic {topic}: no acknowledgement in {WRITE_TIMEOUT_S:.0f} s") from (
            error
        )
    except KafkaError as error:
        raise RateLogError(f"topic {topic} cannot be written: {error}") from error
    finally:
        await producer.stop()
    return offsets


async def publish_rate(
    client: Mapping[str, Any], topic: str, record: Rate | Mapping[str, Any]
) -> int:
    """Writes one rate and returns its offset; see ``publish_rates``."""
    return (await publish_rates(client, topic, [record]))[0]


class RateTail:
    """Follows ``pricing.rates`` and holds the price version of everything read so far.

    ``confirmed_ms`` is the wall-clock time (milliseconds since 1970) at which the end of the
    log was last known to have been read; 0 before the first time. When following fails,
    ``wait_confirmed`` and ``wait`` raise ``RateLogError``; the version then stays as it was.
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
        self.confirmed_ms = 0
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
            await self._until(lambda: self.confirmed_ms > 0, timeout_s)
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
        if self._age_ms() > max(lead_s, SHORTEST_LEAD_S) * 1000:
            allowed_ms = max(lead_s, SHORTEST_LEAD_S) * 1000
            await self._until(lambda: self._age_ms() <= allowed_ms, CONFIRM_TIMEOUT_S)

    def _age_ms(self) -> float:
        return time.time() * 1000 - self.confirmed_ms

    async def _until(self, condition: Callable[[], bool], timeout_s: float) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            self._raise_failure(self._task)
            if time.monotonic() > deadline_s:
                raise RateLogError(
                    f"the end of topic {self._tp.topic} was not reached in {timeout_s:.0f} s"
                )
            await asyncio.sleep(POLL_S)

    def _raise_failure(self, task: "asyncio.Task[None] | None") -> None:
        if task is None or not task.done():
            return
        failure = None if task.cancelled() else task.exception()
        raise RateLogError(
            f"following topic {self._tp.topic} has ended: {failure or 'stopped'}"
        ) from failure

    async def _follow(self) -> None:
        consumer = AIOKafkaConsumer(
            **self._client,
            isolation_level="read_committed",
            enable_auto_commit=False,
            # A position that no longer exists means another log: fail, never start over.
            auto_offset_reset="none",
            fetch_max_wait_ms=FETCH_MAX_WAIT_MS,
        )
        try:
            await consumer.start()
            if self._tp.topic not in await consumer.topics():
                raise RateLogError(f"topic {self._tp.topic} does not exist; run `tallyport topics`")
            consumer.assign([self._tp])
            await consumer.seek_to_beginning(self._tp)
            while True:
                await self._take(consumer)
        finally:
            await consumer.stop()

    async def _take(self, consumer: AIOKafkaConsumer) -> None:
        """Takes what has arrived, and notes whether that was all there is."""
        records: list[ConsumerRecord] = []
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
        if end is not None and polled_ms is not None and await consumer.position(self._tp) >= end:
            self.confirmed_ms = polled_ms - CONFIRM_MARGIN_MS


def _feed(log: RateLog, record: ConsumerRecord, lead_s: int) -> None:
    log.feed(record.offset, record.key, record.value, record.timestamp, lead_s)

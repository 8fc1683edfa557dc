"""``tallyport.notices`` on Kafka: read by anybody, written by the one process that tells people.

Whoever is assigned the topic's only partition may write, with one transactional id that all
processes share: taking it over ends whatever the one before had not committed, for good.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping, Sequence
from datetime import date
from typing import Any, Final

import msgspec
from aiokafka import (
    AIOKafkaConsumer,
    AIOKafkaProducer,
    ConsumerRebalanceListener,
    TopicPartition,
)
from aiokafka.errors import KafkaError

from pipeline.core.errors import TallyportError
from pipeline.notices.book import NOTICE, REQUEST, NoticeBook
from pipeline.notices.notice import Notice, notice_json
from pipeline.stream.reader import read_to_end, topic_partitions
from pipeline.stream.topics import Topics

TRANSACTION_TIMEOUT_MS: Final = 10_000
WRITE_TIMEOUT_S: Final = 15.0
READ_TIMEOUT_S: Final = 15.0
STOP_TIMEOUT_S: Final = 5.0
LEAVE_TIMEOUT_S: Final = 8.0
SESSION_MS: Final = 10_000
_HEARTBEAT_MS = 3_000
_POLL_MS = 200
_REQUEST_POLL_S = 0.4

Record = tuple[str, bytes | None]
"""Key and value; None is a tombstone."""


class NoticeLogError(TallyportError):
    """The log of notices could not be read or written."""


async def read_book(client: Mapping[str, Any], topic: str) -> NoticeBook:
    """What the log holds now. Raises ``NoticeLogError``."""
    book = NoticeBook()
    try:
        async for records in read_to_end(client, topic, [0], timeout_s=READ_TIMEOUT_S):
            for record in records:
                book.apply(record.key, record.value)
    except (KafkaError, OSError) as error:
        raise NoticeLogError(f"{topic}: cannot be read: {error}") from error
    return book


async def request_report(
    client: Mapping[str, Any], topic: str, week: date, notice_id: str, timeout_s: float
) -> tuple[Notice | None, bool]:
    """Asks for the report on a week, and waits until it went out or was given up.

    Returns how its notice stands after at most ``timeout_s`` (None while there is none), and
    whether it had been there before. Raises ``NoticeLogError``.
    """
    found = (await read_book(client, topic)).notices.get(notice_id)
    if found is not None:
        return found, True
    await _ask(client, topic, week)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            while found is None or found.is_pending:
                await asyncio.sleep(_REQUEST_POLL_S)
                found = (await read_book(client, topic)).notices.get(notice_id, found)
    return found, False


async def _ask(client: Mapping[str, Any], topic: str, week: date) -> None:
    producer = AIOKafkaProducer(**client, acks="all")
    try:
        async with asyncio.timeout(WRITE_TIMEOUT_S):
            await producer.start()
            key = f"{REQUEST}{week.isoformat()}".encode()
            await producer.send_and_wait(topic, b"{}", key, partition=0)
    except (TimeoutError, KafkaError, OSError) as error:
        raise NoticeLogError(f"{topic}: cannot be written: {error}") from error
    finally:
        with contextlib.suppress(TimeoutError, KafkaError):
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await producer.stop()


class Office(ConsumerRebalanceListener):
    """This process among those that could tell people; the one that is assigned the partition is.

    Kafka gives it to another one only after ``left`` was called, or after ``LEAVE_TIMEOUT_S``.
    """

    def __init__(self, consumer: AIOKafkaConsumer, topic: str) -> None:
        self._consumer = consumer
        self._tp = TopicPartition(topic, 0)
        self._holds = False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def is_ours(self) -> bool:
        return self._holds and self._tp in self._consumer.assignment()

    async def won(self) -> None:
        """Returns once this process is the one."""
        while not self.is_ours:
            await self._consumer.getmany(timeout_ms=_POLL_MS)
        self._idle.clear()

    def left(self) -> None:
        """Nothing is under way here any more."""
        self._idle.set()

    async def on_partitions_assigned(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, assigned: list[TopicPartition]
    ) -> None:
        self._holds = self._tp in assigned

    async def on_partitions_revoked(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, revoked: list[TopicPartition]
    ) -> None:
        self._holds = False
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_TIMEOUT_S):
                await self._idle.wait()

    async def read(self) -> NoticeBook:
        """The whole log, once its writer was taken over. Raises ``KafkaError``."""
        book = NoticeBook()
        await self._consumer.seek_to_beginning(self._tp)
        end = (await self._consumer.end_offsets([self._tp]))[self._tp]
        while await self._consumer.position(self._tp) < end:
            for key, value in await self.news(_POLL_MS):
                book.apply(key, value)
        return book

    async def news(self, timeout_ms: int) -> list[tuple[bytes | None, bytes | None]]:
        """What has come since, within ``timeout_ms``."""
        batches = await self._consumer.getmany(timeout_ms=timeout_ms)
        return [(record.key, record.value) for found in batches.values() for record in found]


@contextlib.asynccontextmanager
async def office(client: Mapping[str, Any], topics: Topics) -> AsyncGenerator[Office]:
    """Joins those that could tell people. Raises ``TallyportError`` without the topic."""
    consumer = AIOKafkaConsumer(
        **client,
        group_id=topics.notices_group,
        isolation_level="read_committed",
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        session_timeout_ms=SESSION_MS,
        heartbeat_interval_ms=_HEARTBEAT_MS,
        fetch_max_wait_ms=100,
    )
    try:
        await consumer.start()
        await topic_partitions(consumer, topics.notices)
        place = Office(consumer, topics.notices)
        consumer.subscribe([topics.notices], listener=place)
        yield place
    finally:
        with contextlib.suppress(TimeoutError, KafkaError):
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await consumer.stop()


class NoticeWriter:
    """Writes records in transactions; the next one to begin ends this one's."""

    def __init__(self, producer: AIOKafkaProducer, topic: str) -> None:
        self._producer = producer
        self._topic = topic

    async def write(self, records: Sequence[Record]) -> None:
        """All of them, or none. Raises ``KafkaError`` or ``NoticeLogError``."""
        try:
            async with asyncio.timeout(WRITE_TIMEOUT_S), self._producer.transaction():
                for key, value in records:
                    await self._producer.send_and_wait(
                        self._topic, value, key.encode(), partition=0
                    )
        except TimeoutError as error:
            raise NoticeLogError(f"{self._topic}: not written in time") from error


@contextlib.asynccontextmanager
async def writer(client: Mapping[str, Any], topics: Topics) -> AsyncGenerator[NoticeWriter]:
    """Takes over the log's writing. Raises ``KafkaError``."""
    producer = AIOKafkaProducer(
        **client,
        transactional_id=topics.notices_transactional_id,
        transaction_timeout_ms=TRANSACTION_TIMEOUT_MS,
        acks="all",
    )
    try:
        await producer.start()
        yield NoticeWriter(producer, topics.notices)
    finally:
        with contextlib.suppress(TimeoutError, KafkaError):
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await producer.stop()


def notice_record(notice: Notice) -> Record:
    """The record of a notice."""
    return f"{NOTICE}{notice.id}", notice_json(notice)


def begun_json(at_ms: int) -> bytes:
    """The record value that says since when people are told."""
    return msgspec.json.encode({"at_ms": at_ms})

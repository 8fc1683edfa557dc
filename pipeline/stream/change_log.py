"""Who changed which policy, price or name: the change, and the entry of it, in one transaction.

    1 fence   take over the one transactional id that all writers share: whatever another one
              had not committed yet is gone for good
    2 decide  read what is in force now, check it, and plan the change
    3 send    the records and one entry for each
    4 commit  all of it becomes visible, or nothing

Whoever commits knows that nobody else did since it read, so two writers that start from the
same state cannot both win: the second one is fenced and decides anew. What is done elsewhere, as
the runs of ``web.runs``, leaves entries alone (``note_change``). Changes of API keys are in the
keys file (``web.key_file``), which is its own history.
"""

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Literal, NamedTuple, Protocol

import msgspec
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import (
    ConcurrentTransactions,
    IllegalOperation,
    InvalidProducerEpoch,
    KafkaError,
    ProducerFenced,
)

from pipeline import faults
from pipeline.core.errors import TallyportError
from pipeline.core.windows import format_ms

ATTEMPTS = 8
ATTEMPT_TIMEOUT_S = 15.0
TRANSACTION_TIMEOUT_MS = 10_000
STOP_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 10.0
_BACKOFF_S = 0.2
_READ_CHUNK = 500
# A producer that is fenced between two calls refuses the second one as an illegal operation.
_FENCED = (ProducerFenced, InvalidProducerEpoch, ConcurrentTransactions, IllegalOperation)

Subject = Literal["policy", "price", "name", "key", "run"]


class ChangeTopics(Protocol):
    """What a writer needs to know of the deployment's names."""

    @property
    def changes(self) -> str: ...

    @property
    def change_transactional_id(self) -> str: ...


class ChangeLogError(TallyportError):
    """A change could not be written or the log not be read."""


class Planned(NamedTuple):
    """One record to write, and what the change log says about it.

    ``topic`` None is no record, the entry alone; ``value`` None is a tombstone; ``before`` and
    ``after`` are the bodies as on the wire, None where there is none.
    """

    topic: str | None
    key: bytes
    value: bytes | None
    subject: Subject
    before: dict[str, Any] | None
    after: dict[str, Any] | None


class Change(msgspec.Struct, frozen=True):
    """One entry of the log; ``at`` is the broker's time, RFC 3339."""

    at: str
    who: str
    what: str
    key: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None


class _Recorded(msgspec.Struct, frozen=True):
    """A change as it lies on the topic; the record's own timestamp says when."""

    who: str
    what: str
    key: str
    before: dict[str, Any] | None = None
    after: dict[str, Any] | None = None


class Page(NamedTuple):
    """Changes, newest first, each with its offset; ``before`` continues with older ones."""

    changes: list[tuple[int, Change]]
    before: int


async def commit_changes(
    client: Mapping[str, Any],
    topics: ChangeTopics,
    who: str,
    plan: Callable[[], Awaitable[Sequence[Planned]]],
) -> list[int]:
    """Writes what ``plan`` returns; the offsets of its records, in order.

    ``plan`` is called after the fence and so sees every change before its own; it may be called
    again. What it raises ends the attempt and nothing is written. Raises ``ChangeLogError``.
    """
    for _ in range(ATTEMPTS):
        try:
            async with asyncio.timeout(ATTEMPT_TIMEOUT_S):
                return await _attempt(client, topics, who, plan)
        except _FENCED:
            await asyncio.sleep(random.uniform(0, _BACKOFF_S))
        except TimeoutError as error:
            raise ChangeLogError(
                f"{topics.changes}: not acknowledged within {ATTEMPT_TIMEOUT_S:.0f} s; whether "
                "the change was written is unknown"
            ) from error
        except KafkaError as error:
            raise ChangeLogError(f"{topics.changes}: {error}") from error
    raise ChangeLogError(f"{topics.changes}: too many others write changes now; try again")


async def _attempt(
    client: Mapping[str, Any],
    topics: ChangeTopics,
    who: str,
    plan: Callable[[], Awaitable[Sequence[Planned]]],
) -> list[int]:
    async with _fenced_producer(client, topics) as producer:  # 1
        faults.point("change-fenced")
        planned = await plan()  # 2
        if not planned:
            return []
        await producer.begin_transaction()
        records: list[asyncio.Future[Any]] = []
        entries: list[asyncio.Future[Any]] = []
        for one in planned:  # 3
            if one.topic is not None:
                records.append(await producer.send(one.topic, one.value, one.key, partition=0))
            entry = msgspec.json.encode(_recorded(who, one))
            entries.append(await producer.send(topics.changes, entry, one.key, partition=0))
        for future in (*records, *entries):  # awaited below, unless the commit fails first
            future.add_done_callback(_retrieve)
        faults.point("change-sent")
        await producer.commit_transaction()  # 4
        faults.point("change-committed")
        return [(await future).offset for future in records]


async def note_change(
    client: Mapping[str, Any],
    topics: ChangeTopics,
    subject: Subject,
    who: str,
    key: str,
    before: dict[str, Any] | None,
    after: dict[str, Any] | None,
) -> None:
    """An entry about what is done elsewhere. Raises ``ChangeLogError``."""

    async def plan() -> Sequence[Planned]:
        return [Planned(None, key.encode(), None, subject, before, after)]

    await commit_changes(client, topics, who, plan)


def _recorded(who: str, planned: Planned) -> _Recorded:
    key = planned.key.decode(errors="replace")
    return _Recorded(who, planned.subject, key, planned.before, planned.after)


def _retrieve(done: "asyncio.Future[Any]") -> None:
    if not done.cancelled():
        done.exception()


@asynccontextmanager
async def _fenced_producer(
    client: Mapping[str, Any], topics: ChangeTopics
) -> AsyncGenerator[AIOKafkaProducer]:
    producer = AIOKafkaProducer(
        **client,
        transactional_id=topics.change_transactional_id,
        transaction_timeout_ms=TRANSACTION_TIMEOUT_MS,
        acks="all",
    )
    try:
        await producer.start()
        yield producer
    finally:
        with suppress(TimeoutError, KafkaError):
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await producer.stop()


async def read_changes(
    client: Mapping[str, Any], topic: str, limit: int, before: int | None = None
) -> Page:
    """The ``limit`` newest changes below offset ``before`` (default: the log's end).

    Raises ``ChangeLogError``.
    """
    consumer = AIOKafkaConsumer(
        **client,
        isolation_level="read_committed",
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        fetch_max_wait_ms=50,
    )
    try:
        async with asyncio.timeout(READ_TIMEOUT_S):
            await consumer.start()
            return await _read_back(consumer, TopicPartition(topic, 0), limit, before)
    except TimeoutError as error:
        raise ChangeLogError(f"{topic}: cannot be read: no answer in time") from error
    except KafkaError as error:
        raise ChangeLogError(f"{topic}: cannot be read: {error}") from error
    finally:
        await consumer.stop()


async def _read_back(
    consumer: AIOKafkaConsumer, tp: TopicPartition, limit: int, before: int | None
) -> Page:
    consumer.assign([tp])
    start = (await consumer.beginning_offsets([tp]))[tp]
    end = (await consumer.end_offsets([tp]))[tp]
    upper = end if before is None else max(start, min(before, end))
    found: list[tuple[int, Change]] = []
    while upper > start and len(found) < limit:
        lower = max(start, upper - max(_READ_CHUNK, 2 * limit))
        chunk = await _read_range(consumer, tp, lower, upper)
        found += chunk[::-1]
        upper = lower
    if len(found) > limit:
        found = found[:limit]
        upper = found[-1][0]
    return Page(found, upper if upper > start else 0)


async def _read_range(
    consumer: AIOKafkaConsumer, tp: TopicPartition, lower: int, upper: int
) -> list[tuple[int, Change]]:
    consumer.seek(tp, lower)
    found: list[tuple[int, Change]] = []
    while await consumer.position(tp) < upper:
        batches = await consumer.getmany(tp, timeout_ms=200)
        for record in batches.get(tp, ()):
            if record.offset < upper and (change := _parse(record.value, record.timestamp)):
                found.append((record.offset, change))
    return found


def _parse(value: bytes | None, timestamp_ms: int) -> Change | None:
    """The change in a record; None for what somebody else put there."""
    try:
        recorded = msgspec.json.decode(value or b"", type=_Recorded)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return Change(
        format_ms(timestamp_ms),
        recorded.who,
        recorded.what,
        recorded.key,
        recorded.before,
        recorded.after,
    )

"""Reading and writing budget policies on Kafka (contract, sections 4 and 6)."""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Protocol

import msgspec
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError

from pipeline.core.errors import TallyportError
from pipeline.core.policies import InvalidPolicy, Policy, PolicyTable, policy_json
from pipeline.core.scopes import parse_key
from pipeline.stream.reader import read_to_end

WRITE_TIMEOUT_S = 15.0
REQUEST_TIMEOUT_MS = 10_000
STOP_TIMEOUT_S = 5.0
FETCH_MAX_WAIT_MS = 100

OnRecord = Callable[[int, bytes, bytes | None], None]
"""offset, key, value of one record; an empty key stands for none."""


class PolicyTopics(Protocol):
    """The full names of the two topics that hold policies."""

    @property
    def policies(self) -> str: ...

    @property
    def registry(self) -> str: ...


class PolicyView(msgspec.Struct, frozen=True):
    """The policies in force by key, and the records that are ignored."""

    policies: dict[str, Policy]
    invalid: list[InvalidPolicy]


class PolicyLogError(TallyportError):
    """The policies could not be read or written."""


async def load_policies(client: Mapping[str, Any], topics: PolicyTopics) -> PolicyView:
    """Reads all policies once, to where the log ends at the call.

    ``client`` holds aiokafka's connection arguments. For an invalid record the last valid
    policy is that in the log, or, where compaction has dropped it, that in the registry.
    """
    table = PolicyTable()
    async for records in read_to_end(client, topics.registry):
        for record in records:
            table.seed(record.key or b"", record.value)
    async for records in read_to_end(client, topics.policies):
        for record in records:
            table.apply(record.offset, record.key, record.value)
    return PolicyView(table.policies, list(table.invalid.values()))


async def write_policy(client: Mapping[str, Any], topics: PolicyTopics, policy: Policy) -> int:
    """Writes ``policy`` and returns its offset, once all in-sync replicas have it."""
    return await _send(client, topics.policies, policy.key.encode(), policy_json(policy))


async def delete_policy(client: Mapping[str, Any], topics: PolicyTopics, key: str) -> int:
    """Deletes the policy under the record key ``key``; returns the tombstone's offset.

    Raises ``InvalidField`` unless ``key`` is ``scope|unit|period`` in canonical form.
    """
    parse_key(key)
    return await _send(client, topics.policies, key.encode(), None)


class PolicyTail:
    """Follows ``budget.policies`` from its beginning and hands over each record in order.

    ``confirmed`` is done when everything that was there at the start has been handed over, and
    fails when following fails. An exception in the callback, or of the client, ends following:
    it is in ``confirmed`` or, later, raised by ``wait``.
    """

    def __init__(self, client: Mapping[str, Any], topic: str, on_record: OnRecord) -> None:
        self.confirmed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.position = 0
        self._client = dict(client)
        self._tp = TopicPartition(topic, 0)
        self._on_record = on_record
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Starts following in a task; await ``confirmed`` for the records that are there."""
        self._task = asyncio.create_task(self._follow(), name=f"policy tail {self._tp.topic}")
        self._task.add_done_callback(self._ended)

    async def wait(self) -> None:
        """Returns when ``stop`` was called; raises what ended following otherwise."""
        if self._task is not None:
            await asyncio.wait([self._task])
            if not self._task.cancelled():
                self._task.result()

    async def stop(self) -> None:
        """Stops following and closes the connection."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if not self.confirmed.done():
            self.confirmed.cancel()

    def _ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None and not self.confirmed.done():
            self.confirmed.set_exception(error)

    async def _follow(self) -> None:
        consumer = AIOKafkaConsumer(
            **self._client,
            isolation_level="read_committed",
            enable_auto_commit=False,
            auto_offset_reset="none",
            fetch_max_wait_ms=FETCH_MAX_WAIT_MS,
        )
        try:
            await consumer.start()
            consumer.assign([self._tp])
            end = (await consumer.end_offsets([self._tp]))[self._tp]
            await consumer.seek_to_beginning(self._tp)
            self.position = await consumer.position(self._tp)
            while True:
                if self.position >= end and not self.confirmed.done():
                    self.confirmed.set_result(None)
                batches = await consumer.getmany(self._tp, timeout_ms=FETCH_MAX_WAIT_MS)
                for record in batches.get(self._tp, ()):
                    self._on_record(record.offset, record.key or b"", record.value)
                # Beyond the last record lie transaction markers and compacted offsets.
                self.position = await consumer.position(self._tp)
        except KafkaError as error:
            raise PolicyLogError(f"{self._tp.topic}: cannot be followed: {error}") from error
        finally:
            await consumer.stop()


async def _send(client: Mapping[str, Any], topic: str, key: bytes, value: bytes | None) -> int:
    producer = AIOKafkaProducer(
        **client, acks="all", enable_idempotence=True, request_timeout_ms=REQUEST_TIMEOUT_MS
    )
    try:
        async with asyncio.timeout(WRITE_TIMEOUT_S):
            await producer.start()
            sent = await producer.send_and_wait(topic, value=value, key=key, partition=0)
            return int(sent.offset)
    except TimeoutError as error:
        raise PolicyLogError(
            f"{topic}: not acknowledged within {WRITE_TIMEOUT_S:.0f} s; whether it was written "
            "is unknown"
        ) from error
    except KafkaError as error:
        raise PolicyLogError(f"{topic}: {error}") from error
    finally:
        with suppress(TimeoutError, KafkaError):
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await producer.stop()

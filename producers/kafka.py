"""Sending events to Kafka: every record acknowledged by all replicas, none twice.

aiokafka is imported on first use, so that the package stays light without the extra ``all``.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

from producers.partitions import home_partition

if TYPE_CHECKING:
    from aiokafka import AIOKafkaProducer
    from aiokafka.structs import RecordMetadata

Header = tuple[str, bytes]

BATCH_BYTES = 256 * 1024
MAX_RECORD_BYTES = 2 * 1024 * 1024


class KafkaExtraMissing(ModuleNotFoundError):
    """aiokafka is not installed; ``pip install 'tallyport[all]'`` adds it."""

    def __init__(self) -> None:
        text = "the publisher needs the extra: pip install 'tallyport[all]'"
        super().__init__(text, name="aiokafka")


class Publisher:
    """An async context manager that sends records to one topic.

    ``client`` holds aiokafka's connection arguments (``bootstrap_servers`` and security).
    At most ``max_in_flight`` records wait for their acknowledgement; ``send`` waits beyond that.
    ``sent`` and ``failed`` count records; ``last_error`` keeps the latest failure.
    """

    def __init__(
        self,
        client: Mapping[str, Any],
        topic: str,
        *,
        max_in_flight: int = 20_000,
        linger_ms: int = 5,
        request_timeout_ms: int = 30_000,
    ) -> None:
        self.topic = topic
        self.sent = 0
        self.failed = 0
        self.last_error: BaseException | None = None
        self._client = dict(client)
        self._max_in_flight = max_in_flight
        self._linger_ms = linger_ms
        self._request_timeout_ms = request_timeout_ms
        self._in_flight = 0
        self._room = asyncio.Event()
        self._room.set()
        self._producer: AIOKafkaProducer | None = None
        self._partitions = 0

    async def __aenter__(self) -> "Publisher":
        producer = _new_producer(
            {
                **self._client,
                "acks": "all",
                "enable_idempotence": True,
                "linger_ms": self._linger_ms,
                "max_batch_size": BATCH_BYTES,
                "max_request_size": MAX_RECORD_BYTES,
                "request_timeout_ms": self._request_timeout_ms,
            }
        )
        try:
            await producer.start()
            found = await producer.partitions_for(self.topic)
        except BaseException:
            await producer.stop()
            raise
        self._partitions = len(found)
        self._producer = producer
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            await producer.stop()

    @property
    def partitions(self) -> int:
        """How many partitions the topic has."""
        return self._partitions

    async def send(
        self,
        value: bytes | None,
        key: bytes | None = None,
        headers: Sequence[Header] = (),
        partition: int | None = None,
    ) -> "asyncio.Future[RecordMetadata]":
        """Hands over one record; the future ends with its partition and offset.

        Without ``partition`` the key's home partition is taken, without a key any. A failed
        record is counted in ``failed``; nobody needs to await the future.
        """
        await self._wait_for_room(1)
        if partition is None and key is not None:
            partition = home_partition(key, self._partitions)
        producer = self._started()
        self._in_flight += 1
        try:
            future = await producer.send(
                self.topic, value=value, key=key, headers=list(headers), partition=partition
            )
        except Exception as error:  # a record too large, a broker that cannot be reached
            future = asyncio.get_running_loop().create_future()
            future.set_exception(error)
        except BaseException:
            self._in_flight -= 1
            raise
        future.add_done_callback(partial(self._settled, 1))
        return future

    async def send_many(
        self, records: Iterable[tuple[bytes, bytes | None]], timestamp_ms: int | None = None
    ) -> int:
        """Sends (key, value) pairs by the batch; returns how many were handed over.

        One future per batch instead of one per record: several times the speed of ``send``.
        ``timestamp_ms``, now where there is none, is what a topic of ``CreateTime`` keeps.
        """
        producer = self._started()
        builders = defaultdict[int, Any](producer.create_batch)
        count = 0
        for key, value in records:
            partition = home_partition(key, self._partitions)
            builder = builders[partition]
            if builder.append(timestamp=timestamp_ms, key=key, value=value) is None:
                await self._send_batch(builder, partition)
                builder = builders[partition] = producer.create_batch()
                builder.append(timestamp=timestamp_ms, key=key, value=value)
            count += 1
        for partition, builder in builders.items():
            await self._send_batch(builder, partition)
        return count

    async def flush(self, timeout_s: float = 60.0) -> None:
        """Waits until everything handed over is acknowledged or failed.

        Raises ``TimeoutError`` after ``timeout_s``.
        """
        async with asyncio.timeout(timeout_s):
            await self._started().flush()
            while self._in_flight:
                self._room.clear()
                await self._room.wait()

    async def _send_batch(self, builder: Any, partition: int) -> None:
        count = builder.record_count()
        if not count:
            return
        await self._wait_for_room(count)
        builder.close()
        future = await self._started().send_batch(builder, self.topic, partition=partition)
        self._in_flight += count
        future.add_done_callback(partial(self._settled, count))

    async def _wait_for_room(self, count: int) -> None:
        while self._in_flight and self._in_flight + count > self._max_in_flight:
            self._room.clear()
            await self._room.wait()

    def _settled(self, count: int, done: "asyncio.Future[Any]") -> None:
        self._in_flight -= count
        error = asyncio.CancelledError() if done.cancelled() else done.exception()
        if error is None:
            self.sent += count
        else:
            self.failed += count
            self.last_error = error
        self._room.set()

    def _started(self) -> "AIOKafkaProducer":
        if self._producer is None:
            _not_started()
        return self._producer


def _new_producer(arguments: dict[str, Any]) -> "AIOKafkaProducer":
    try:
        from aiokafka import AIOKafkaProducer
    except ImportError as error:
        raise KafkaExtraMissing from error
    return AIOKafkaProducer(**arguments)


def _not_started() -> NoReturn:
    raise RuntimeError("use the publisher inside `async with`")

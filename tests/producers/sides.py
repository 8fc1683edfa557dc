"""What stands on the other side of a transport in tests: one interface over Kafka and HTTP."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from pipeline.stream.topics import Topics, create_or_check_topics
from tests.producers.api_stand_in import KEY, ApiStandIn
from tests.producers.states import beat

PARTITIONS = 2
WAIT_S = 60.0
BEAT_S = 0.3
Event = dict[str, Any]


def until(condition: Callable[[], Any], what: str = "", timeout_s: float = WAIT_S) -> Any:
    """Returns what ``condition`` gives once it is true."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {timeout_s:.0f} s: {what}"
        time.sleep(0.01)
    return found


class Side(Protocol):
    """``environ`` are the settings of a service that goes there."""

    name: str
    environ: dict[str, str]

    def put(self, partition: int, key: bytes, value: bytes | None) -> None:
        """Writes a record of ``budget.state``."""
        ...

    def put_rate(self, rate: dict[str, Any]) -> None:
        """Sets a price."""
        ...

    def events(self) -> list[Event]:
        """The events that have arrived, in order."""
        ...

    def close(self) -> None: ...


LEADER_UNKNOWN = (
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
)


class KafkaSide:
    """The topics of a real broker; nobody counts what arrives there but the test."""

    name = "kafka"

    def __init__(self, bootstrap: str, prefix: str, spool: Path) -> None:
        self.topics = Topics(prefix)
        client = {"bootstrap_servers": bootstrap}
        asyncio.run(create_or_check_topics(client, self.topics, PARTITIONS))
        self.environ = {
            "TALLYPORT_KAFKA_BOOTSTRAP": bootstrap,
            "TALLYPORT_TOPIC_PREFIX": prefix,
            "TALLYPORT_SPOOL_DIR": str(spool),
        }
        self._bootstrap = bootstrap
        self._producer = Producer({"bootstrap.servers": bootstrap})

    def put(self, partition: int, key: bytes, value: bytes | None) -> None:
        self._producer.produce(self.topics.state, value, key, partition)
        assert self._producer.flush(WAIT_S) == 0

    def put_rate(self, rate: dict[str, Any]) -> None:
        self._producer.produce(self.topics.rates, json.dumps(rate), rate["rate_id"], 0)
        assert self._producer.flush(WAIT_S) == 0

    def events(self) -> list[Event]:
        return [json.loads(value) for _, _, value in self.records()]

    def records(self) -> list[tuple[int, bytes, bytes]]:
        """(partition, key, value) of everything on ``usage.events``, by partition and offset."""
        consumer = Consumer({"bootstrap.servers": self._bootstrap, "group.id": "test"})
        try:
            return sorted(self._read(consumer), key=lambda found: found[0])
        finally:
            consumer.close()

    def _read(self, consumer: Consumer) -> Iterator[tuple[int, bytes, bytes]]:
        tps = [TopicPartition(self.topics.events, p, 0) for p in range(PARTITIONS)]
        deadline = time.monotonic() + WAIT_S
        left = sum(_end_offset(consumer, tp, deadline) for tp in tps)
        consumer.assign(tps)
        while left:
            assert time.monotonic() < deadline
            message = consumer.poll(0.2)
            if message is not None and message.error() is None:
                left -= 1
                yield message.partition(), message.key(), message.value()

    def close(self) -> None:
        self._producer.flush(WAIT_S)


def _end_offset(consumer: Consumer, tp: TopicPartition, deadline: float) -> int:
    """Where the partition ends; a new one may have a leader that does not know of it yet."""
    while True:
        try:
            return consumer.get_watermark_offsets(tp, WAIT_S)[1]
        except KafkaException as error:
            if error.args[0].code() not in LEADER_UNKNOWN or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


class HttpSide:
    """The stand-in for the API."""

    name = "http"

    def __init__(self, spool: Path) -> None:
        self.api = ApiStandIn()
        self.api.start()
        self.environ = {
            "TALLYPORT_API_URL": self.api.url,
            "TALLYPORT_API_KEY": KEY,
            "TALLYPORT_SPOOL_DIR": str(spool),
        }

    def put(self, partition: int, key: bytes, value: bytes | None) -> None:
        self.api.put_state(partition, key, value)

    def put_rate(self, rate: dict[str, Any]) -> None:
        self.api.rates.append(rate)

    def events(self) -> list[Event]:
        return list(self.api.events)

    def close(self) -> None:
        self.api.stop()


def beat_all(side: Side, through: dict[int, int] | None = None) -> None:
    """A heartbeat on every partition."""
    for partition in range(PARTITIONS):
        side.put(partition, *beat(partition, through=through))


@dataclass
class Counting:
    """What the heartbeats of a worker that goes on counting say."""

    through: dict[int, int] | None = None


@contextmanager
def counting(side: Side) -> Iterator[Counting]:
    """Heartbeats on every partition, as of a worker that goes on: without them states would be
    stale, and allow, where the test itself takes longer than a heartbeat holds."""
    said, over = Counting(), threading.Event()

    def go_on() -> None:
        while not over.wait(BEAT_S):
            beat_all(side, said.through)

    beat_all(side)
    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield said
    finally:
        over.set()
        thread.join()

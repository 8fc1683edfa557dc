"""Straight to the deployment's Kafka, through librdkafka: its threads need no interpreter lock."""

import ctypes
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from pipeline.core.book import Book, BookContent
from pipeline.core.prices import PriceVersion
from pipeline.core.rates import RateLog
from pipeline.core.rejections import TOO_LARGE
from producers.prices import Prices
from producers.segment import Entry
from producers.transports.transport import GROUP, Follower, Outcome, StateTaker, Unavailable

EVENTS, STATE, RATES = "usage.events", "budget.state", "pricing.rates"
ACKNOWLEDGE_S = 10.0
"""How long the broker may take to acknowledge a batch before it is sent again."""
POLL_S = 0.5
METADATA_S = 10.0
LONGEST_WAIT_S = 4.0
_QUIET = logging.getLogger("tallyport.librdkafka")
_CRITICAL_ONLY = 2


class KafkaMissing(ModuleNotFoundError):
    """confluent-kafka is not installed; ``pip install 'tallyport[kafka]'`` adds it."""

    def __init__(self) -> None:
        text = "Kafka needs the extra: pip install 'tallyport[kafka]'"
        super().__init__(text, name="confluent_kafka")


class KafkaTransport:
    """A producer for events, and a reader of states and rates.

    ``client`` holds librdkafka's connection settings (``bootstrap.servers`` and security).
    ``currency`` and ``price_lead_s`` are the deployment's. Raises ``KafkaMissing``.
    """

    def __init__(
        self,
        client: Mapping[str, str],
        topic_prefix: str = "",
        *,
        currency: str = "USD",
        price_lead_s: int = 60,
    ) -> None:
        try:
            import confluent_kafka
        except ImportError as error:
            raise KafkaMissing from error
        self._kafka = confluent_kafka
        # A batch or a fetch that waits to share a packet with the next would wait 40 ms.
        self._client = {**client, "socket.nagle.disable": "true", "log_level": str(_CRITICAL_ONLY)}
        self._prefix = topic_prefix
        self._currency = currency
        self._price_lead_s = price_lead_s
        self._producer: Any = None
        self._consumers: list[Any] = []
        self._last_error = ""

    def open(self) -> None:
        """See ``Transport``.

        librdkafka connects by itself from here on. That takes half a second and more: it asks for
        its producer id while the address it was given is not yet replaced by the broker's own,
        and then asks again after 500 ms, which no setting changes.
        """
        self._open_producer()

    def deliver(self, entries: Sequence[Entry], stop: threading.Event) -> Sequence[Outcome | None]:
        """See ``Transport``; a record's home partition is that of its key."""
        producer = self._open_producer()
        outcomes: list[Outcome | None] = [None] * len(entries)
        waiting = len(entries)
        fatal = False

        def report(index: int, error: Any, message: Any) -> None:
            nonlocal waiting, fatal
            waiting -= 1
            if error is None:
                outcomes[index] = Outcome(message.partition(), message.offset())
                return
            self._last_error = error.str()
            fatal = fatal or error.fatal()
            if error.code() in self._too_large:
                outcomes[index] = Outcome(reason=TOO_LARGE, detail=error.str())

        topic = self._prefix + EVENTS
        for index, entry in enumerate(entries):
            try:
                producer.produce(
                    topic, value=entry.value, key=entry.key, on_delivery=partial(report, index)
                )
            except (BufferError, self._kafka.KafkaException) as error:
                self._last_error = str(error)
                waiting -= 1
        while waiting and not stop.is_set():
            producer.poll(POLL_S)
        if waiting or fatal:
            self._drop_producer()
        if not any(outcomes) and not stop.is_set():
            raise Unavailable(f"Kafka: {self._last_error or 'no acknowledgement'}")
        return outcomes

    def followers(self, gate: StateTaker, prices: Prices | None) -> Sequence[Follower]:
        """See ``Transport``; one reader for states and rates."""
        return [partial(self._follow, gate, prices)]

    def close(self) -> None:
        """See ``Transport``."""
        self._drop_producer()

    def abandon(self) -> None:
        """See ``Transport``: librdkafka's threads are not here, so ending it would hang."""
        for handle in (self._producer, *self._consumers):
            if handle is not None:
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(handle))

    # -- sending ---------------------------------------------------------------------------

    @property
    def _too_large(self) -> tuple[int, int]:
        errors = self._kafka.KafkaError
        return errors.MSG_SIZE_TOO_LARGE, errors.INVALID_MSG_SIZE

    def _open_producer(self) -> Any:
        if self._producer is None:
            self._producer = self._kafka.Producer(
                {
                    **self._client,
                    "acks": "all",
                    "enable.idempotence": True,
                    "partitioner": "murmur2_random",
                    # What is sent together was gathered before; waiting adds nothing.
                    "linger.ms": 0,
                    "batch.size": 512 * 1024,
                    "message.timeout.ms": int(ACKNOWLEDGE_S * 1000),
                    "reconnect.backoff.max.ms": 1_000,
                    "error_cb": self._note,
                },
                logger=_QUIET,
            )
        return self._producer

    def _drop_producer(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.purge()
            producer.poll(0)

    def _note(self, error: Any) -> None:
        self._last_error = error.str()

    # -- following -------------------------------------------------------------------------

    def _follow(self, gate: StateTaker, prices: Prices | None, stop: threading.Event) -> None:
        consumer = self._kafka.Consumer(
            {
                **self._client,
                # Needed by the client, used by nobody: partitions are assigned, nothing is
                # committed.
                "group.id": GROUP,
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "isolation.level": "read_committed",
                "enable.partition.eof": True,
                # A position that no longer exists means another log: read all of it anew.
                "auto.offset.reset": "error",
                "fetch.wait.max.ms": 500,
                "fetch.queue.backoff.ms": 10,
                "reconnect.backoff.max.ms": 1_000,
                "error_cb": self._note,
            },
            logger=_QUIET,
        )
        self._consumers.append(consumer)
        try:
            self._read(consumer, gate, prices, stop)
        except self._kafka.KafkaException as error:
            raise Unavailable(f"Kafka: {error}") from error
        finally:
            self._consumers.remove(consumer)
            consumer.close()

    def _read(
        self, consumer: Any, gate: StateTaker, prices: Prices | None, stop: threading.Event
    ) -> None:
        state, rates = self._prefix + STATE, self._prefix + RATES
        ask = partial(self._answer, stop)
        partitions = ask(partial(self._partitions, consumer, state))
        log = None if prices is None else _Rates(prices, self._currency, self._price_lead_s)
        begin = partial(self._kafka.TopicPartition, offset=self._kafka.OFFSET_BEGINNING)
        # Where partitions end now; a partition that never rests has no end of its own to wait for.
        ends = [ask(partial(self._end, consumer, state, number)) for number in range(partitions)]
        gate.begin(partitions)
        assigned = [begin(state, number) for number in range(partitions)]
        consumer.assign(assigned if log is None else [*assigned, begin(rates, 0)])
        unread = set(range(partitions))
        while not stop.is_set():
            message = consumer.poll(POLL_S)
            if log is not None:
                log.refresh_when_due()
            if message is None:
                continue
            error = message.error()
            if error is not None and error.code() != self._kafka.KafkaError._PARTITION_EOF:
                raise Unavailable(f"Kafka: {error.str()}")
            if log is not None and message.topic() == rates:
                log.read_to_end() if error is not None else log.take(message)
                continue
            if error is not None:
                is_at_end = True
            else:
                gate.take(message.partition(), message.key() or b"", message.value())
                is_at_end = message.offset() + 1 >= ends[message.partition()]
            if unread and is_at_end:
                unread.discard(message.partition())
                if not unread:
                    gate.caught_up()

    def _answer(self, stop: threading.Event, ask: Callable[[float], int]) -> int:
        """What ``ask`` returns, which is told how many seconds to wait; while there is no answer it
        is asked again, as a single long wait would hold up the end of the process."""
        give_up_s = time.monotonic() + METADATA_S
        wait_s = POLL_S
        while True:
            try:
                return ask(wait_s)
            except self._kafka.KafkaException as error:
                is_silent = error.args[0].code() in self._no_answer
                if not is_silent or stop.is_set() or time.monotonic() > give_up_s:
                    raise
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)

    @property
    def _no_answer(self) -> tuple[int, int]:
        errors = self._kafka.KafkaError
        return errors._TIMED_OUT, errors._TRANSPORT

    def _end(self, consumer: Any, topic: str, partition: int, wait_s: float) -> int:
        place = self._kafka.TopicPartition(topic, partition)
        return consumer.get_watermark_offsets(place, timeout=wait_s)[1]

    def _partitions(self, consumer: Any, topic: str, wait_s: float) -> int:
        found = consumer.list_topics(topic, timeout=wait_s).topics[topic]
        if found.error is not None or not found.partitions:
            raise Unavailable(f"Kafka has no topic {topic}; `tallyport topics` creates it")
        return len(found.partitions)


class _Rates:
    """The rates topic on its way to prices; a version is made where the log ends for now."""

    def __init__(self, prices: Prices, currency: str, lead_s: int) -> None:
        self._prices = prices
        self._log = RateLog(currency)
        self._lead_s = lead_s
        self._book = _installed_book()
        self._is_new = True

    def take(self, message: Any) -> None:
        _, timestamp_ms = message.timestamp()
        key, value, offset = message.key(), message.value(), message.offset()
        self._log.feed(offset, key, value, timestamp_ms, self._lead_s)
        self._is_new = True

    def refresh_when_due(self) -> None:
        self._prices.refresh_when_due()

    def read_to_end(self) -> None:
        if self._is_new:
            self._is_new = False
            self._prices.update(PriceVersion(self._log.snapshot(), self._book))


def _installed_book() -> Book:
    """The built-in book where the price library is installed, else one that lists nothing."""
    try:
        from pipeline.core.book import builtin_book

        return builtin_book()
    except ImportError:
        return Book(BookContent("none installed", ()))


def client_settings(kafka: Mapping[str, str]) -> dict[str, str]:
    """librdkafka's names for the settings ``TALLYPORT_KAFKA_*`` (without the prefix, lower case).

    What is empty is left out.
    """
    return {_NAMES[name]: value for name, value in kafka.items() if value}


_NAMES = {
    "bootstrap": "bootstrap.servers",
    "security_protocol": "security.protocol",
    "sasl_mechanism": "sasl.mechanism",
    "sasl_username": "sasl.username",
    "sasl_password": "sasl.password",
    "ssl_cafile": "ssl.ca.location",
    "ssl_certfile": "ssl.certificate.location",
    "ssl_keyfile": "ssl.key.location",
}

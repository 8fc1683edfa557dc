"""How long an event takes to show in ``budget.state`` at a subscriber.

Events are sent at an even rate; every one in ``PROBE_EVERY`` belongs to a port of its own, under
a wildcard policy, so the first state of that port tells when exactly this event had arrived.
"""

import asyncio
import time
from dataclasses import dataclass
from datetime import UTC, datetime

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from pipeline.core.errors import TallyportError
from pipeline.core.policies import policy_from_object
from pipeline.core.scopes import record_key
from pipeline.kafka import client_kwargs
from pipeline.settings import Settings
from pipeline.stream.policy_log import write_policies
from pipeline.stream.topics import Topics
from producers.steady import steady

PROBE_EVERY = 20
SETTLE_S = 3.0
POLICIES = (
    {"scope": "port:*", "unit": "tokens", "period": "month", "hard_cap": 10**15},
    {"scope": "all", "unit": "cost", "period": "month", "hard_cap": "1000000"},
)


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds from send to state, sorted; ``lost`` probes never showed."""

    rate: int
    millis: list[float]
    lost: int

    def at(self, percent: float) -> float:
        """The percentile, nearest rank."""
        return self.millis[min(len(self.millis) - 1, int(len(self.millis) * percent / 100))]


async def measure(settings: Settings, rate: int, seconds: int) -> Latency:
    """Sends ``rate`` events a second for ``seconds``; a worker must be running."""
    client, topics = client_kwargs(settings), Topics(settings.topic_prefix)
    policies = [policy_from_object(policy) for policy in POLICIES]
    await write_policies(client, topics, "bench", policies)
    consumer = AIOKafkaConsumer(
        **client, isolation_level="read_committed", enable_auto_commit=False, fetch_max_wait_ms=50
    )
    producer = AIOKafkaProducer(**client, linger_ms=0, acks="all")
    await consumer.start()
    await producer.start()
    sent: dict[str, float] = {}
    millis: list[float] = []
    try:
        tps = [TopicPartition(topics.state, p) for p in range(settings.partition_count)]
        consumer.assign(tps)
        await consumer.seek_to_end(*tps)
        for tp in tps:
            await consumer.position(tp)
        reader = asyncio.ensure_future(_read(consumer, sent, millis))
        await _send(producer, topics.events, rate, seconds, sent)
        await asyncio.sleep(SETTLE_S)
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
    finally:
        await producer.stop()
        await consumer.stop()
    if not millis:
        raise TallyportError("no probe showed in budget.state: is a worker running?")
    return Latency(rate, sorted(millis), len(sent))


async def _read(consumer: AIOKafkaConsumer, sent: dict[str, float], millis: list[float]) -> None:
    async for record in consumer:
        started_s = sent.pop((record.key or b"").decode(), None)
        if started_s is not None:
            millis.append(1000 * (time.perf_counter() - started_s))


async def _send(
    producer: AIOKafkaProducer, topic: str, rate: int, seconds: int, sent: dict[str, float]
) -> None:
    run = time.time_ns()
    events = steady(rate * seconds, run % 2**32, end=datetime.now(UTC), events_per_s=rate)
    started_s = time.perf_counter()
    for number, (key, value) in enumerate(events):
        ahead_s = number / rate - (time.perf_counter() - started_s)
        if ahead_s > 0.001:
            await asyncio.sleep(ahead_s)
        if number % PROBE_EVERY == 0:
            port_id = f"probe-{run}-{number}"
            value = value.replace(key, port_id.encode())
            key = port_id.encode()
            sent[record_key(f"port:{port_id}", "tokens", "month")] = time.perf_counter()
        await producer.send(topic, value, key=key)

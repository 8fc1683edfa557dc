"""How long an event takes to show in ``budget.state`` at a subscriber.

A process of its own sends the load. Among it, every twentieth event is sent from here and belongs
to a port of its own, under a wildcard policy, so the first state of that port tells when exactly
this event had arrived. What is sent while everything is still warming up is not counted.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from pipeline.bench.heartbeats import following
from pipeline.bench.load import LoadProcess, Sending
from pipeline.bench.times import Times
from pipeline.core.errors import TallyportError
from pipeline.core.policies import policy_from_object
from pipeline.core.scopes import record_key
from pipeline.kafka import client_kwargs
from pipeline.settings import Settings
from pipeline.stream.policy_log import write_policies
from pipeline.stream.topics import Topics
from producers.steady import steady

PROBE_EVERY = 20
MAX_PROBES_PER_S = 100
SETTLE_S = 3.0
POLICIES = (
    {"scope": "port:*", "unit": "tokens", "period": "month", "hard_cap": 10**15},
    {"scope": "all", "unit": "cost", "period": "month", "hard_cap": "1000000"},
)


@dataclass(slots=True)
class Probes:
    """What was sent and has not shown, and how long the others took."""

    counted_from_s: float
    sent_s: dict[str, float] = field(default_factory=dict[str, float])
    seconds: list[float] = field(default_factory=list[float])

    def shown(self, key: str) -> None:
        """A state has arrived."""
        sent_s = self.sent_s.pop(key, None)
        if sent_s is not None and sent_s >= self.counted_from_s:
            self.seconds.append(time.perf_counter() - sent_s)


async def measure(
    settings: Settings, rate: int, seconds: int, warm_up_s: int, say: Callable[[str], None]
) -> dict[str, object]:
    """Sends ``rate`` events a second; a worker must be running.

    Times in ms; ``sent_per_s`` is the rate that was reached; ``lost`` probes never showed;
    ``over_500_ms`` counts stalls.
    """
    client, topics = client_kwargs(settings), Topics(settings.topic_prefix)
    policies = [policy_from_object(policy) for policy in POLICIES]
    await write_policies(client, topics, "bench", policies)
    say(f"{rate} events/s for {warm_up_s} + {seconds} s")
    async with (
        following(client, topics, settings.partition_count) as consumer,
        AIOKafkaProducer(**client, linger_ms=0, acks="all") as producer,
    ):
        sending = Sending(rate - _probe_rate(rate), warm_up_s + seconds)
        load = await LoadProcess.start(settings, sending)
        probes = Probes(time.perf_counter() + warm_up_s)
        reader = asyncio.ensure_future(_read(consumer, probes))
        try:
            await _send(producer, topics.events, rate, warm_up_s + seconds, probes)
            took_s = await load.took_s()
            await asyncio.sleep(SETTLE_S)
        finally:
            await load.stop()
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
    if not probes.seconds:
        raise TallyportError("no probe showed in budget.state: is a worker running?")
    sent = _probe_rate(rate) + sending.events / took_s
    return _row(rate, sent, Times(sorted(probes.seconds)), len(probes.sent_s))


def _row(rate: int, sent: float, times: Times, lost: int) -> dict[str, object]:
    return {
        "events_per_s": rate,
        "sent_per_s": round(sent),
        "probes": len(times.seconds),
        **{f"p{p}_ms": round(1000 * times.at(p), 1) for p in (50, 90, 99)},
        "max_ms": round(1000 * times.seconds[-1], 1),
        "over_500_ms": times.stalls,
        "lost": lost,
        "histogram_ms": times.histogram(),
    }


def _probe_rate(rate: int) -> int:
    return max(1, min(MAX_PROBES_PER_S, rate // PROBE_EVERY))


async def _read(consumer: AIOKafkaConsumer, probes: Probes) -> None:
    async for record in consumer:
        probes.shown((record.key or b"").decode())


async def _send(
    producer: AIOKafkaProducer, topic: str, rate: int, seconds: int, probes: Probes
) -> None:
    run, per_s = time.time_ns(), _probe_rate(rate)
    events = steady(per_s * seconds, run % 2**32, end=datetime.now(UTC), events_per_s=per_s)
    started_s = time.perf_counter()
    for number, (key, value) in enumerate(events):
        await asyncio.sleep(max(0.0, number / per_s - (time.perf_counter() - started_s)))
        port_id = f"probe-{run}-{number}"
        state_key = record_key(f"port:{port_id}", "tokens", "month")
        probes.sent_s[state_key] = time.perf_counter()
        await producer.send(topic, value.replace(key, port_id.encode()), key=port_id.encode())

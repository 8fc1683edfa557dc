"""``tallyport bench scale``: a month that ends for many policies at once, under load.

Periods end by the stamps of Kafka's log, which are the broker's time. On a deployment of its own
the topics of events and partials are set to keep the sender's stamps instead, and whatever is sent
here is stamped as if the month's end were seconds away; the worker is the unchanged one, and nobody
touches a clock. What tells it the time in production, its own marks on the partials every quarter
of a second, is sent from here as well, since its own ones are stamped with the real time.

    1  policies  one for each user, and one wildcard for the ports of the probes
    2  use       an event for each user, beyond the cap
    3  load      events and probes go on while the end of the month passes
    4  out       each policy's first state of the new month has reached a subscriber
"""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final

import msgspec
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from pipeline.bench.heartbeats import following, until_contained
from pipeline.bench.load import LoadProcess, Sending
from pipeline.bench.recovery import Say
from pipeline.bench.times import Times
from pipeline.core.errors import TallyportError
from pipeline.core.policies import Policy
from pipeline.core.scopes import record_key
from pipeline.core.windows import format_boundary, format_ms, window
from pipeline.kafka import client_kwargs
from pipeline.ops.deployment import Deployment
from pipeline.settings import Settings
from pipeline.stream.policy_log import write_policies
from pipeline.stream.reader import end_offsets
from pipeline.stream.topics import Topics, create_or_check
from producers.kafka import Publisher

LOAD_PER_S: Final = 1_000
PROBES_PER_S: Final = 100
USE_BEFORE_MS: Final = 3_600_000
"""The policies are used up so long before the month's end."""
BEFORE_S: Final = 8.0
"""Load runs for so long until the month ends; the probes of its second half are counted."""
MEANWHILE_LEAST_S: Final = 1.0
MARK_INTERVAL_S: Final = 0.25
SETTLE_S: Final = 1.0
TIMEOUT_S: Final = 300.0
STOP_TIMEOUT_S: Final = 60.0
LOAD_S: Final = 60
"""So long the load goes on at most; it is stopped when all is out."""
PORTS: Final = 200
_ANY_STAMP: Final = {"message.timestamp.type": "CreateTime",
                     "message.timestamp.after.max.ms": str(2**63 - 1)}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Month:
    """One end of a month. ``out_s`` is from there to the last policy's first state of the new one;
    the times are of probes sent in the seconds before, and meanwhile."""

    policies: int
    first_s: float
    out_s: float
    before: Times
    meanwhile: Times
    lost: int

    def to_json(self) -> dict[str, object]:
        """Figures as plain numbers."""
        return {
            "policies": self.policies,
            "first_s": round(self.first_s, 2),
            "out_s": round(self.out_s, 2),
            **_told("before", self.before),
            **_told("meanwhile", self.meanwhile),
            "lost": self.lost,
        }


def _told(name: str, times: Times) -> dict[str, float]:
    percentiles = {f"{name}_p{p}_ms": round(1000 * times.at(p), 1) for p in (50, 99)}
    return {**percentiles, f"{name}_max_ms": round(1000 * times.seconds[-1], 1)}


async def run(deployment: Deployment, policies: int, say: Say) -> Month:
    """Raises ``TallyportError`` when a state does not come."""
    before = deployment.settings
    deployment.settings = before.replaced(topic_prefix="month.")
    try:
        return await _MonthRun(deployment, policies, say).run()
    except TimeoutError as error:
        raise TallyportError("the worker did not publish what it had to") from error
    finally:
        deployment.settings = before


@dataclass(slots=True)
class _Seen:
    """What a subscriber has seen of ``policies`` users and of the probes, with the monotonic time.

    ``new_start`` is how the states of the new month tell their period.
    """

    policies: int
    new_start: bytes
    used_up: set[bytes] = field(default_factory=set[bytes])
    ended: dict[bytes, float] = field(default_factory=dict[bytes, float])
    probes: dict[bytes, float] = field(default_factory=dict[bytes, float])
    all_used_up: asyncio.Event = field(default_factory=asyncio.Event)
    all_ended: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self, key: bytes, value: bytes) -> None:
        if key.startswith(b"user:"):
            if self.new_start in value:
                self.ended.setdefault(key, time.monotonic())
                if len(self.ended) == self.policies:
                    self.all_ended.set()
            elif b'"hard-cap-exceeded"' in value:
                self.used_up.add(key)
                if len(self.used_up) == self.policies:
                    self.all_used_up.set()
        elif key.startswith(b"port:probe-"):
            self.probes.setdefault(key, time.monotonic())

    async def read(self, consumer: AIOKafkaConsumer) -> None:
        while True:
            for records in (await consumer.getmany(timeout_ms=50)).values():
                for record in records:
                    self.take(record.key or b"", record.value or b"")


class _MonthRun:
    def __init__(self, deployment: Deployment, policies: int, say: Say) -> None:
        self._deployment = deployment
        self._settings: Settings = deployment.settings
        self._client: dict[str, Any] = client_kwargs(self._settings)
        self._topics = Topics(self._settings.topic_prefix)
        self._partitions = list(range(self._settings.partition_count))
        self._policies = policies
        self._say = say
        now_ms = int(time.time() * 1000)
        self._end_ms = window("month", now_ms).resets_at_ms
        new_start = f'"period_start":"{format_boundary(self._end_ms)}"'
        self._seen = _Seen(policies, new_start.encode())
        self._ends_s = 0.0
        self._sent_s: dict[bytes, float] = {}

    async def run(self) -> Month:
        await create_or_check(self._settings)
        self._say(f"writing {self._policies:,} policies")
        await write_policies(self._client, self._topics, "bench", list(self._budgets()))
        child = self._deployment.launch("worker")
        try:
            await self._deployment.wait_ready("worker", TIMEOUT_S)
            await _keep_stamps(self._client, self._topics)
            async with following(self._client, self._topics, len(self._partitions)) as consumer:
                reader = asyncio.ensure_future(self._seen.read(consumer))
                try:
                    self._say("using them up")
                    await self._use()
                    self._say(f"{LOAD_PER_S:,} events/s; the month ends in {BEFORE_S:.0f} s")
                    await self._pass_the_end()
                finally:
                    reader.cancel()
                    await asyncio.gather(reader, return_exceptions=True)
        finally:
            child.stop(STOP_TIMEOUT_S)
        return self._month()

    def _budgets(self) -> Iterator[Policy]:
        yield Policy("port:*", "tokens", "rolling-30d", hard_cap=10**15)
        for user in range(self._policies):
            yield Policy(f"user:user-{user:05d}", "tokens", "month", hard_cap=1)

    async def _use(self) -> None:
        """Sends an event for each policy, and waits until each is known to be used up."""
        at_ms = self._end_ms - USE_BEFORE_MS
        events = (
            _event(f"use-{user}", f"port-{user % PORTS:04d}", at_ms, user=f"user-{user:05d}")
            for user in range(self._policies)
        )
        async with Publisher(self._client, self._topics.events) as publisher:
            await publisher.send_many(events, at_ms)
            await publisher.flush()
        await asyncio.wait_for(self._seen.all_used_up.wait(), TIMEOUT_S)
        await self._contained()

    async def _contained(self) -> None:
        """Waits until the states contain all that was sent."""
        async with following(self._client, self._topics, len(self._partitions)) as consumer:
            ends = await end_offsets(self._client, self._topics.events, self._partitions)
            last = {partition: end - 1 for partition, end in ends.items()}
            await until_contained(consumer, last, TIMEOUT_S)

    async def _pass_the_end(self) -> None:
        """Load, probes and marks, until every policy has a state of the new month."""
        self._ends_s = time.monotonic() + BEFORE_S
        ahead_ms = self._stamp_ms() - int(time.time() * 1000)
        sending = Sending(LOAD_PER_S, LOAD_S, ahead_ms=ahead_ms)
        load = await LoadProcess.start(self._settings, sending)
        async with AIOKafkaProducer(**self._client, linger_ms=0, acks="all") as producer:
            senders = [
                asyncio.ensure_future(self._send_marks(producer)),
                asyncio.ensure_future(self._send_probes(producer)),
            ]
            try:
                await asyncio.wait_for(self._seen.all_ended.wait(), TIMEOUT_S)
                await asyncio.sleep(max(0.0, self._meanwhile_ends_s() - time.monotonic()))
            finally:
                for task in senders:
                    task.cancel()
                await asyncio.gather(*senders, return_exceptions=True)
                await load.stop()
        await self._contained()
        await asyncio.sleep(SETTLE_S)

    async def _send_marks(self, producer: AIOKafkaProducer) -> None:
        """What the worker's marks would be if its producer were of the moved time, too."""
        while True:
            for partition in self._partitions:
                await producer.send(
                    self._topics.partials,
                    key=b"0",
                    value=b"",
                    partition=partition,
                    timestamp_ms=self._stamp_ms(),
                )
            await asyncio.sleep(MARK_INTERVAL_S)

    async def _send_probes(self, producer: AIOKafkaProducer) -> None:
        began_s = time.monotonic()
        for number in count():
            await asyncio.sleep(max(0.0, began_s + number / PROBES_PER_S - time.monotonic()))
            port, stamp_ms = f"probe-{number}", self._stamp_ms()
            key, value = _event(port, port, stamp_ms)
            state_key = record_key(f"port:{port}", "tokens", "rolling-30d")
            self._sent_s[state_key.encode()] = time.monotonic()
            await producer.send(self._topics.events, value, key=key, timestamp_ms=stamp_ms)

    def _stamp_ms(self) -> int:
        return self._end_ms + int(1000 * (time.monotonic() - self._ends_s))

    def _meanwhile_ends_s(self) -> float:
        return max(self._ends_s + MEANWHILE_LEAST_S, max(self._seen.ended.values()))

    def _month(self) -> Month:
        seconds = {
            key: self._seen.probes[key] - sent_s
            for key, sent_s in self._sent_s.items()
            if key in self._seen.probes
        }

        def between(start_s: float, end_s: float) -> Times:
            found = [s for key, s in seconds.items() if start_s <= self._sent_s[key] < end_s]
            if not found:
                raise TallyportError("no probe showed in budget.state")
            return Times(sorted(found))

        ends_s, seen_s = self._ends_s, self._seen.ended.values()
        return Month(
            self._policies,
            min(seen_s) - ends_s,
            max(seen_s) - ends_s,
            between(ends_s - BEFORE_S / 2, ends_s),
            between(ends_s, self._meanwhile_ends_s()),
            len(self._sent_s) - len(seconds),
        )


def _event(event_id: str, port: str, at_ms: int, user: str | None = None) -> tuple[bytes, bytes]:
    fields = {
        "event_id": event_id,
        "occurred_at": format_ms(at_ms),
        "port_id": port,
        "provider": "openai",
        "model": "gpt-5-mini",
        "input_tokens": 1_200,
        "output_tokens": 85,
    }
    if user is not None:
        fields["user_id"] = user
    return port.encode(), msgspec.json.encode(fields)


async def _keep_stamps(client: dict[str, Any], topics: Topics) -> None:
    """From now on events and partials keep the stamps of those who send them."""
    admin = AIOKafkaAdminClient(**client)
    await admin.start()
    try:
        answers = await admin.alter_configs(
            [
                ConfigResource(
                    ConfigResourceType.TOPIC, name, topics.specs[name].config(1) | _ANY_STAMP
                )
                for name in (topics.events, topics.partials)
            ]
        )
    finally:
        await admin.close()
    for answer in answers:
        for row in answer.to_object()["resources"]:
            if row["error_code"]:
                raise TallyportError(f"a topic cannot keep stamps: {row['error_message']}")

"""The in-memory log does what Kafka does: the same script on both, with the same outcome."""

import asyncio
import random
import uuid
from collections.abc import Awaitable
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError

from tests.sim.client import SimulatedConsumer, SimulatedProducer
from tests.sim.log import TopicConfig
from tests.sim.scenario import scenario_of
from tests.sim.world import World

FIRST, SECOND = 0, 1
WAIT_S = 30.0
Outcome = list[Any]


class Side:
    """One of the two Kafkas: how its clients are made, and one topic with two partitions."""

    def __init__(self, client: dict[str, Any], producer: Any, consumer: Any, prefix: str) -> None:
        self.client = client
        self.topic = f"{prefix}script"
        self.prefix = prefix
        self._producer = producer
        self._consumer = consumer

    async def producer(self, name: str | None = None) -> Any:
        options = {} if name is None else {"transactional_id": f"{self.prefix}{name}"}
        producer = self._producer(**self.client, **options)
        await producer.start()
        return producer

    async def send(self, producer: Any, partition: int, *values: bytes) -> int:
        batch = producer.create_batch()
        for value in values:
            batch.append(key=None, value=value, timestamp=None, headers=[])
        batch.close()
        sent = await producer.send_batch(batch, self.topic, partition=partition)
        return int((await sent).offset)

    async def ends(self, isolation: str) -> list[int]:
        consumer = self._consumer(**self.client, isolation_level=isolation)
        await consumer.start()
        tps = [TopicPartition(self.topic, p) for p in (FIRST, SECOND)]
        ends = await consumer.end_offsets(tps)
        await consumer.stop()
        return [ends[tp] for tp in tps]

    async def settled_ends(self) -> list[int]:
        """Where committed records end, once every marker is written."""
        while True:
            committed = await self.ends("read_committed")
            if committed == await self.ends("read_uncommitted"):
                return committed
            await asyncio.sleep(0.05)

    async def read(self, partition: int, isolation: str) -> tuple[list[tuple[int, bytes]], int]:
        """All records a reader sees, and the position that it comes to."""
        consumer = self._consumer(
            **self.client, isolation_level=isolation, auto_offset_reset="earliest"
        )
        await consumer.start()
        tp = TopicPartition(self.topic, partition)
        consumer.assign([tp])
        await consumer.seek_to_beginning(tp)
        end = (await consumer.end_offsets([tp]))[tp]
        found: list[tuple[int, bytes]] = []
        while await consumer.position(tp) < end:
            for records in (await consumer.getmany(tp, timeout_ms=200)).values():
                found += [(record.offset, record.value) for record in records]
        position = await consumer.position(tp)
        await consumer.stop()
        return found, position


async def refused(work: Awaitable[Any]) -> bool:
    try:
        await work
    except KafkaError:
        return True
    return False


async def script(side: Side) -> Outcome:
    """Commits, aborts, an open transaction, a zombie: what readers see, and at which offsets."""
    seen: Outcome = []
    plain = await side.producer()
    seen.append(await side.send(plain, FIRST, b"a", b"b"))
    one = await side.producer("one")
    await one.begin_transaction()
    seen.append(await side.send(one, FIRST, b"c"))
    seen.append(await side.send(one, SECOND, b"d"))
    seen.append(await side.send(plain, FIRST, b"e"))
    seen.append(("open", await side.ends("read_committed"), await side.ends("read_uncommitted")))
    seen.append(await side.read(FIRST, "read_committed"))
    await one.commit_transaction()
    seen.append(("committed", await side.settled_ends()))
    await one.begin_transaction()
    seen.append(await side.send(one, FIRST, b"f", b"g"))
    await one.abort_transaction()
    seen.append(("aborted", await side.settled_ends()))
    await one.begin_transaction()
    await side.send(one, FIRST, b"h")
    two = await side.producer("one")
    seen.append(("fenced", await side.settled_ends()))
    seen.append(("late", await refused(zombie(side, one))))
    await two.begin_transaction()
    seen.append(await side.send(two, SECOND, b"j"))
    await two.commit_transaction()
    seen.append(("end", await side.settled_ends()))
    for partition in (FIRST, SECOND):
        seen.append(await side.read(partition, "read_committed"))
    for producer in (plain, two):
        await producer.stop()
    return seen


async def zombie(side: Side, producer: Any) -> None:
    try:
        await side.send(producer, FIRST, b"i")
        await producer.commit_transaction()
    finally:
        await producer.stop()


async def on_kafka(kafka: str) -> Outcome:
    client = {"bootstrap_servers": kafka}
    side = Side(client, AIOKafkaProducer, AIOKafkaConsumer, f"t{uuid.uuid4().hex[:10]}.")
    admin = AIOKafkaAdminClient(**client)
    await admin.start()
    await admin.create_topics([NewTopic(side.topic, 2, 1)])
    await admin.close()
    return await asyncio.wait_for(script(side), WAIT_S)


def in_memory(seed: int) -> Outcome:
    world = World(scenario_of(seed).knobs)
    side = Side({"simulation": world}, SimulatedProducer, SimulatedConsumer, "")
    world.log.create([TopicConfig(side.topic, 2, compacted=False, log_append_time=False)])
    task = world.loop.spawn_world(script(side))
    assert world.loop.run_until(task.done, WAIT_S)
    world.loop.bury()
    return task.result()


def test_both_logs_show_the_same(kafka: str) -> None:
    real = asyncio.run(on_kafka(kafka))
    assert ("late", True) in real
    for seed in random.Random(1).sample(range(1_000), 10):
        assert in_memory(seed) == real, f"seed {seed}"

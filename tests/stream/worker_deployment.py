"""Workers in processes of their own, on a real Kafka and a real ClickHouse, fed by the test."""

import asyncio
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.partitioner import murmur2
from aiokafka.structs import ConsumerRecord

from pipeline.core.blocks import PricedBlock, decode_block
from pipeline.record_headers import RawNamesBatch
from pipeline.stream.reader import end_offsets, read_to_end
from pipeline.stream.tables import read_tables
from pipeline.stream.topics import Topics, create_or_check_topics
from tests.decided import until_decided
from tests.group_members import forget_dead_members
from tests.processes import RETRY_BACKOFF_MS, WAIT_S, PartProcess

PARTITIONS = 2
SETTING_S = 10
"""As long as it may take to get a rate into its topic."""
INPUT_NANO, OUTPUT_NANO = 1_000, 2_000
RATE = {
    "rate_id": "test-rate",
    "provider": "acme",
    "model": "m-1",
    "effective_from": "2020-01-01T00:00:00Z",
    "published_at": "2020-01-01T00:00:00Z",
    "backdated": True,
    "currency": "USD",
    "per_million": {"input_tokens": "1", "output_tokens": "2"},
}
"""A token of input costs ``INPUT_NANO``, one of output ``OUTPUT_NANO``."""

Totals = tuple[int, int, int, int, int, int]
Cells = dict[tuple[str, int], Totals]


def home_of(port_id: str, partitions: int = PARTITIONS) -> int:
    """The partition that aiokafka's own partitioner gives to the port."""
    return (murmur2(port_id.encode()) & 0x7FFFFFFF) % partitions


def event(number: int, **changes: Any) -> dict[str, Any]:
    """A valid event of now; ``number`` decides its id, port, user and counts."""
    fields = {
        "event_id": f"e{number}",
        "occurred_at": datetime.now(UTC).isoformat(),
        "port_id": f"port-{number % 5}",
        "provider": "acme",
        "model": "m-1",
        "user_id": f"user-{number % 7}",
        "organization_id": f"org-{number % 2}",
        "input_tokens": 10 + number % 90,
        "output_tokens": 1 + number % 30,
        "billing_scope": "user" if number % 11 == 0 else "org",
    }
    return {name: value for name, value in (fields | changes).items() if value is not None}


def count(events: Iterable[dict[str, Any]]) -> dict[int, Cells]:
    """What the tables must hold, by source partition: counted here, with code of its own."""
    sums: dict[int, dict[tuple[str, int], list[int]]] = {p: {} for p in range(PARTITIONS)}
    for one in events:
        day = int(datetime.fromisoformat(one["occurred_at"]).timestamp()) // 86_400
        tokens = one.get("input_tokens", 0) + one.get("output_tokens", 0)
        priced = one["model"] == "m-1"
        cost = INPUT_NANO * one.get("input_tokens", 0) + OUTPUT_NANO * one.get("output_tokens", 0)
        org = one.get("billing_scope", "org") == "org"
        amounts = [
            1,
            tokens,
            cost if priced else 0,
            cost if priced and org else 0,
            int(not priced),
            int(not priced and org),
        ]
        ids = (("user", "user_id"), ("org", "organization_id"), ("group", "group_id"))
        scopes = ["all", f"port:{one['port_id']}"]
        scopes += [f"{kind}:{one[name]}" for kind, name in ids if one.get(name)]
        for scope in scopes:
            cell = sums[home_of(one["port_id"])].setdefault((scope, day), [0] * 6)
            cell[:] = [a + b for a, b in zip(cell, amounts, strict=True)]
    return {p: {k: tuple(v) for k, v in cells.items()} for p, cells in sums.items()}  # type: ignore[misc]


@dataclass
class WorkerDeployment:
    """``sent`` are the valid events, each once, that the tables must come to hold."""

    kafka: str
    prefix: str
    ledger_url: str
    folder: Path
    sent: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    workers: list[PartProcess] = field(default_factory=list[PartProcess])

    @property
    def topics(self) -> Topics:
        return Topics(self.prefix)

    @property
    def client(self) -> dict[str, Any]:
        # A topic made just now takes its first record at the second or third try.
        return {"bootstrap_servers": self.kafka, "retry_backoff_ms": RETRY_BACKOFF_MS}

    async def prepare(self, rates: Iterable[dict[str, Any]] = (RATE,)) -> None:
        await create_or_check_topics(self.client, self.topics, PARTITIONS)
        for rate in rates:
            await self.put(self.topics.rates, rate["rate_id"], rate)

    def start_worker(self, fault: str = "", **settings: str) -> PartProcess:
        environ = {
            "TALLYPORT_KAFKA_BOOTSTRAP": self.kafka,
            "TALLYPORT_CLICKHOUSE_URL": self.ledger_url,
            "TALLYPORT_TOPIC_PREFIX": self.prefix,
            "TALLYPORT_PARTITIONS": str(PARTITIONS),
            "TALLYPORT_REPLICATION": "1",
            "TALLYPORT_DATA_DIR": str(self.folder),
            **settings,
        }
        log_file = self.folder / f"worker-{len(self.workers)}.log"
        worker = PartProcess("worker", log_file, environ, fault)
        self.workers.append(worker)
        return worker

    def end_all(self) -> None:
        """SIGKILL to every worker that still lives, also to a stopped one."""
        for worker in self.workers:
            worker.kill()

    async def put(self, topic: str, key: str, body: object, partition: int = 0) -> int:
        """Sends one JSON record, None as a tombstone; returns its offset."""
        value = None if body is None else json.dumps(body).encode()
        return await self.put_bytes(topic, key.encode(), value, partition)

    async def put_bytes(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        partition: int,
        headers: list[tuple[str, bytes]] | None = None,
        **options: Any,
    ) -> int:
        async with AIOKafkaProducer(**self.client, **options) as producer:
            batch = producer.create_batch()  # unlike ``send`` it takes a null key and value
            batch.append(key=key, value=value, timestamp=None, headers=headers or [])
            batch.close()
            sent = await (await producer.send_batch(batch, topic, partition=partition))
            return sent.offset

    async def put_raw_names(
        self,
        topic: str,
        key: bytes,
        value: bytes,
        partition: int,
        headers: list[tuple[str, bytes]],
    ) -> None:
        """Sends a record whose header names may hold any bytes."""
        async with AIOKafkaProducer(**self.client) as producer:
            batch = RawNamesBatch(1 << 20, 0, is_transactional=False)
            batch.append(key=key, value=value, timestamp=None, headers=headers)
            batch.close()
            await (await producer.send_batch(batch, topic, partition=partition))

    async def commit_offsets(self, offsets: dict[int, int]) -> None:
        """Sets what the workers' group has committed, as an operator may."""
        group = self.topics.worker_group
        async with AIOKafkaConsumer(
            **self.client, group_id=group, enable_auto_commit=False
        ) as consumer:
            tps = {TopicPartition(self.topics.events, p): o for p, o in offsets.items()}
            consumer.assign(list(tps))
            await consumer.commit(tps)

    async def publish(
        self, events: list[dict[str, Any]], partition: int | None = None, *, counted: bool = True
    ) -> None:
        """Sends events to their home partitions, or all to ``partition``."""
        async with AIOKafkaProducer(**self.client, linger_ms=2) as producer:
            futures = [
                await producer.send(
                    self.topics.events,
                    json.dumps(one).encode(),
                    one["port_id"].encode(),
                    partition=home_of(one["port_id"]) if partition is None else partition,
                )
                for one in events
            ]
            await asyncio.gather(*futures)
        if counted:
            self.sent += events

    async def set_policy(self, **policy: Any) -> None:
        await self.put(self.topics.policies, policy_key(policy), policy)

    async def delete_policy(self, key: str) -> None:
        await self.put(self.topics.policies, key, None)

    async def forget_dead_members(self) -> None:
        """Takes every member out of the group, as its session timeout would some seconds later."""
        await forget_dead_members(self.client, self.topics.worker_group)

    async def read(self, topic: str) -> list[ConsumerRecord]:
        """All committed records of a topic, by partition and offset."""
        await until_decided(self.client, topic)
        return await self._read(topic)

    async def _read(self, topic: str) -> list[ConsumerRecord]:
        found = [r async for records in read_to_end(self.client, topic) for r in records]
        return sorted(found, key=lambda record: (record.partition, record.offset))

    async def ends(self, topic: str) -> dict[int, int]:
        """Where each partition's committed records end."""
        async with AIOKafkaConsumer(**self.client, isolation_level="read_committed") as consumer:
            tps = [TopicPartition(topic, p) for p in range(PARTITIONS)]
            return {tp.partition: end for tp, end in (await consumer.end_offsets(tps)).items()}

    def state_follower(self) -> AIOKafkaConsumer:
        """Reads what is committed to ``budget.state`` from when the reader starts."""
        return AIOKafkaConsumer(
            self.topics.state,
            **self.client,
            auto_offset_reset="latest",
            isolation_level="read_committed",
        )

    async def settled(self) -> None:
        """Waits until heartbeats on every state partition say that all input is contained.

        The input is that of the call and what its misrouted events become.
        """
        async with asyncio.timeout(WAIT_S):
            async with self.state_follower() as consumer:
                waiting = set(range(PARTITIONS))
                while waiting:
                    batches = await consumer.getmany(timeout_ms=200)
                    # Only now: a heartbeat that passes a misrouted event comes after its copy,
                    # though maybe before the copy is known to be committed.
                    ends = await end_offsets(
                        self.client, self.topics.events, range(PARTITIONS), committed=False
                    )
                    self._check_alive()
                    for record in (r for records in batches.values() for r in records):
                        if record.key.startswith(b"!heartbeat|"):
                            through = json.loads(record.value)["through"]
                            if all(through.get(str(p), 0) >= end for p, end in ends.items()):
                                waiting.discard(record.partition)

    async def heartbeats(self) -> list[dict[str, Any]]:
        """One that is published from now on, of each partition of ``budget.state``."""
        found: dict[int, dict[str, Any]] = {}
        async with (
            asyncio.timeout(WAIT_S),
            self.state_follower() as consumer,
        ):
            while len(found) < PARTITIONS:
                for records in (await consumer.getmany(timeout_ms=200)).values():
                    for record in records:
                        if record.key.startswith(b"!heartbeat|"):
                            found[record.partition] = json.loads(record.value)
        return [found[partition] for partition in range(PARTITIONS)]

    def _check_alive(self) -> None:
        last = self.workers[-1]
        assert last.exit_status() is None, f"the worker has ended: {last.printed}"

    async def states(self) -> dict[str, dict[str, Any] | None]:
        """The newest record of each key of ``budget.state``, None for a tombstone."""
        return {
            record.key.decode(): None if record.value is None else json.loads(record.value)
            for record in await self._read(self.topics.state)
            if not record.key.startswith(b"!heartbeat|")
        }

    async def history(self, key: str) -> list[dict[str, Any]]:
        """Every state of ``key`` that was published, oldest first."""
        return [
            json.loads(record.value)
            for record in await self.read(self.topics.state)
            if record.key == key.encode() and record.value is not None
        ]

    async def state_is(self, key: str, **wanted: Any) -> dict[str, Any]:
        """Waits until the state under ``key`` has the wanted fields; returns it."""
        state: dict[str, Any] | None = None
        try:
            async with asyncio.timeout(WAIT_S):
                while True:
                    state = (await self.states()).get(key)
                    if state is not None and {**state, **wanted} == state:
                        return state
                    self._check_alive()
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise AssertionError(f"{key} is {state}, not {wanted}") from None

    async def state_gone(self, key: str) -> None:
        """Waits until ``key`` has a tombstone."""
        async with asyncio.timeout(WAIT_S):
            while (await self.states()).get(key, {}) is not None:
                self._check_alive()
                await asyncio.sleep(0.1)

    async def blocks(self) -> list[PricedBlock]:
        return [decode_block(record.value) for record in await self.read(self.topics.priced)]

    async def fates(self) -> dict[int, dict[int, str]]:
        """The fate of each offset by partition, from the blocks, which must join end to end."""
        found: dict[int, dict[int, str]] = {p: {} for p in range(PARTITIONS)}
        reached = dict.fromkeys(range(PARTITIONS), 0)
        for block in await self.blocks():
            assert block.first_offset == reached[block.partition], "blocks do not join"
            assert block.next_offset > block.first_offset
            reached[block.partition] = block.next_offset
            fates = found[block.partition]
            named = (
                ("row", [row[-6] for row in block.rows]),
                ("rejected", block.rejected),
                ("duplicate", block.duplicates),
                ("forwarded", block.forwarded),
            )
            for name, offsets in named:
                for offset in offsets:
                    assert offset not in fates, f"offset {offset} twice"
                    assert block.first_offset <= offset < block.next_offset
                    fates[offset] = name
        return found

    async def assert_exact(self) -> Counter[str]:
        """Tables, blocks and rejected records are what was sent; returns how fates are spread."""
        expected = count(self.sent)
        views = await read_tables(self.client, self.topics, list(range(PARTITIONS)))
        for p, view in views.items():
            assert_same_cells(p, view.cells, expected[p])
        fates = await self.fates()
        inputs: dict[int, set[int]] = {p: set() for p in range(PARTITIONS)}
        for record in await self.read(self.topics.events):
            inputs[record.partition].add(record.offset)
        assert {p: set(f) for p, f in fates.items()} == inputs
        refused = Counter(
            (int(h["source-partition"]), int(h["source-offset"]))
            for h in (dict(r.headers) for r in await self.read(self.topics.rejected))
        )
        wanted = {(p, o) for p, f in fates.items() for o, fate in f.items() if fate == "rejected"}
        assert refused == Counter(wanted)
        counts = Counter(fate for f in fates.values() for fate in f.values())
        assert counts["row"] == len(self.sent)
        for p, view in views.items():
            at = Counter(fates[p].values())
            position = view.position
            assert (position.accepted, position.rejected) == (at["row"], at["rejected"])
            assert (position.duplicates, position.forwarded) == (at["duplicate"], at["forwarded"])
        return counts

    async def assert_states(self, keys: Iterable[str]) -> None:
        """``used`` of these budgets of periods that hold all of ``sent`` is the own count."""
        states = await self.states()
        cells: Counter[tuple[str, int]] = Counter()
        for part in count(self.sent).values():
            for (scope, _), totals in part.items():
                for column, amount in enumerate(totals):
                    cells[scope, column] += amount
        for key in keys:
            scope, unit, _ = key.split("|")
            column = 1 if unit == "tokens" else 2 if scope.startswith("user:") else 3
            state = states[key]
            assert state is not None, key
            used = state["used"] if unit == "tokens" else nanos(state["used"])
            assert used == cells[scope, column], key
            unpriced = 4 if column in (1, 2) else 5
            assert state["unpriced_events"] == cells[scope, unpriced], key

    async def assert_versions_grow(self) -> None:
        last: dict[bytes, int] = {}
        for record in await self.read(self.topics.state):
            if record.value is None or record.key.startswith(b"!heartbeat|"):
                continue
            version = json.loads(record.value)["version"]
            assert version > last.get(record.key, 0), record.key
            last[record.key] = version


def assert_same_cells(partition: int, found: Cells, expected: Cells) -> None:
    """Equal, or a short list of what differs: pytest's own takes minutes."""
    places = sorted(found.keys() | expected.keys())
    different = [
        (place, found.get(place), expected.get(place))
        for place in places
        if found.get(place) != expected.get(place)
    ]
    assert not different, f"partition {partition}: cell, found, expected: {different[:5]}"


def policy_key(policy: dict[str, Any]) -> str:
    return f"{policy['scope']}|{policy['unit']}|{policy['period']}"


def nanos(text: str) -> int:
    """Nanos of a decimal string."""
    whole, _, part = text.partition(".")
    return int(whole + part.ljust(9, "0"))

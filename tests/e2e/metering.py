"""Worker and sink on a real Kafka and ledger whose Kafka gets lost: what a restore is tested on."""

import asyncio
import json
import uuid
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaProducer
from clickhouse_connect.driver.client import Client

from pipeline.core.cells import sum_totals
from pipeline.ledger.client import LedgerAddress, connect
from pipeline.settings import Settings
from pipeline.stream.reader import read_to_end, record_ends
from pipeline.stream.tables import read_tables
from pipeline.stream.topics import Topics, create_or_check
from tests.decided import until_decided
from tests.processes import RETRY_BACKOFF_MS, WAIT_S, PartProcess
from tests.stream.conftest import url_of
from tests.stream.worker_deployment import Cells, count, home_of, policy_key

LEAD_S = 1
POLL_S = 0.1


@dataclass
class Metering:
    """One topic prefix on one ledger. ``sent`` are the valid events, each once, of all of them."""

    kafka: str
    ledger: LedgerAddress
    folder: Path
    partitions: int = 2
    prefix: str = field(default_factory=lambda: f"t{uuid.uuid4().hex[:10]}.")
    more: dict[str, Any] = field(default_factory=dict[str, Any])
    """Further settings."""
    sent: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    parts: list[PartProcess] = field(default_factory=list[PartProcess])

    def elsewhere(self, partitions: int) -> "Metering":
        """The same ledger, and a Kafka that has nothing: another prefix."""
        return Metering(self.kafka, self.ledger, self.folder, partitions, sent=self.sent)

    @property
    def topics(self) -> Topics:
        return Topics(self.prefix)

    @property
    def client(self) -> dict[str, Any]:
        # A topic made just now takes its first record at the second or third try.
        return {"bootstrap_servers": self.kafka, "retry_backoff_ms": RETRY_BACKOFF_MS}

    @property
    def settings(self) -> Settings:
        return Settings(
            kafka_bootstrap=self.kafka,
            clickhouse_url=url_of(self.ledger),
            topic_prefix=self.prefix,
            partitions=self.partitions,
            replication=1,
            price_lead_s=LEAD_S,
            data_dir=self.folder,
            **self.more,
        )

    async def prepare(self) -> None:
        await create_or_check(self.settings)

    def launch(self, part: str, fault: str = "") -> PartProcess:
        name = f"{self.prefix}{part.partition(' ')[0]}-{uuid.uuid4().hex[:6]}"
        process = PartProcess(part, self.folder / f"{name}.log", self.settings.environ(), fault)
        self.parts.append(process)
        return process

    async def start(self) -> None:
        """Worker and sink, ready."""
        for part in (self.launch("worker"), self.launch("sink")):
            await part.wait_ready()

    async def stop(self) -> None:
        """A clean stop of what runs."""
        for part in self.parts:
            if part.exit_status() is None:
                assert await part.stopped() == 0, part.printed
        self.parts.clear()

    def end_all(self) -> None:
        for part in self.parts:
            part.kill()

    async def put(self, topic: str, key: str, body: object) -> None:
        """One record on partition 0; None is a tombstone, bytes go as they are."""
        value = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        async with AIOKafkaProducer(**self.client) as producer:
            await producer.send_and_wait(topic, value, key.encode(), partition=0)

    async def set_policy(self, **policy: Any) -> None:
        await self.put(self.topics.policies, policy_key(policy), policy)

    async def set_rate(self, **rate: Any) -> None:
        await self.put(self.topics.rates, rate["rate_id"], rate)

    async def publish(self, events: Iterable[dict[str, Any]], *, counted: bool = True) -> None:
        """Sends events; the first of every ten goes to a partition that is not its home."""
        events = list(events)
        async with AIOKafkaProducer(**self.client, linger_ms=2) as producer:
            futures = [
                await producer.send(
                    self.topics.events,
                    json.dumps(one).encode(),
                    one["port_id"].encode(),
                    partition=(home_of(one["port_id"], self.partitions) + (number % 10 == 0))
                    % self.partitions,
                )
                for number, one in enumerate(events)
            ]
            await asyncio.gather(*futures)
        if counted:
            self.sent += events

    async def counted(self) -> None:
        """Waits until the tables have taken in everything, forwarded records included."""
        async with asyncio.timeout(WAIT_S):
            while True:
                views = await read_tables(self.client, self.topics, list(range(self.partitions)))
                # Only now: a table that passes a misrouted event does so after its copy was sent.
                ends = await record_ends(self.client, self.topics.events)
                if all(views[p].next_offset >= end for p, end in ends.items()):
                    return
                self._check_alive()
                await asyncio.sleep(POLL_S)

    async def held(self) -> None:
        """Waits until the ledger shows the rows of all that was sent; manifests come after them."""
        await self.counted()
        async with asyncio.timeout(WAIT_S):
            while await asyncio.to_thread(self._lacks_something):
                self._check_alive()
                await asyncio.sleep(POLL_S)

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        client: Client = connect(self.ledger)
        try:
            return [tuple(row) for row in client.query(sql).result_rows]
        finally:
            client.close()

    async def until_query(self, sql: str, wanted: list[tuple[Any, ...]]) -> None:
        """Waits until the ledger answers ``wanted``."""
        async with asyncio.timeout(WAIT_S):
            while (await asyncio.to_thread(self.query, sql)) != wanted:
                self._check_alive()
                await asyncio.sleep(POLL_S)

    async def cells(self) -> Cells:
        """The cells of all source partitions, added up."""
        views = await read_tables(self.client, self.topics, list(range(self.partitions)))
        found: Cells = {}
        for view in views.values():
            for place, totals in view.cells.items():
                found[place] = sum_totals([found.get(place, (0,) * 6), totals])
        return found

    def expected_cells(self) -> Cells:
        """What ``sent`` adds up to."""
        found: Cells = {}
        for cells in count(self.sent).values():
            for place, totals in cells.items():
                found[place] = sum_totals([found.get(place, (0,) * 6), totals])
        return found

    async def fates(self) -> Counter[str]:
        """How many records the tables say ended where, in this epoch."""
        views = await read_tables(self.client, self.topics, list(range(self.partitions)))
        names = ("accepted", "rejected", "duplicates", "forwarded")
        return Counter(
            {n: sum(getattr(view.position, n) for view in views.values()) for n in names}
        )

    async def states(self) -> dict[str, dict[str, Any]]:
        """The newest record of each key of ``budget.state`` that is no tombstone."""
        found: dict[str, dict[str, Any] | None] = {}
        await until_decided(self.client, self.topics.state)
        async for records in read_to_end(self.client, self.topics.state):
            for record in records:
                if not record.key.startswith(b"!"):
                    value = record.value
                    found[record.key.decode()] = None if value is None else json.loads(value)
        return {key: state for key, state in found.items() if state is not None}

    def _lacks_something(self) -> bool:
        rows = self.query("SELECT count() FROM usage_ledger")[0][0]
        return rows < len(self.sent)

    def _check_alive(self) -> None:
        for part in self.parts:
            assert part.exit_status() is None, f"{part.name} has ended: {part.printed}"

"""A sink in a process of its own, on a real Kafka and a real ClickHouse, fed by the test."""

import asyncio
import json
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from aiokafka import AIOKafkaProducer
from clickhouse_connect.driver.client import Client

from pipeline.core.blocks import PricedBlock, encode_block
from pipeline.ledger.client import LedgerAddress
from pipeline.stream.topic_identity import topic_id
from pipeline.stream.topics import Topics, create_or_check_topics
from tests.group_members import forget_dead_members
from tests.ledger.priced_blocks import dicts
from tests.processes import WAIT_S, PartProcess

PARTITIONS = 2


@dataclass
class Deployment:
    kafka: str
    prefix: str
    address: LedgerAddress
    client: Client
    folder: Path
    sinks: list[PartProcess] = field(default_factory=list)

    @property
    def topics(self) -> Topics:
        return Topics(self.prefix)

    async def prepare(self) -> None:
        client = {"bootstrap_servers": self.kafka}
        await create_or_check_topics(client, self.topics, PARTITIONS)
        priced_id = str(await topic_id(client, self.topics.priced))
        record = {
            "epoch": 1,
            "id": uuid.uuid4().hex,
            "created_at": "2026-11-22T10:00:00.000Z",
            "topic_ids": {self.topics.events: "x", self.topics.priced: priced_id},
            "partitions": PARTITIONS,
        }
        async with AIOKafkaProducer(**client) as producer:
            await producer.send_and_wait(self.topics.epoch, json.dumps(record).encode())

    def start_sink(self, fault: str = "", **settings: str) -> PartProcess:
        a = self.address
        environ = {
            "TALLYPORT_KAFKA_BOOTSTRAP": self.kafka,
            "TALLYPORT_CLICKHOUSE_URL": f"http://{a.user}:{a.password}@{a.host}:{a.port}/{a.database}",
            "TALLYPORT_TOPIC_PREFIX": self.prefix,
            "TALLYPORT_PARTITIONS": str(PARTITIONS),
            "TALLYPORT_REPLICATION": "1",
            "TALLYPORT_DATA_DIR": str(self.folder),
            **settings,
        }
        log_file = self.folder / f"sink-{len(self.sinks)}.log"
        sink = PartProcess("sink", log_file, environ, fault)
        self.sinks.append(sink)
        return sink

    async def forget_dead_members(self) -> None:
        """No sink lives: none is waited for."""
        await forget_dead_members({"bootstrap_servers": self.kafka}, self.topics.sink_group)

    def end_all(self) -> None:
        for sink in self.sinks:
            sink.kill()

    async def publish(self, blocks: Sequence[PricedBlock], commit: bool = True) -> None:
        """Each block in a transaction of its own, as the worker sends them."""
        producer = AIOKafkaProducer(
            bootstrap_servers=self.kafka,
            transactional_id=f"{self.prefix}test-{uuid.uuid4().hex}",
            max_request_size=8 * 1024 * 1024,
        )
        async with producer:
            for block in blocks:
                await producer.begin_transaction()
                await producer.send_and_wait(
                    self.topics.priced, encode_block(block), partition=block.partition
                )
                await (producer.commit_transaction() if commit else producer.abort_transaction())

    async def publish_at(self, partition: int, blocks: Sequence[PricedBlock]) -> None:
        """Blocks as plain records of ``partition``, whatever they say of themselves."""
        async with AIOKafkaProducer(bootstrap_servers=self.kafka) as producer:
            for block in blocks:
                value = encode_block(block)
                await producer.send_and_wait(self.topics.priced, value, partition=partition)

    async def wait_until_held(self, blocks: Sequence[PricedBlock]) -> None:
        """Waits until the manifests cover every block."""
        wanted: dict[int, int] = {}
        for block in blocks:
            wanted[block.partition] = max(wanted.get(block.partition, 0), block.next_offset)
        async with asyncio.timeout(WAIT_S):
            while self.held() != wanted:
                for sink in self.sinks[-1:]:
                    assert sink.exit_status() is None, f"the sink has ended: {sink.printed}"
                await asyncio.sleep(0.05)

    def held(self) -> dict[int, int]:
        sql = "SELECT partition, max(next_offset) FROM sink_manifests GROUP BY partition"
        return dict(self.client.query(sql).result_rows)

    def assert_exact(self, blocks: Sequence[PricedBlock]) -> None:
        """Every row once, every amount to the nano, every manifest's counts as sent."""
        entries = [{**e, "partition": b.partition} for b in blocks for e in dicts([b])]
        sql = (
            "SELECT port_id, event_id, source_partition, source_offset, cost_nano, total_tokens "
            "FROM usage_ledger"
        )
        found = Counter(self.client.query(sql).result_rows)
        expected = Counter(
            (
                e["port_id"],
                e["event_id"],
                e["partition"],
                e["source_offset"],
                e["cost_nano"],
                e["input_tokens"] + e["output_tokens"],
            )
            for e in entries
        )
        assert found == expected
        sums = self.client.query(
            "SELECT sum(requests), sum(cost_nano), sum(unpriced_requests) FROM usage_daily"
        ).first_row
        assert sums == (
            len(entries),
            sum(e["cost_nano"] or 0 for e in entries),
            sum(e["cost_nano"] is None for e in entries),
        )

    def assert_manifests_join(self, blocks: Sequence[PricedBlock]) -> None:
        """The runs of each partition join end to end and count every record once.

        Holds when no two sinks were at work on one partition at the same time.
        """
        sql = (
            "SELECT partition, first_offset, next_offset, rows, rejected, duplicates, forwarded "
            "FROM sink_manifests FINAL ORDER BY partition, first_offset"
        )
        for partition in {block.partition for block in blocks}:
            runs = [r for r in self.client.query(sql).result_rows if r[0] == partition]
            own = [block for block in blocks if block.partition == partition]
            assert runs[0][1] == own[0].first_offset
            assert [run[2] for run in runs[:-1]] == [run[1] for run in runs[1:]]
            counts = [sum(run[n] for run in runs) for n in range(3, 7)]
            assert counts == [
                sum(len(getattr(block, name)) for block in own)
                for name in ("rows", "rejected", "duplicates", "forwarded")
            ]

"""A sink in a process of its own, on a real Kafka and a real ClickHouse, fed by the test."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaProducer
from clickhouse_connect.driver.client import Client

from pipeline.core.blocks import PricedBlock, encode_block
from pipeline.ledger.client import LedgerAddress
from pipeline.stream.topics import Topics, create_or_check_topics
from tests.ledger.priced_blocks import dicts

PARTITIONS = 2
WAIT_S = 60.0


@dataclass
class SinkProcess:
    process: subprocess.Popen[bytes]
    out: Path
    err: Path

    async def wait_ready(self) -> None:
        await self.wait_for(lambda: "ready sink" in self.out.read_text())

    async def wait_for(self, condition: Any) -> None:
        async with asyncio.timeout(WAIT_S):
            while not condition():
                assert self.process.poll() is None, f"the sink has ended: {self.errors}"
                await asyncio.sleep(0.05)

    async def ended(self) -> int:
        return await asyncio.to_thread(self.process.wait, WAIT_S)

    async def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return await self.ended()

    async def kill(self) -> None:
        self.process.kill()
        await self.ended()

    @property
    def errors(self) -> str:
        return self.err.read_text()


@dataclass
class Deployment:
    kafka: str
    prefix: str
    address: LedgerAddress
    client: Client
    folder: Path
    sinks: list[SinkProcess] = field(default_factory=list)

    @property
    def topics(self) -> Topics:
        return Topics(self.prefix)

    async def prepare(self) -> None:
        client = {"bootstrap_servers": self.kafka}
        await create_or_check_topics(client, self.topics, PARTITIONS)
        record = {
            "epoch": 1,
            "id": uuid.uuid4().hex,
            "created_at": "2026-11-22T10:00:00.000Z",
            "topic_ids": {self.topics.events: "x"},
            "partitions": PARTITIONS,
        }
        async with AIOKafkaProducer(**client) as producer:
            await producer.send_and_wait(self.topics.epoch, json.dumps(record).encode())

    def start_sink(self, fault: str = "") -> SinkProcess:
        name = f"sink-{len(self.sinks)}"
        a = self.address
        settings = {
            "TALLYPORT_KAFKA_BOOTSTRAP": self.kafka,
            "TALLYPORT_CLICKHOUSE_URL": f"http://{a.user}:{a.password}@{a.host}:{a.port}/{a.database}",
            "TALLYPORT_TOPIC_PREFIX": self.prefix,
            "TALLYPORT_PARTITIONS": str(PARTITIONS),
            "TALLYPORT_REPLICATION": "1",
            "TALLYPORT_DATA_DIR": str(self.folder),
            "FAULT_POINT": fault,
        }
        out, err = self.folder / f"{name}.out", self.folder / f"{name}.err"
        with out.open("wb") as stdout, err.open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "pipeline", "sink"],
                env={**os.environ, **settings},
                stdout=stdout,
                stderr=stderr,
            )
        sink = SinkProcess(process, out, err)
        self.sinks.append(sink)
        return sink

    def end_all(self) -> None:
        for sink in self.sinks:
            if sink.process.poll() is None:
                sink.process.kill()
                sink.process.wait()

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

    async def wait_until_held(self, blocks: Sequence[PricedBlock]) -> None:
        """Waits until the manifests cover every block."""
        wanted: dict[int, int] = {}
        for block in blocks:
            wanted[block.partition] = max(wanted.get(block.partition, 0), block.next_offset)
        async with asyncio.timeout(WAIT_S):
            while self.held() != wanted:
                for sink in self.sinks[-1:]:
                    assert sink.process.poll() is None, f"the sink has ended: {sink.errors}"
                await asyncio.sleep(0.1)

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

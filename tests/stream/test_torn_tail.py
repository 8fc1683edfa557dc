"""A journal that lost its end on the broker's disk: the worker stops and counts nothing anew."""

import struct
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from pipeline.ops.kafka_server import KafkaServer
from tests.stream.worker_deployment import WorkerDeployment, event

HEADER = struct.Struct(">qiibihiqqq")
"""Of a batch: base offset, length behind itself, leader epoch, magic, checksum, attributes, last
offset, two timestamps, producer id."""
LENGTH_AT = 12
CONTROL = 0x20
PARTITION = 1


@pytest.fixture
def server(tmp_path: Path) -> Iterator[KafkaServer]:
    server = KafkaServer(tmp_path / "kafka")
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture
async def deployment(
    server: KafkaServer, empty_ledger_url: str, tmp_path: Path
) -> AsyncIterator[WorkerDeployment]:
    prefix = f"t{uuid.uuid4().hex[:10]}."
    deployment = WorkerDeployment(server.bootstrap, prefix, empty_ledger_url, tmp_path)
    await deployment.prepare()
    try:
        yield deployment
    finally:
        deployment.end_all()


def tear(segment: Path) -> int:
    """Cuts the file off within a batch about in the middle; the offset of that batch.

    Where it stands no transaction is open: the marker of one before it would be lost as well, and
    then what is committed ends earlier.
    """
    content = segment.read_bytes()
    batches: list[tuple[int, int, int]] = []
    is_open: set[int] = set()
    at = 0
    while at + HEADER.size <= len(content):
        offset, length, _, _, _, attributes, *_, producer = HEADER.unpack_from(content, at)
        if not length:
            break  # room that was set aside
        if attributes & CONTROL:
            is_open.discard(producer)
        else:
            if not is_open:
                batches.append((offset, at, length))
            is_open.add(producer)
        at += LENGTH_AT + length
    offset, at, length = batches[len(batches) // 2]
    with segment.open("r+b") as file:
        file.truncate(at + length // 2)
    return offset


@pytest.mark.parametrize("journal", ["totals", "ids"])
async def test_a_torn_journal_stops_the_worker(
    journal: str, deployment: WorkerDeployment, server: KafkaServer, tmp_path: Path
) -> None:
    worker = deployment.start_worker()
    await worker.wait_ready()
    for first in range(0, 120, 20):
        await deployment.publish([event(first + n) for n in range(20)])
        await deployment.settled()
    assert await worker.stopped() == 0
    topic = getattr(deployment.topics, journal)
    before = (await deployment.ends(topic))[PARTITION]

    server.kill()
    [segment] = (tmp_path / "kafka").rglob(f"{topic}-{PARTITION}/00000000000000000000.log")
    torn_at = tear(segment)
    server.start()
    deployment.kafka = server.bootstrap
    # The markers of transactions that the worker left open may stand behind them by now.
    kept = [r.offset for r in await deployment.read(topic) if r.partition == PARTITION]
    assert kept[-1] < torn_at < before

    for _ in range(2):  # not the second time either
        worker = deployment.start_worker()
        assert await worker.ended() == 1, worker.printed
        assert f"{deployment.topics.ids} partition {PARTITION}" in worker.error, worker.error
        assert "totals count" in worker.error
        assert "serving source partitions" not in worker.printed

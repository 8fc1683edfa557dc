"""Records of the resolver that cannot be trusted: worker and sink stop and say where they stand."""

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient

from pipeline.core.resolved import RESOLVED_VERSION
from pipeline.corrections.progress import PROGRESS_KEY, PROGRESS_VERSION
from pipeline.ledger.client import LedgerAddress
from pipeline.stream.topics import create_or_check
from tests.corrections.desk import Desk
from tests.processes import PartProcess
from tests.stream.worker_deployment import event

NEWER = msgspec.msgpack.encode([9, "what a later release writes"])


@pytest.fixture
async def desk(kafka: str, own_ledger: LedgerAddress, tmp_path: Path) -> AsyncIterator[Desk]:
    """One that a test may spoil."""
    desk = Desk(kafka, own_ledger, tmp_path)
    try:
        await desk.open()
        yield desk
    finally:
        desk.end_all()


async def refusal(part: PartProcess) -> str:
    assert await part.ended() == 1, part.printed
    return part.error


@pytest.mark.parametrize("topic", ["resolver", "resolved"])
async def test_a_record_of_another_version_is_named(topic: str, desk: Desk) -> None:
    await desk.stop()
    name = getattr(desk.topics, topic)
    async with AIOKafkaProducer(**desk.client) as producer:
        sent = await producer.send_and_wait(name, NEWER, PROGRESS_KEY, partition=0)
    parts = ["sink"] if topic == "resolver" else ["sink", "worker"]
    known = PROGRESS_VERSION if topic == "resolver" else RESOLVED_VERSION
    for part in parts:
        line = await refusal(desk.launch(part))
        assert f"{name} partition 0 offset {sent.offset}" in line, line
        assert f"of version 9; this release reads {known}" in line


async def test_recreated_corrections_are_read_from_their_beginning(desk: Desk) -> None:
    """What was booked of them before is a repeat; the rest counts."""
    await desk.count(event(1, event_id="e1", port_id="p", input_tokens=50))
    body = {"port_id": "p", "event_id": "e1", "reason": "r", "kind": "amend"}
    first = {**body, "correction_id": "c1", "counts": {"input_tokens": 5}}
    await desk.correct(first)
    await desk.entries("p", "e1", 2)
    await desk.stop()
    admin = AIOKafkaAdminClient(**desk.client)
    await admin.start()
    try:
        await admin.delete_topics([desk.topics.corrections])
        gone = set(await admin.list_topics())
        while desk.topics.corrections in gone:
            gone = set(await admin.list_topics())
    finally:
        await admin.close()
    await create_or_check(desk.settings)
    await desk.start()
    await desk.correct(first, {**body, "correction_id": "c2", "counts": {"input_tokens": 7}})
    rows = await desk.entries("p", "e1", 3)
    assert [row["input_tokens"] for row in rows] == [50, -45, 2]
    assert [row["correction_id"] for row in rows] == ["", "c1", "c2"]

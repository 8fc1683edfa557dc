"""Records of the resolver that cannot be trusted: worker and sink stop and say where they stand."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.structs import TopicPartition

from pipeline import metrics
from pipeline.core.resolved import RESOLVED_VERSION
from pipeline.corrections.progress import (
    PROGRESS_KEY,
    PROGRESS_VERSION,
    encode_progress,
    read_progress,
)
from pipeline.corrections.resolver import Resolver
from pipeline.ledger.client import LedgerAddress
from pipeline.stream.topic_identity import topic_id
from pipeline.stream.topics import create_or_check
from tests.corrections.desk import Desk
from tests.processes import WAIT_S, PartProcess
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


def lost() -> float:
    labels = {"reason": metrics.LOST_DELETED}
    found = metrics.REGISTRY.get_sample_value("tallyport_corrections_lost_total", labels)
    assert found is not None
    return found


async def positions(desk: Desk) -> dict[int, int]:
    corrections_id = str(await topic_id(desk.client, desk.topics.corrections))
    return (await read_progress(desk.client, desk.topics, corrections_id)).next_offsets


async def delete_up_to(desk: Desk, place: tuple[int, int]) -> None:
    """Kafka deletes what stands at ``place`` and before it, as its retention would."""
    partition, offset = place
    admin = AIOKafkaAdminClient(**desk.client)
    await admin.start()
    try:
        tp = TopicPartition(desk.topics.corrections, partition)
        await admin.delete_records({tp: RecordsToDelete(before_offset=offset + 1)})
    finally:
        await admin.close()


async def resolve_up_to(desk: Desk, place: tuple[int, int]) -> None:
    """Resolves corrections here until the position is behind ``place``."""
    partition, offset = place
    resolving = asyncio.create_task(Resolver(desk.settings, lambda: True).run())
    try:
        async with asyncio.timeout(WAIT_S):
            while (await positions(desk)).get(partition, 0) <= offset:
                assert not resolving.done(), resolving.exception()
                await asyncio.sleep(0.1)
    finally:
        resolving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await resolving


async def test_corrections_deleted_before_they_were_resolved_are_counted_once(desk: Desk) -> None:
    await desk.count(event(1, event_id="e1", port_id="p", input_tokens=50))
    await desk.stop()
    body = {"port_id": "p", "event_id": "e1", "reason": "r", "kind": "amend"}
    amends = [{**body, "correction_id": f"c{n}", "counts": {"input_tokens": n}} for n in range(4)]
    *_, last = await desk.correct(*amends[:3])
    await delete_up_to(desk, last)
    before = lost()
    await resolve_up_to(desk, last)
    assert lost() - before == 3
    [later] = await desk.correct(amends[3])
    await resolve_up_to(desk, later)
    assert lost() - before == 3
    await desk.start()
    rows = await desk.entries("p", "e1", 2)
    assert [row["correction_id"] for row in rows] == ["", "c3"]


async def test_corrections_that_end_before_what_was_resolved_stop_the_sink(desk: Desk) -> None:
    await desk.stop()
    corrections_id = str(await topic_id(desk.client, desk.topics.corrections))
    progress = await read_progress(desk.client, desk.topics, corrections_id)
    progress.next_offsets[1] = 7
    async with AIOKafkaProducer(**desk.client) as producer:
        value = encode_progress(progress)
        await producer.send_and_wait(desk.topics.resolver, value, PROGRESS_KEY, partition=0)
    line = await refusal(desk.launch("sink"))
    assert f"{desk.topics.corrections} partition 1 ends at offset 0" in line, line
    assert "resolved up to 7" in line

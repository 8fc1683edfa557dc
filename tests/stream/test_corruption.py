"""Internal records that cannot be trusted, and topics that lost or changed theirs: the worker stops
and names topic, partition and offset; nothing is skipped."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

from pipeline.core.corrections import AMOUNTS
from pipeline.core.events import Event
from pipeline.stream.topics import create_or_check_topics
from tests.processes import PartProcess
from tests.stream.worker_deployment import PARTITIONS, WorkerDeployment, event

ODD_NAME = b"\xff\xfe name".decode("utf-8", "surrogateescape")


@pytest.fixture
async def deployment(
    kafka: str, empty_ledger_url: str, tmp_path: Path
) -> AsyncIterator[WorkerDeployment]:
    prefix = f"t{uuid.uuid4().hex[:10]}."
    deployment = WorkerDeployment(kafka, prefix, empty_ledger_url, tmp_path)
    await deployment.prepare()
    try:
        yield deployment
    finally:
        deployment.end_all()


async def refusal(worker: PartProcess) -> str:
    """The one line of a worker that had to stop."""
    assert await worker.ended() == 1, worker.printed
    return worker.error


def delta(**position: int) -> bytes:
    fields = {"epoch": 1, "flush": 1, **position}
    names = ("epoch", "flush", "next_offset", "accepted", "rejected", "duplicates", "forwarded",
             "unpriced", "watermark_ms", "oldest_day", "cells")  # fmt: skip
    return msgspec.msgpack.encode([1, [fields.get(name, 0) for name in names] + [b"", 0], []])


JOURNALS: list[tuple[str, str, bytes, bytes, str]] = [
    ("a version", "totals", b"d|0", msgspec.msgpack.encode([9, "?"]), "version 9"),
    ("missing flushes", "totals", b"d|4", delta(flush=5), "flush 1 is missing"),
    ("missing cells", "totals", b"d|0", delta(cells=3), "recovered 0 cells"),
    ("a shard alone", "totals", b"s|3", msgspec.msgpack.encode([1, 1, 1, []]), "without any"),
    ("a version of ids", "ids", b"d|0", b"\x07" + bytes(16), "version 7"),
    ("ids without totals", "ids", b"d|0", b"\x02" + bytes(16 + 24), "the totals count 0"),
    ("a policy", "registry", b"all|cost|month", b"{}", "no policy"),
]


@pytest.mark.parametrize(
    ("topic", "key", "value", "problem"),
    [case[1:] for case in JOURNALS],
    ids=[case[0] for case in JOURNALS],
)
async def test_a_record_that_cannot_be_trusted_is_named(
    topic: str, key: bytes, value: bytes, problem: str, deployment: WorkerDeployment
) -> None:
    name = getattr(deployment.topics, topic)
    partition = 0 if topic == "registry" else 1
    offset = await deployment.put_bytes(name, key, value, partition)
    line = await refusal(deployment.start_worker())
    assert f"{name} partition {partition} offset {offset}" in line, line
    assert problem in line


@pytest.mark.parametrize(
    ("position", "problem"),
    [({"next_offset": 99}, "ends at offset 0"), ({"epoch": 7}, "epoch 7")],
    ids=["beyond the log", "of another epoch"],
)
async def test_an_impossible_position_is_named(
    position: dict[str, int], problem: str, deployment: WorkerDeployment
) -> None:
    await deployment.put_bytes(deployment.topics.totals, b"d|0", delta(**position), 1)
    line = await refusal(deployment.start_worker())
    assert "partition 1" in line
    assert problem in line


async def test_a_partial_that_cannot_be_read_is_named(deployment: WorkerDeployment) -> None:
    worker = deployment.start_worker()
    await worker.wait_ready()
    topic = deployment.topics.partials
    offset = await deployment.put_bytes(topic, b"7", msgspec.msgpack.encode([8]), 1)
    line = await refusal(worker)
    assert f"{topic} partition 1 offset {offset}" in line
    assert "version 8" in line


def resolved(number: int) -> bytes:
    """A resolved correction that changes nothing."""
    amounts = dict.fromkeys(AMOUNTS, 0)
    fields = {"event_id": "e1", "occurred_at_us": 1_795_003_200_000_000, "port_id": "port-1"}
    row = msgspec.structs.astuple(Event(**fields, provider="acme", model="m-1", **amounts))
    mark = (1, 0, 0, f"c{number}", "r", "usage.corrections", 1)
    price = (number, 1_795_003_200_000, 0, "", "priced", False)
    return msgspec.msgpack.encode([1, number, 0, "", "USD", 60, (*row, *price), mark])


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ([msgspec.msgpack.encode([9, 1])], "version 9"),
        ([resolved(1), resolved(3)], "number 3 comes after 1"),
        ([b"\xc1"], "not a resolved correction"),
    ],
    ids=["version", "a hole", "damaged"],
)
async def test_a_resolved_correction_that_cannot_be_trusted_is_named(
    values: list[bytes], problem: str, deployment: WorkerDeployment
) -> None:
    topic = deployment.topics.resolved
    for value in values:
        offset = await deployment.put_bytes(topic, b"port-1", value, 1)
    line = await refusal(deployment.start_worker())
    assert f"{topic} partition 1 offset {offset}" in line, line
    assert problem in line


async def until_gone(admin: AIOKafkaAdminClient, topic: str) -> None:
    while topic in await admin.list_topics():  # noqa: ASYNC110
        await asyncio.sleep(0.1)


async def recreate(deployment: WorkerDeployment, topic: str) -> None:
    admin = AIOKafkaAdminClient(**deployment.client)
    await admin.start()
    try:
        await admin.delete_topics([topic])
        await asyncio.wait_for(until_gone(admin, topic), 60)
    finally:
        await admin.close()
    await create_or_check_topics(deployment.client, deployment.topics, PARTITIONS)


async def truncate(deployment: WorkerDeployment, topic: str, partition: int, before: int) -> None:
    admin = AIOKafkaAdminClient(**deployment.client)
    await admin.start()
    try:
        tp = TopicPartition(topic, partition)
        await admin.delete_records({tp: RecordsToDelete(before_offset=before)})
    finally:
        await admin.close()


async def counted(deployment: WorkerDeployment, first: int = 0) -> PartProcess:
    """A worker that has counted some events."""
    worker = deployment.start_worker()
    await worker.wait_ready()
    await deployment.publish([event(first + n) for n in range(30)])
    await deployment.settled()
    return worker


RECREATED = ["events", "resolved", "totals", "ids", "state", "policies", "rates", "priced"]


@pytest.mark.parametrize("topic", RECREATED)
async def test_a_topic_recreated_under_a_worker_stops_it_for_good(
    topic: str, deployment: WorkerDeployment
) -> None:
    name = getattr(deployment.topics, topic)
    worker = await counted(deployment)
    await recreate(deployment, name)
    line = await refusal(worker)
    assert name in line, line
    line = await refusal(deployment.start_worker())
    assert f"topic {name} was recreated" in line


async def test_recreated_partials_are_made_anew(deployment: WorkerDeployment) -> None:
    worker = await counted(deployment)
    assert await worker.stopped() == 0
    await recreate(deployment, deployment.topics.partials)
    await deployment.forget_dead_members()
    worker = await counted(deployment, 100)
    await deployment.assert_exact()
    assert await worker.stopped() == 0


async def test_events_deleted_before_they_were_counted_stop_the_worker(
    deployment: WorkerDeployment,
) -> None:
    worker = await counted(deployment)
    assert await worker.stopped() == 0
    await deployment.publish([event(100 + n) for n in range(60)])
    ends = await deployment.ends(deployment.topics.events)
    await truncate(deployment, deployment.topics.events, 1, ends[1] - 1)
    line = await refusal(deployment.start_worker())
    assert f"topic {deployment.topics.events} partition 1 no longer has offset" in line


async def test_events_deleted_after_they_were_counted_are_no_loss(
    deployment: WorkerDeployment,
) -> None:
    worker = await counted(deployment)
    assert await worker.stopped() == 0
    ends = await deployment.ends(deployment.topics.events)
    await truncate(deployment, deployment.topics.events, 1, ends[1])
    await deployment.forget_dead_members()
    worker = await counted(deployment, 100)
    assert await worker.stopped() == 0


async def test_deleted_rates_stop_the_worker(deployment: WorkerDeployment) -> None:
    await truncate(deployment, deployment.topics.rates, 0, 1)
    line = await refusal(deployment.start_worker())
    assert f"topic {deployment.topics.rates} partition 0 starts at offset 1" in line


async def test_offsets_that_were_reset_move_nothing(deployment: WorkerDeployment) -> None:
    worker = await counted(deployment)
    assert await worker.stopped() == 0
    await deployment.forget_dead_members()
    ends = await deployment.ends(deployment.topics.events)
    for offsets in ({0: 0, 1: 0}, ends):
        await deployment.commit_offsets(offsets)
        worker = await counted(deployment, 1_000 * (1 + len(deployment.workers)))
        await deployment.assert_exact()
        assert await worker.stopped() == 0
        await deployment.forget_dead_members()


async def test_header_names_of_any_bytes_are_taken_and_sent_on(
    deployment: WorkerDeployment,
) -> None:
    topics = deployment.topics
    headers = [("a", b"1"), (ODD_NAME, b"\x00")]
    good = msgspec.json.encode(event(1, port_id="port-1"))
    for partition in range(PARTITIONS):
        for value in (good, b"no json"):
            await deployment.put_raw_names(topics.events, b"k", value, partition, headers)
    worker = deployment.start_worker()
    await worker.wait_ready()
    await deployment.settled()
    rejected = await deployment.read(topics.rejected)
    assert [record.value for record in rejected] == [b"no json"] * PARTITIONS
    for record in rejected:
        assert list(record.headers)[: len(headers)] == headers
    fates = [fate for found in (await deployment.fates()).values() for fate in found.values()]
    assert sorted(fates) == ["duplicate", "forwarded", "rejected", "rejected", "row"]
    assert await worker.stopped() == 0

"""Killed, frozen and replaced workers: every event is counted exactly once, whatever happens."""

import asyncio
import json
import signal
import uuid
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient

from pipeline.ledger.client import LedgerAddress, connect
from pipeline.ledger.manifests import LogEpoch, join_epoch
from pipeline.stream.topics import create_or_check_topics
from tests.day_fixture import within_one_day
from tests.processes import PartProcess
from tests.stream.conftest import url_of
from tests.stream.worker_deployment import (
    PARTITIONS,
    WorkerDeployment,
    event,
    home_of,
)

SESSION_TIMEOUT_S = 6.0
ALL_POINTS_S = 240.0
POINTS = (
    "price-taken",
    "price-begun",
    "price-sent",
    "price-acked",
    "price-offsets",
    "price-committed",
    "merge-computed",
)
POLICIES: tuple[dict[str, Any], ...] = (
    {"scope": "all", "unit": "cost", "period": "month", "hard_cap": "1"},
    {"scope": "port:*", "unit": "tokens", "period": "month", "hard_cap": 9_000},
    {"scope": "port:port-1", "unit": "cost", "period": "rolling-30d", "hard_cap": "0.01"},
    {"scope": "user:*", "unit": "cost", "period": "month", "soft_cap": "0.005"},
    {"scope": "org:org-1", "unit": "tokens", "period": "rolling-30d"},
)
KEYS = [
    "all|cost|month",
    "port:port-1|cost|rolling-30d",
    "org:org-1|tokens|rolling-30d",
    *(f"port:port-{n}|tokens|month" for n in range(5)),
    *(f"user:user-{n}|cost|month" for n in range(7)),
]


async def prepared(kafka: str, ledger_url: str, folder: Path) -> WorkerDeployment:
    deployment = WorkerDeployment(kafka, f"t{uuid.uuid4().hex[:10]}.", ledger_url, folder)
    await deployment.prepare()
    for policy in POLICIES:
        await deployment.set_policy(**policy)
    return deployment


@pytest.fixture
async def deployment(
    kafka: str, empty_ledger_url: str, tmp_path: Path
) -> AsyncIterator[WorkerDeployment]:
    within_one_day()
    deployment = await prepared(kafka, empty_ledger_url, tmp_path)
    try:
        yield deployment
    finally:
        deployment.end_all()


@pytest.fixture(scope="module")
def killed(
    kafka: str, empty_ledger_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[WorkerDeployment]:
    """One log for all fault points: each crash happens on top of the ones before."""
    within_one_day(ALL_POINTS_S)  # at the end of a month budgets begin anew
    folder = tmp_path_factory.mktemp("killed")
    deployment = asyncio.run(prepared(kafka, empty_ledger_url, folder))
    try:
        yield deployment
    finally:
        deployment.end_all()


async def send_mixed(deployment: WorkerDeployment, first: int, number: int) -> None:
    """Valid, unpriced, duplicate, misrouted and invalid records on every partition."""
    events = [event(n) for n in range(first, first + number)]
    events += [event(first + number, model="unknown-model")]
    misrouted = [event(first + number + 1), event(first + number + 2)]
    await deployment.publish(events)
    for one in misrouted:
        await deployment.publish([one], 1 - home_of(one["port_id"]))
    await deployment.publish(events[:3] + misrouted[:1], counted=False)
    for partition in range(PARTITIONS):
        await deployment.put_bytes(deployment.topics.events, b"k", b"no json", partition)


async def feed(deployment: WorkerDeployment, first: int, stop: asyncio.Event) -> None:
    """Steady traffic until ``stop``."""
    number = first
    while not stop.is_set():
        await send_mixed(deployment, number, 40)
        number += 50
        await asyncio.sleep(0.05)


async def all_exact(deployment: WorkerDeployment) -> None:
    await deployment.settled()
    fates = await deployment.assert_exact()
    assert min(fates[name] for name in ("row", "rejected", "duplicate", "forwarded")) > 0
    await deployment.assert_states(KEYS)


@pytest.mark.parametrize("point", POINTS)
async def test_a_worker_killed_at(point: str, killed: WorkerDeployment) -> None:
    first = 100_000 * (1 + POINTS.index(point))
    victim = killed.start_worker(f"{point}:3")
    await victim.ready_or_ended()
    stop = asyncio.Event()
    feeding = asyncio.create_task(feed(killed, first, stop))
    try:
        assert await victim.ended() == -signal.SIGKILL, victim.printed
    finally:
        stop.set()
        await feeding
    await killed.forget_dead_members()
    survivor = killed.start_worker()
    await survivor.wait_ready()
    await all_exact(killed)
    await killed.assert_versions_grow()
    assert await survivor.stopped() == 0, survivor.printed


async def test_a_frozen_worker_that_wakes_up_changes_nothing(deployment: WorkerDeployment) -> None:
    zombie = deployment.start_worker()
    await zombie.wait_ready()
    stop = asyncio.Event()
    feeding = asyncio.create_task(feed(deployment, 0, stop))
    try:
        await zombie.wait_for(lambda: len(deployment.sent) > 300)
        zombie.pause()
        heir = deployment.start_worker()
        await asyncio.sleep(SESSION_TIMEOUT_S + 1)
        await heir.wait_ready()
        sent = len(deployment.sent)
        await heir.wait_for(lambda: len(deployment.sent) > sent + 100)
        zombie.resume()
        sent = len(deployment.sent)
        await heir.wait_for(lambda: len(deployment.sent) > sent + 300)
    finally:
        stop.set()
        await feeding
    await all_exact(deployment)


async def test_one_worker_more_and_then_one_less(deployment: WorkerDeployment) -> None:
    first = deployment.start_worker()
    await first.wait_ready()
    stop = asyncio.Event()
    feeding = asyncio.create_task(feed(deployment, 0, stop))
    try:
        await first.wait_for(lambda: len(deployment.sent) > 200)
        second = deployment.start_worker()
        await second.wait_ready()
        sent = len(deployment.sent)
        await second.wait_for(lambda: len(deployment.sent) > sent + 200)
        assert await first.stopped() == 0, first.printed
        sent = len(deployment.sent)
        await second.wait_for(lambda: len(deployment.sent) > sent + 200)
    finally:
        stop.set()
        await feeding
    await all_exact(deployment)
    await deployment.assert_versions_grow()


async def refusal(worker: PartProcess) -> str:
    """The one line of a worker that must refuse to start."""
    assert await worker.ended() == 1, worker.printed
    assert not worker.is_ready
    assert "Traceback" not in worker.printed
    return worker.printed.strip().splitlines()[-1]


async def test_an_empty_kafka_beside_a_ledger_with_data_is_refused(
    kafka: str, topic_prefix: str, own_ledger: LedgerAddress, tmp_path: Path
) -> None:
    client = connect(own_ledger)
    join_epoch(client, LogEpoch(1, "another-log", datetime.now(UTC)))
    client.close()
    deployment = WorkerDeployment(kafka, topic_prefix, url_of(own_ledger), tmp_path)
    try:
        line = await refusal(deployment.start_worker())
    finally:
        deployment.end_all()
    assert "ledger holds data" in line
    assert "Kafka is empty" in line


async def until_gone(admin: AIOKafkaAdminClient, topic: str) -> None:
    while topic in await admin.list_topics():  # noqa: ASYNC110
        await asyncio.sleep(0.1)


async def test_a_recreated_events_topic_is_refused(deployment: WorkerDeployment) -> None:
    worker = deployment.start_worker()
    await worker.wait_ready()
    await deployment.publish([event(n) for n in range(20)])
    await deployment.settled()
    assert await worker.stopped() == 0, worker.printed
    admin = AIOKafkaAdminClient(**deployment.client)
    await admin.start()
    try:
        await admin.delete_topics([deployment.topics.events])
        await asyncio.wait_for(until_gone(admin, deployment.topics.events), 60)
    finally:
        await admin.close()
    await create_or_check_topics(deployment.client, deployment.topics, PARTITIONS)
    line = await refusal(deployment.start_worker())
    assert f"topic {deployment.topics.events} was recreated" in line


@pytest.mark.parametrize("journal", ["totals", "ids"])
async def test_a_corrupt_journal_record_is_refused(
    journal: str, deployment: WorkerDeployment
) -> None:
    topic = getattr(deployment.topics, journal)
    offset = await deployment.put_bytes(topic, b"d|0", b"\xc1 what", 1)
    line = await refusal(deployment.start_worker())
    assert f"{topic} partition 1 offset {offset}" in line


async def test_an_unreadable_epoch_is_refused(deployment: WorkerDeployment) -> None:
    await deployment.put(deployment.topics.epoch, "", {"epoch": "one"})
    line = await refusal(deployment.start_worker())
    assert f"{deployment.topics.epoch} partition 0 offset 0" in line
    assert json.dumps("one") not in line


async def test_a_killed_worker_leaves_nothing_outside_the_data_folder(
    deployment: WorkerDeployment, tmp_path: Path
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    worker = deployment.start_worker(TMPDIR=str(scratch))
    await worker.wait_ready()
    await worker.killed()
    assert list(scratch.iterdir()) == []

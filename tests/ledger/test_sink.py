"""The sink as a process on real parts: each row exactly once, whatever dies in between."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from clickhouse_connect.driver.client import Client

from pipeline.core.blocks import PricedBlock
from pipeline.ledger.client import LedgerAddress, connect, parse_address
from pipeline.ledger.migrate import migrate_address
from tests.ledger.priced_blocks import block, chain
from tests.ledger.sink_deployment import Deployment
from tests.ledger_fixture import LedgerProcess

FAULTS = [
    "sink-before-mark:1",
    "sink-after-mark:1",
    "sink-before-insert:1",
    "sink-after-insert:1",
    "sink-after-insert:2",
    "sink-before-manifest:1",
    "sink-before-manifest:2",
    "sink-after-manifest:1",
    "sink-before-commit:1",
    "sink-after-commit:1",
]
SIGKILLED = -9


@pytest.fixture
async def deployment(
    kafka: str, topic_prefix: str, address: LedgerAddress, client: Client, tmp_path: Path
) -> AsyncIterator[Deployment]:
    deployment = Deployment(kafka, topic_prefix, address, client, tmp_path)
    await deployment.prepare()
    try:
        yield deployment
    finally:
        deployment.end_all()


def both(seed: int, count: int, topic: str) -> list[PricedBlock]:
    return [*chain(seed, count, 0, topic), *chain(seed, count, 1, topic)]


async def test_rows_arrive_and_a_restart_goes_on(deployment: Deployment) -> None:
    blocks = both(1, 20, deployment.topics.events)
    sink = deployment.start_sink()
    await sink.wait_ready()
    await deployment.publish(blocks[:10])
    await deployment.publish(blocks[20:30])
    await deployment.wait_until_held(blocks[:10] + blocks[20:30])
    assert await sink.stopped() == 0
    await deployment.publish(blocks[10:20])
    await deployment.publish(blocks[30:])
    sink = deployment.start_sink()
    await deployment.wait_until_held(blocks)
    assert await sink.stopped() == 0
    deployment.assert_exact(blocks)
    deployment.assert_manifests_join(blocks)
    rows = deployment.client.query("SELECT count() FROM ledger_entries").first_row[0]
    assert rows == sum(len(b.rows) for b in blocks), "rows were inserted twice"


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_kill_between_any_two_steps_loses_and_doubles_nothing(
    deployment: Deployment, fault: str
) -> None:
    blocks = both(2, 12, deployment.topics.events)
    await deployment.publish(blocks[:6])
    await deployment.publish(blocks[12:18])
    sink = deployment.start_sink(fault)
    ending = asyncio.create_task(sink.ended())
    rest = [*blocks[6:12], *blocks[18:]]
    for one in rest:
        await deployment.publish([one])
    assert await ending == SIGKILLED
    await deployment.forget_dead_members()
    sink = deployment.start_sink()
    await deployment.wait_until_held(blocks)
    assert await sink.stopped() == 0
    deployment.assert_exact(blocks)
    deployment.assert_manifests_join(blocks)


async def test_rows_above_the_last_manifest_are_not_inserted_again(deployment: Deployment) -> None:
    blocks = chain(3, 6, 0, deployment.topics.events)
    first = deployment.start_sink()
    await deployment.publish(blocks[:2])
    await deployment.wait_until_held(blocks[:2])
    assert await first.stopped() == 0
    await deployment.publish(blocks[2:])
    assert await deployment.start_sink("sink-before-manifest:1").ended() == SIGKILLED
    await deployment.forget_dead_members()
    deployment.start_sink()
    await deployment.wait_until_held(blocks)
    deployment.assert_exact(blocks)
    rows = deployment.client.query("SELECT count() FROM ledger_entries").first_row[0]
    assert rows == sum(len(b.rows) for b in blocks)


async def test_two_sinks_killed_at_random(deployment: Deployment) -> None:
    rng = random.Random(4)
    blocks = both(4, 60, deployment.topics.events)
    order = [b for pair in zip(blocks[:60], blocks[60:], strict=True) for b in pair]
    sinks = [deployment.start_sink(), deployment.start_sink()]
    publishing = asyncio.create_task(deployment.publish(order))
    for _ in range(3):
        await asyncio.sleep(rng.uniform(1, 3))
        await sinks.pop(rng.randrange(2)).killed()
        sinks.append(deployment.start_sink())
    await publishing
    await deployment.wait_until_held(blocks)
    deployment.assert_exact(blocks)


async def test_an_aborted_transaction_is_not_seen(deployment: Deployment) -> None:
    blocks = chain(5, 6, 0, deployment.topics.events)
    wrong = chain(6, 3, 0, deployment.topics.events)
    sink = deployment.start_sink()
    await deployment.publish(blocks[:3])
    await deployment.publish(wrong, commit=False)
    await deployment.publish(blocks[3:])
    await deployment.wait_until_held(blocks)
    assert await sink.stopped() == 0
    deployment.assert_exact(blocks)


async def test_a_failed_insert_is_not_resent_but_read_again(deployment: Deployment) -> None:
    blocks = chain(7, 8, 0, deployment.topics.events)
    sink = deployment.start_sink()
    await deployment.publish(blocks[:4])
    await deployment.wait_until_held(blocks[:4])
    deployment.client.command("RENAME TABLE sink_manifests TO away")
    await deployment.publish(blocks[4:6])
    await sink.wait_for(lambda: "reading the positions again" in sink.printed)
    deployment.client.command("RENAME TABLE away TO sink_manifests")
    await deployment.publish(blocks[6:])
    await deployment.wait_until_held(blocks)
    assert await sink.stopped() == 0
    deployment.assert_exact(blocks)
    deployment.assert_manifests_join(blocks)


async def test_a_ledger_that_dies_and_comes_back_is_gone_on_with(
    kafka: str, topic_prefix: str, tmp_path: Path
) -> None:
    # On any free port, so that it comes back at another address; the data folder says which.
    ledger = LedgerProcess(tmp_path / "ledger")
    with contextlib.ExitStack() as ends:
        ends.callback(ledger.kill)
        # On the main thread: the ledger ends with the thread that started it.
        address = parse_address(ledger.start().url_with_login)
        migrate_address(address)
        client = connect(address)
        ends.callback(client.close)
        deployment = Deployment(kafka, topic_prefix, address, client, tmp_path)
        ends.callback(deployment.end_all)
        await deployment.prepare()
        blocks = both(11, 40, deployment.topics.events)
        found = {"TALLYPORT_CLICKHOUSE_URL": "", "TALLYPORT_DATA_DIR": str(ledger.folder)}
        sink = deployment.start_sink(**found)
        await sink.wait_ready()
        publishing = asyncio.create_task(deployment.publish(blocks))
        await sink.wait_for(lambda: sum(deployment.held().values()) > 0)
        ledger.kill()
        await publishing
        await sink.wait_for(lambda: "reading the positions again" in sink.printed)
        deployment.client = connect(parse_address(ledger.start().url_with_login))
        ends.callback(deployment.client.close)
        await deployment.wait_until_held(blocks)
        assert await sink.stopped() == 0
        deployment.assert_exact(blocks)
        deployment.assert_manifests_join(blocks)


async def test_a_missing_block_stops_the_sink(deployment: Deployment) -> None:
    blocks = chain(8, 6, 0, deployment.topics.events)
    await deployment.publish([*blocks[:3], *blocks[4:]])
    sink = deployment.start_sink()
    assert await sink.ended() == 1
    error = sink.printed.strip().splitlines()[-1]
    for named in (
        f"{deployment.topics.priced} partition 0",
        f"offset {blocks[4].first_offset}",
        f"offset {blocks[2].next_offset}",
    ):
        assert named in error
    deployment.client.query("SELECT 1")
    assert deployment.held() in ({}, {0: blocks[2].next_offset})


async def test_deleted_blocks_stop_the_sink(deployment: Deployment) -> None:
    blocks = chain(9, 8, 0, deployment.topics.events)
    await deployment.publish(blocks[:2])
    sink = deployment.start_sink()
    await deployment.wait_until_held(blocks[:2])
    assert await sink.stopped() == 0
    await deployment.publish(blocks[2:])
    admin = AIOKafkaAdminClient(bootstrap_servers=deployment.kafka)
    await admin.start()
    try:
        tp = TopicPartition(deployment.topics.priced, 0)
        await admin.delete_records({tp: RecordsToDelete(before_offset=10)})
    finally:
        await admin.close()
    sink = deployment.start_sink()
    assert await sink.ended() == 1
    assert "now starts at offset 10" in sink.printed
    deployment.assert_exact(blocks[:2])


async def test_blocks_of_another_log_are_refused(deployment: Deployment) -> None:
    await deployment.publish([block([], 0, 5, epoch=2, topic=deployment.topics.events)])
    sink = deployment.start_sink()
    assert await sink.ended() == 1
    assert "log epoch 2" in sink.printed


async def test_a_ledger_of_another_kafka_is_refused(deployment: Deployment) -> None:
    deployment.client.command("INSERT INTO log_epochs VALUES (1, 'another', now64(3), '', map())")
    sink = deployment.start_sink()
    assert await sink.ended() == 1
    assert "is not the one the ledger was written from" in sink.printed


async def test_a_ledger_without_its_tables_is_refused(deployment: Deployment) -> None:
    deployment.client.command("TRUNCATE TABLE schema_migrations")
    sink = deployment.start_sink()
    assert await sink.ended() == 1
    assert "tallyport migrate" in sink.printed


async def test_something_that_is_no_block_stops_the_sink(deployment: Deployment) -> None:
    good = chain(10, 1, 0, deployment.topics.events)[0]
    bad = block([], good.next_offset, good.next_offset + 1, topic=deployment.topics.events)
    bad.version = 99
    await deployment.publish([good, bad])
    sink = deployment.start_sink()
    assert await sink.ended() == 1
    assert "version 99" in sink.printed

"""The sink beside a ledger that is paused, full, or loses its answers, and with a wrong clock."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiokafka.admin import AIOKafkaAdminClient

from pipeline.ledger.client import connect, parse_address
from pipeline.ledger.migrate import migrate_address
from pipeline.ops.loopback_ports import free_port
from pipeline.stream.topics import create_or_check_topics
from tests.ledger.priced_blocks import block, chain
from tests.ledger.sink_deployment import PARTITIONS, Deployment
from tests.ledger_fixture import LedgerAddress, LedgerProcess
from tests.processes import PartProcess
from tests.tcp_proxy import TcpProxy

NOTICED_WITHIN_S = 60.0
ENDED_WITHIN_S = 40.0
"""A read that waits for its answer would take a minute."""
CLOCK = Path(__file__).parent.parent / "clock_shift"
DAY_S = 86_400


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LedgerProcess]:
    """A ledger of its own: what happens to it must not happen to other tests'."""
    server = LedgerProcess(tmp_path_factory.mktemp("ledger"))
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture
async def proxy(server: LedgerProcess) -> AsyncIterator[TcpProxy]:
    assert server.address is not None
    async with TcpProxy(server.address.port) as proxy:
        yield proxy


@pytest.fixture
async def deployment(
    kafka: str, topic_prefix: str, server: LedgerProcess, tmp_path: Path
) -> AsyncIterator[Deployment]:
    running: LedgerAddress | None = server.address
    assert running is not None
    address = replace(parse_address(running.url_with_login), database=topic_prefix.rstrip("."))
    migrate_address(address)
    with contextlib.ExitStack() as ends:
        client = connect(address)
        ends.callback(client.close)
        deployment = Deployment(kafka, topic_prefix, address, client, tmp_path)
        ends.callback(deployment.end_all)
        await deployment.prepare()
        yield deployment


def through(deployment: Deployment, proxy: TcpProxy) -> dict[str, str]:
    a = deployment.address
    return {
        "TALLYPORT_CLICKHOUSE_URL": f"http://{a.user}:{a.password}@127.0.0.1:{proxy.port}/{a.database}"
    }


async def health(port: int, path: str) -> tuple[int, str]:
    async with httpx.AsyncClient(timeout=60) as client:
        answer = await client.get(f"http://127.0.0.1:{port}{path}")
        return answer.status_code, answer.text


async def noticed(port: int, *words: str) -> None:
    """Waits until the part says that it is not ready, with these words and a metric."""
    async with asyncio.timeout(NOTICED_WITHIN_S):
        while True:
            status, text = await health(port, "/health/ready")
            if status == 503:
                break
            await asyncio.sleep(0.1)
    assert all(word in text for word in words), text
    _, shown = await health(port, "/metrics")
    values = [line for line in shown.splitlines() if line.startswith("tallyport_stalled_seconds{")]
    assert any(float(line.split()[-1]) >= 8 for line in values), values


async def test_an_answer_that_is_lost_after_the_insert_was_executed(
    deployment: Deployment, proxy: TcpProxy
) -> None:
    blocks = chain(21, 12, 0, deployment.topics.events)
    sink = deployment.start_sink(**through(deployment, proxy))
    await deployment.publish(blocks[:4])
    await deployment.wait_until_held(blocks[:4])
    first = rows_held(deployment)
    # What the sink asks before it inserts is answered.
    proxy.swallow_from = b"INSERT+INTO+%60ledger_entries%60"
    await deployment.publish(blocks[4:8])
    await sink.wait_for(lambda: proxy.swallowed_bytes > 0 and rows_held(deployment) > first)
    proxy.swallow_from = b""
    proxy.cut()
    proxy.swallowing = False
    await deployment.publish(blocks[8:])
    await deployment.wait_until_held(blocks)
    assert await sink.stopped() == 0
    deployment.assert_exact(blocks)
    deployment.assert_manifests_join(blocks)


def rows_held(deployment: Deployment) -> int:
    return deployment.client.query("SELECT count() FROM ledger_entries").first_row[0]


async def test_a_ledger_that_stands_still_is_noticed(
    deployment: Deployment, proxy: TcpProxy
) -> None:
    port = free_port()
    blocks = chain(22, 8, 0, deployment.topics.events)
    sink = deployment.start_sink(TALLYPORT_HEALTH_PORT=str(port), **through(deployment, proxy))
    await deployment.publish(blocks[:4])
    await deployment.wait_until_held(blocks[:4])
    assert (await health(port, "/health/ready"))[0] == 200
    proxy.stall()
    await deployment.publish(blocks[4:])
    await noticed(port, "the sink has not moved for", "blocks")
    assert (await health(port, "/health/live"))[0] == 200
    proxy.resume()
    await deployment.wait_until_held(blocks)
    async with asyncio.timeout(NOTICED_WITHIN_S):
        while (await health(port, "/health/ready"))[0] != 200:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    assert await sink.stopped() == 0
    deployment.assert_exact(blocks)


async def test_a_sink_ends_though_the_ledger_stands_still(
    deployment: Deployment, proxy: TcpProxy
) -> None:
    blocks = chain(27, 8, 0, deployment.topics.events)
    sink = deployment.start_sink(**through(deployment, proxy))
    await deployment.publish(blocks[:4])
    await deployment.wait_until_held(blocks[:4])
    proxy.stall()
    await deployment.publish(blocks[4:])
    await sink.wait_for(lambda: proxy.held_bytes > 0)
    async with asyncio.timeout(ENDED_WITHIN_S):
        assert await sink.stopped() == 0
    proxy.cut()
    proxy.resume()
    await deployment.forget_dead_members()
    deployment.start_sink()
    await deployment.wait_until_held(blocks)
    deployment.assert_exact(blocks)


async def test_an_insert_that_hangs_is_noticed(deployment: Deployment) -> None:
    port = free_port()
    blocks = chain(23, 4, 0, deployment.topics.events)
    sink = deployment.start_sink("sink-before-insert:1:hang", TALLYPORT_HEALTH_PORT=str(port))
    await sink.wait_ready()
    await deployment.publish(blocks)
    await noticed(port, "it writes")
    await sink.killed()
    await deployment.forget_dead_members()
    deployment.start_sink()
    await deployment.wait_until_held(blocks)
    deployment.assert_exact(blocks)


NO_SPACE = (
    b"Code: 243. DB::Exception: Cannot reserve 1.00 MiB, not enough space. (NOT_ENOUGH_SPACE)"
)
FULL = (
    b"HTTP/1.1 500 Internal Server Error\r\nConnection: close\r\n"
    b"X-ClickHouse-Exception-Code: 243\r\nContent-Length: %d\r\n\r\n%s" % (len(NO_SPACE), NO_SPACE)
)


async def test_a_full_disk_is_waited_for(deployment: Deployment, proxy: TcpProxy) -> None:
    """What the sink sees of it: the server answers that there is no space."""
    blocks = chain(24, 12, 0, deployment.topics.events)
    sink = deployment.start_sink(**through(deployment, proxy))
    await deployment.publish(blocks[:4])
    await deployment.wait_until_held(blocks[:4])
    proxy.refusal = FULL
    await deployment.publish(blocks[4:8])
    await sink.wait_for(lambda: sink.printed.count("reading the positions again") >= 3)
    assert "not enough space" in sink.printed
    assert deployment.held() == {0: blocks[3].next_offset}
    proxy.refusal = b""
    await deployment.publish(blocks[8:])
    await deployment.wait_until_held(blocks)
    assert await sink.stopped() == 0
    deployment.assert_exact(blocks)
    deployment.assert_manifests_join(blocks)


async def test_a_clock_that_jumps_by_a_day_in_both_directions(
    deployment: Deployment, tmp_path: Path
) -> None:
    shift = tmp_path / "shift"
    shift.write_text("0")
    blocks = chain(25, 12, 0, deployment.topics.events)
    sink = deployment.start_sink(PYTHONPATH=str(CLOCK), CLOCK_SHIFT=str(shift))
    for first, shift_s in ((0, DAY_S), (4, -DAY_S), (8, 0)):
        await deployment.publish(blocks[first : first + 2])
        await deployment.wait_until_held(blocks[: first + 2])
        shift.write_text(str(shift_s))
        await deployment.publish(blocks[first + 2 : first + 4])
        await deployment.wait_until_held(blocks[: first + 4])
    assert await sink.stopped() == 0
    deployment.assert_exact(blocks)
    deployment.assert_manifests_join(blocks)


async def refusal(sink: PartProcess) -> str:
    assert await sink.ended() == 1, sink.printed
    assert "Traceback" not in sink.printed
    return sink.error


BROKEN: list[tuple[str, Any]] = [
    ("version", {"version": 99}),
    ("partition", {"partition": 1}),
    ("falling range", {"next_offset": 0}),
    ("more records than offsets", {"rejected": list(range(99))}),
    ("overlap", {"first_offset": 0, "next_offset": 99_999}),
    ("rows", {"rows": [("not", "a", "row")]}),
]


@pytest.mark.parametrize(("_name", "changes"), BROKEN, ids=[name for name, _ in BROKEN])
async def test_a_block_that_cannot_be_trusted_is_named(
    _name: str, changes: dict[str, Any], deployment: Deployment
) -> None:
    topics = deployment.topics
    good = chain(26, 1, 0, topics.events)[0]
    end = good.next_offset
    bad = block([], end, end + 3, topic=topics.events)
    for name, value in changes.items():
        setattr(bad, name, value)
    partition, bad.partition = bad.partition, 0
    await deployment.publish([good])
    # The record lies on partition 0, whatever it says of itself.
    bad.partition = partition
    await deployment.publish_at(0, [bad])
    line = await refusal(deployment.start_sink())
    assert f"{topics.priced} partition 0" in line or f"{topics.events} partition 0" in line, line
    assert f"offset {end}" in line or "offset 2" in line or "offsets" in line, line


async def test_a_recreated_topic_of_blocks_stops_the_sink(deployment: Deployment) -> None:
    topics, client = deployment.topics, {"bootstrap_servers": deployment.kafka}
    blocks = chain(27, 4, 0, topics.events)
    await deployment.publish(blocks)
    sink = deployment.start_sink()
    await deployment.wait_until_held(blocks)
    admin = AIOKafkaAdminClient(**client)
    await admin.start()
    try:
        await admin.delete_topics([topics.priced])
        async with asyncio.timeout(60):
            while topics.priced in await admin.list_topics():  # noqa: ASYNC110
                await asyncio.sleep(0.1)
    finally:
        await admin.close()
    await create_or_check_topics(client, topics, PARTITIONS)
    line = await refusal(sink)
    assert topics.priced in line
    line = await refusal(deployment.start_sink())
    assert topics.priced in line
    deployment.assert_exact(blocks)

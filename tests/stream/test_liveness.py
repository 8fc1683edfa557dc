"""A worker that stops advancing is noticed, by itself and by the API, and ends when it must."""

import asyncio
import contextlib
import json
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from aiokafka import AIOKafkaProducer

from pipeline.ops.loopback_ports import free_port
from pipeline.stream.rate_log import CONFIRM_MARGIN_S, SHORTEST_LEAD_S
from pipeline.stream.tables import read_tables
from pipeline.stream.transaction import TRANSACTION_TIMEOUT_MS
from tests.processes import PartProcess
from tests.proxied_kafka import ProxiedKafka
from tests.stream.worker_deployment import WorkerDeployment, event, home_of
from tests.tcp_proxy import TcpProxy

NOTICED_WITHIN_S = 60.0
ENDS_WITHIN_S = 120.0
TESTS = Path(__file__).parent.parent
OPEN_FOR_MS = 300_000
"""So long a transaction may stay open: longer than all that is waited for in it."""
DAY_S = 86_400
UNCONFIRMED_S = SHORTEST_LEAD_S + CONFIRM_MARGIN_S


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


async def health(url: str, path: str) -> tuple[int, str]:
    async with httpx.AsyncClient(timeout=60) as client:
        answer = await client.get(url + path)
        return answer.status_code, answer.text


async def becomes(url: str, path: str, status: int, said: str = "") -> str:
    """Waits until ``path`` answers ``status`` and says ``said``; returns the answer."""
    async with asyncio.timeout(NOTICED_WITHIN_S):
        while True:
            found, text = await health(url, path)
            if found == status and said in text:
                return text
            await asyncio.sleep(0.1)


async def is_well(url: str) -> None:
    """Waits until the API has nothing to say of the worker; no sink runs here, and it says so."""
    async with asyncio.timeout(NOTICED_WITHIN_S):
        while "worker has not" in (await health(url, "/health/pipeline"))[1]:  # noqa: ASYNC110
            await asyncio.sleep(0.1)


def watched(deployment: WorkerDeployment, fault: str = "", **more: str) -> tuple[PartProcess, str]:
    """A worker and where its health is."""
    port = free_port()
    worker = deployment.start_worker(fault, TALLYPORT_HEALTH_PORT=str(port), **more)
    return worker, f"http://127.0.0.1:{port}"


async def test_a_paused_worker_is_noticed_by_the_api(
    deployment: WorkerDeployment, tmp_path: Path
) -> None:
    port = free_port()
    environ = {
        "TALLYPORT_KAFKA_BOOTSTRAP": deployment.kafka,
        "TALLYPORT_CLICKHOUSE_URL": deployment.ledger_url,
        "TALLYPORT_TOPIC_PREFIX": deployment.prefix,
        "TALLYPORT_PARTITIONS": "2",
        "TALLYPORT_REPLICATION": "1",
        "TALLYPORT_DATA_DIR": str(tmp_path),
        "TALLYPORT_API_PORT": str(port),
    }
    worker = deployment.start_worker()
    await worker.wait_ready()
    api = PartProcess("api", tmp_path / "api.log", environ)
    try:
        await api.wait_ready()
        url = f"http://127.0.0.1:{port}"
        await deployment.publish([event(n) for n in range(30)])
        await deployment.settled()
        await is_well(url)
        worker.pause()
        await deployment.publish([event(n) for n in range(30, 60)])
        said = await becomes(url, "/health/pipeline", 503, "worker has not")
        assert deployment.topics.events in said
        assert (await health(url, "/health/live"))[0] == 200
        await worker.killed()
        await deployment.forget_dead_members()
        await deployment.start_worker().wait_ready()
        await is_well(url)
        await deployment.settled()
        await deployment.assert_exact()
        assert "tallyport_events_accepted" not in (await health(url, "/metrics"))[1]
    finally:
        api.kill()


async def test_a_blocked_event_loop_is_noticed(deployment: WorkerDeployment) -> None:
    worker, url = watched(deployment, "price-taken:1:hang")
    await worker.wait_ready()
    assert (await health(url, "/health/live"))[0] == 200
    await deployment.publish([event(n) for n in range(30)])
    await becomes(url, "/health/live", 503, "its event loop does not answer")
    await worker.killed()
    await deployment.forget_dead_members()
    await deployment.start_worker().wait_ready()
    await deployment.settled()
    await deployment.assert_exact()


@pytest.mark.parametrize("mode", ["task", "thread"])
async def test_fetching_that_died_ends_the_worker(
    mode: str, deployment: WorkerDeployment, tmp_path: Path
) -> None:
    fault = tmp_path / "fault"
    paths = {"PYTHONPATH": str(TESTS / "fetch_fault"), "FETCH_FAULT": str(fault)}
    worker, _ = watched(deployment, **paths)
    await worker.wait_ready()
    await deployment.publish([event(n) for n in range(30)])
    await deployment.settled()
    fault.write_text(mode)
    await deployment.publish([event(n) for n in range(30, 60)])
    async with asyncio.timeout(ENDS_WITHIN_S):
        assert await worker.ended() == 1, worker.printed
    assert ("its fetching has ended" if mode == "task" else "cannot go on") in worker.error
    await deployment.forget_dead_members()
    await deployment.start_worker().wait_ready()
    await deployment.settled()
    await deployment.assert_exact()


@pytest.mark.usefixtures("one_day")
async def test_a_clock_that_jumps_by_a_day_in_both_directions(
    deployment: WorkerDeployment, tmp_path: Path
) -> None:
    shift = tmp_path / "shift"
    shift.write_text("0")
    policy = {"scope": "all", "unit": "tokens", "period": "day", "hard_cap": 1}
    await deployment.set_policy(**policy)
    paths = {"PYTHONPATH": str(TESTS / "clock_shift"), "CLOCK_SHIFT": str(shift)}
    worker, url = watched(deployment, **paths)
    await worker.wait_ready()
    for turn, shift_s in enumerate((0, DAY_S, -DAY_S, 0)):
        shift.write_text(str(shift_s))
        await deployment.publish([event(100 * turn + n) for n in range(30)])
        await deployment.settled()
        state = await deployment.state_is("all|tokens|day", status="hard-cap-exceeded")
        assert state["used"] > 0
    fates = await deployment.assert_exact()
    assert set(fates) == {"row"}
    await becomes(url, "/health/ready", 200)
    states = [
        record
        for record in await deployment.read(deployment.topics.state)
        if record.key == b"all|tokens|day" and b'"hard-cap-exceeded"' not in (record.value or b"")
    ]
    # Only before the first event was counted was there anything left.
    assert all(b'"used":0,' in (record.value or b"") for record in states)
    assert await worker.stopped() == 0


async def test_a_producers_open_transaction_is_named_and_waited_for(
    deployment: WorkerDeployment,
) -> None:
    worker, url = watched(deployment)
    await worker.wait_ready()
    await deployment.publish([event(n) for n in range(30)])
    await deployment.settled()
    held = event(30)
    partition = home_of(held["port_id"])
    producer = AIOKafkaProducer(
        **deployment.client,
        transactional_id=f"{deployment.prefix}client",
        transaction_timeout_ms=OPEN_FOR_MS,
    )
    async with producer:
        async with producer.transaction():
            await producer.send_and_wait(
                deployment.topics.events,
                json.dumps(held).encode(),
                held["port_id"].encode(),
                partition=partition,
            )
            behind = [event(n) for n in range(31, 60)]
            await deployment.publish(behind)
            await becomes(url, "/health/ready", 503, "a producer's open transaction")
            assert (await health(url, "/health/live"))[0] == 200
            beats = await deployment.heartbeats()
            later = await deployment.heartbeats()
        # What stands behind it is acknowledged and not counted: no state may look as if it was.
        assert {beat["as_of"] for beat in beats} == {beat["as_of"] for beat in later}
    deployment.sent.append(held)
    await becomes(url, "/health/ready", 200)
    await deployment.settled()
    await deployment.assert_exact()
    assert worker.exit_status() is None


async def test_a_worker_outlasts_rates_whose_end_nobody_confirms(
    deployment: WorkerDeployment, tmp_path: Path
) -> None:
    """For longer than a transaction of its may last; nothing is priced meanwhile."""
    fault = tmp_path / "fault"
    paths = {"PYTHONPATH": str(TESTS / "rates_fault"), "RATES_FAULT": str(fault)}
    worker, url = watched(deployment, TALLYPORT_PRICE_LEAD_S="0", **paths)
    await worker.wait_ready()
    await deployment.publish([event(n) for n in range(30)])
    await deployment.settled()
    fault.touch()
    await asyncio.sleep(UNCONFIRMED_S)
    await deployment.publish([event(n) for n in range(30, 60)])
    await becomes(url, "/health/ready", 503, "reading rates")
    assert (await health(url, "/health/live"))[0] == 200
    await asyncio.sleep(TRANSACTION_TIMEOUT_MS / 1000)
    assert (await health(url, "/health/live"))[0] == 200
    counted = await read_tables(deployment.client, deployment.topics, [0, 1])
    assert sum(view.position.accepted for view in counted.values()) == 30
    fault.unlink()
    await deployment.settled()
    await deployment.assert_exact()
    assert worker.exit_status() is None


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxiedKafka]:
    server = ProxiedKafka(tmp_path_factory.mktemp("proxied"))
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture
async def proxy(broker: ProxiedKafka) -> AsyncIterator[TcpProxy]:
    async with TcpProxy(broker.hidden_port, broker.proxy_port) as proxy:
        yield proxy


@pytest.fixture
async def behind(
    broker: ProxiedKafka, proxy: TcpProxy, empty_ledger_url: str, tmp_path: Path
) -> AsyncIterator[WorkerDeployment]:
    """A deployment whose workers, and only they, reach the broker through the proxy."""
    prefix = f"t{uuid.uuid4().hex[:10]}."
    deployment = WorkerDeployment(broker.bootstrap, prefix, empty_ledger_url, tmp_path)
    await deployment.prepare()
    try:
        yield deployment
    finally:
        deployment.end_all()


def through(proxy: TcpProxy) -> dict[str, str]:
    return {"TALLYPORT_KAFKA_BOOTSTRAP": f"127.0.0.1:{proxy.port}"}


async def goes_on(deployment: WorkerDeployment, worker: PartProcess, proxy: TcpProxy) -> None:
    """It recovers by itself, or it has ended with an error and another one takes over."""
    if worker.exit_status() is None:
        try:
            await asyncio.wait_for(deployment.settled(), ENDS_WITHIN_S / 2)
        except (TimeoutError, AssertionError):
            assert await worker.ended() == 1, worker.printed
    if worker.exit_status() is not None:
        assert worker.exit_status() == 1
        assert worker.error, worker.printed
        await deployment.forget_dead_members()
        await deployment.start_worker(**through(proxy)).wait_ready()
        await deployment.settled()
    await deployment.assert_exact()


async def test_a_broker_that_answers_late(behind: WorkerDeployment, proxy: TcpProxy) -> None:
    worker = behind.start_worker(**through(proxy))
    await worker.wait_ready()
    for turn in range(3):
        await behind.publish([event(100 * turn + n) for n in range(50)])
        proxy.stall()
        await asyncio.sleep(1.5)
        proxy.resume()
    await goes_on(behind, worker, proxy)


async def test_connections_that_are_cut(behind: WorkerDeployment, proxy: TcpProxy) -> None:
    worker = behind.start_worker(**through(proxy))
    await worker.wait_ready()
    for turn in range(4):
        await behind.publish([event(100 * turn + n) for n in range(50)])
        proxy.cut()
        await asyncio.sleep(0.7)
    await goes_on(behind, worker, proxy)


async def test_a_broker_that_stands_still_is_noticed_and_ends_the_worker(
    behind: WorkerDeployment, proxy: TcpProxy
) -> None:
    worker, url = watched(behind, **through(proxy))
    await worker.wait_ready()
    await behind.publish([event(n) for n in range(50)])
    await behind.settled()
    proxy.stall()
    await behind.publish([event(100 + n) for n in range(50)])
    with contextlib.suppress(httpx.HTTPError):  # it has ended already: that is noticing, too
        await becomes(url, "/health/ready", 503)
    async with asyncio.timeout(ENDS_WITHIN_S):
        assert await worker.ended() == 1, worker.printed
    assert worker.error, worker.printed
    proxy.resume()
    proxy.cut()
    await goes_on(behind, worker, proxy)

"""The ledger's disk is full: nothing is half done, it is said, and all arrives in the end."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from pipeline.audit.run import run_audit
from pipeline.ops.loopback_ports import free_port
from tests.e2e.metering import Metering
from tests.ledger_fixture import LedgerProcess
from tests.processes import PartProcess
from tests.small_disk import Ballast, FileSizeLimit, SmallDisk, small_file_system
from tests.stream.conftest import migrated_database
from tests.stream.worker_deployment import RATE, event

NOTICED_WITHIN_S = 60.0
TRIES = 4
NO_SPACE = ("No space left", "not enough space", "File too large")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path | None]:
    mount_point = tmp_path / "disk"
    mount_point.mkdir()
    with small_file_system(mount_point) as folder:
        yield folder


@pytest.fixture(params=["small disk", "limit"])
def disk(request: pytest.FixtureRequest, folder: Path | None) -> SmallDisk:
    """Where there is no way to a small disk both are the limit: something is tested everywhere."""
    if request.param == "limit" or folder is None:
        return FileSizeLimit()
    return Ballast(folder)


@pytest.fixture
def server(folder: Path | None, tmp_path: Path) -> Iterator[LedgerProcess]:
    server = LedgerProcess(folder or tmp_path / "ledger")
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture
async def metering(kafka: str, server: LedgerProcess, tmp_path: Path) -> AsyncIterator[Metering]:
    assert server.address is not None
    for address in migrated_database(server.address):
        metering = Metering(kafka, address, tmp_path)
        await metering.prepare()
        await metering.set_rate(**RATE)
        await metering.set_policy(scope="port:*", unit="cost", period="month", hard_cap="1000")
        try:
            yield metering
        finally:
            metering.end_all()


def start_sink(metering: Metering, port: int) -> PartProcess:
    environ = {**metering.settings.environ(), "TALLYPORT_HEALTH_PORT": str(port)}
    sink = PartProcess("sink", metering.folder / "sink.log", environ)
    metering.parts.append(sink)
    return sink


async def until_health(port: int, status: int, reasons: tuple[str, ...] = ("",)) -> None:
    """Waits until health answers ``status`` and says one of the reasons."""
    async with asyncio.timeout(NOTICED_WITHIN_S), httpx.AsyncClient(timeout=60) as client:
        while True:
            answer = await client.get(f"http://127.0.0.1:{port}/health/ready")
            if answer.status_code == status and any(one in answer.text for one in reasons):
                return
            await asyncio.sleep(0.1)


async def test_a_full_disk_is_waited_for(
    metering: Metering, server: LedgerProcess, disk: SmallDisk
) -> None:
    port = free_port()
    worker, sink = metering.launch("worker"), start_sink(metering, port)
    await worker.wait_ready()
    await sink.wait_ready()
    await metering.publish([event(n) for n in range(300)])
    await metering.held()
    before = metering.query("SELECT count(), sum(cost_nano) FROM usage_ledger")
    # Rows show before their manifest, which would not fit any more.
    await metering.until_query("SELECT sum(rows) FROM sink_manifests", [before[0][:1]])

    assert server.process is not None
    disk.fill(server.process.pid)
    await metering.publish([event(n) for n in range(300, 900)])
    await metering.publish([event(n) for n in range(0, 900, 7)], counted=False)
    await sink.wait_for(lambda: sink.printed.count("reading the positions again") >= TRIES)
    assert any(reason in sink.printed for reason in NO_SPACE), sink.printed
    await until_health(port, 503, NO_SPACE)
    await metering.counted()
    # Readers are served from what there was.
    assert metering.query("SELECT count(), sum(cost_nano) FROM usage_ledger") == before
    assert metering.query("SELECT sum(requests), sum(cost_nano) FROM usage_daily") == before
    assert metering.query("SELECT sum(rows) FROM sink_manifests") == [before[0][:1]]

    disk.free()
    await metering.held()
    await until_health(port, 200)
    assert sink.exit_status() is None
    assert await metering.cells() == metering.expected_cells()
    report = await run_audit(metering.settings, wait_s=60)
    assert report.ok, report.to_json()
    assert report.compared["ledger rows"] == 900
    await metering.stop()

"""The server as a process: one per folder, its port, its files, its end, and a kill."""

import signal
import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.endpoints import endpoints_file, read_endpoints
from tests.ledger.http_requests import ask
from tests.ledger_fixture import LedgerAddress, LedgerProcess

REFUSAL_TIMEOUT_S = 120.0
BATCH_ROWS = 500
KILLS = 3


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LedgerProcess]:
    process = LedgerProcess(tmp_path)
    try:
        yield process
    finally:
        process.kill()


def refusal(process: LedgerProcess) -> tuple[int, str]:
    """The exit status and error output of a server that does not come up."""
    try:
        out, err = process.spawn().communicate(timeout=REFUSAL_TIMEOUT_S)
        assert process.process is not None
        assert out == ""
        return process.process.returncode, err.strip()
    finally:
        process.kill()


def test_a_second_process_is_refused(server: LedgerProcess) -> None:
    address = server.start()
    assert server.process is not None
    status, message = refusal(LedgerProcess(server.folder))
    assert status == 1
    assert str(server.folder / "ledger") in message
    assert str(server.process.pid) in message
    assert len(message.splitlines()) == 1
    assert ask(address, "SELECT 1").text == "1\n"


def test_a_port_in_use_is_named(server: LedgerProcess) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        server.port = other.getsockname()[1]
        status, message = refusal(server)
    assert status == 2
    assert str(server.port) in message
    assert "TALLYPORT_LEDGER_PORT" in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_announces_itself_and_ends_cleanly(
    server: LedgerProcess, number: signal.Signals
) -> None:
    address = server.start()
    found = read_endpoints(server.folder)
    assert (found.clickhouse_url, found.sink_password) == (address.url, address.password)
    assert stat.S_IMODE(endpoints_file(server.folder).stat().st_mode) == 0o600
    password_file = server.folder / "ledger" / "sink-password"
    assert stat.S_IMODE(password_file.stat().st_mode) == 0o600
    assert server.process is not None
    server.process.send_signal(number)
    out, err = server.process.communicate(timeout=60)
    assert (server.process.returncode, out, err) == (0, "", "")
    assert read_endpoints(server.folder).clickhouse_url is None


def test_it_listens_on_this_machine_only(server: LedgerProcess) -> None:
    address = server.start()
    assert address.host == "127.0.0.1"
    with socket.socket() as probe, pytest.raises(OSError, match="refused"):
        probe.connect(("127.0.0.2", address.port))


def test_a_running_statement_does_not_hold_up_the_end(server: LedgerProcess) -> None:
    address = server.start()
    statement = "SELECT sum(sleepEachRow(0.5)) FROM numbers(200) SETTINGS max_block_size = 1"

    def run() -> None:
        try:
            ask(address, statement, wait_end_of_query="1")
        except Exception as error:
            ended.append(error)

    ended: list[Exception] = []
    asking = threading.Thread(target=run)
    asking.start()
    try:
        wait_until_busy(address)
        assert server.process is not None
        server.process.terminate()
        assert server.process.wait(30) == 0
    finally:
        server.kill()
        asking.join(60)
    assert not asking.is_alive()


def wait_until_busy(address: LedgerAddress) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        running = ask(address, "SELECT count() FROM system.processes", write=True).text
        if int(running) > 1:
            return
        time.sleep(0.05)
    raise TimeoutError("the statement did not start")


def test_what_was_acknowledged_survives_kills(server: LedgerProcess) -> None:
    """Batches are whole or absent, acknowledged ones are there, through several SIGKILLs."""
    acknowledged: list[int] = []
    create = (
        "CREATE TABLE k (batch UInt32, n UInt32) ENGINE = MergeTree ORDER BY (batch, n) "
        "SETTINGS fsync_after_insert = 1"
    )
    for kill in range(KILLS):
        address = server.start()
        if kill == 0:
            assert ask(address, create, write=True).status == 200
        writing = threading.Thread(target=write_batches, args=(address, kill, acknowledged))
        writing.start()
        try:
            wanted = len(acknowledged) + 4 + 3 * kill
            deadline = time.monotonic() + 60
            while len(acknowledged) < wanted and time.monotonic() < deadline:
                time.sleep(0.002)
        finally:
            server.kill()
            writing.join(60)
        assert not writing.is_alive()
        assert len(acknowledged) >= wanted
    rows = ask(server.start(), "SELECT batch, count(), sum(n) FROM k GROUP BY batch").text
    found = {int(row.split("\t")[0]): row.split("\t")[1:] for row in rows.splitlines()}
    whole = [str(BATCH_ROWS), str(sum(range(BATCH_ROWS)))]
    assert {batch for batch in acknowledged if found.get(batch) != whole} == set()
    assert [batch for batch, sums in found.items() if sums != whole] == []


def write_batches(address: LedgerAddress, kill: int, acknowledged: list[int]) -> None:
    for number in range(10_000):
        batch = kill * 10_000 + number
        rows = "\n".join(f"{batch},{n}" for n in range(BATCH_ROWS))
        try:
            answer = ask(address, f"INSERT INTO k FORMAT CSV\n{rows}", write=True)
        except Exception:
            return
        if answer.status != 200:
            return
        acknowledged.append(batch)


def test_the_password_outlives_a_restart(server: LedgerProcess) -> None:
    first = server.start().password
    assert server.stop() == 0
    assert server.start().password == first

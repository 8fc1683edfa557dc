"""Every failure is a status and one readable line."""

import asyncio
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from pipeline.cli.context import run_async
from pipeline.core.errors import TallyportError
from tests.cli.conftest import Command, Ended, environment
from tests.ledger_fixture import LedgerAddress

NOWHERE = "127.0.0.1:1"


def assert_one_line(ended: Ended, status: int, *words: str) -> None:
    assert ended.status == status, ended
    lines = ended.err.splitlines()
    assert len(lines) == 1, ended.err
    assert lines[0].startswith("tallyport: ")
    for word in words:
        assert word in lines[0]


def test_help_and_version_are_no_errors(tallyport: Command) -> None:
    assert tallyport("--help").status == 0
    assert tallyport("--version").out.startswith("tallyport ")


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("nope",),
        ("budgets",),
        ("budgets", "set", "port:a"),
        ("budgets", "set", "port:a", "--unit", "euros", "--period", "day"),
        ("usage", "--from", "yesterday"),
        ("usage", "--csv", "--json"),
        ("usage", "--by", "colour"),
        ("emit", "no-such-file.ndjson"),
        ("audit", "--wait", "soon"),
    ],
)
def test_wrong_usage_is_status_2(tallyport: Command, arguments: tuple[str, ...]) -> None:
    assert_one_line(tallyport(*arguments), 2)


def test_a_wrong_option_refers_to_the_help_of_its_command(tallyport: Command) -> None:
    budget = ("port:a", "--unit", "tokens", "--period", "day")
    ended = tallyport("budgets", "set", *budget, "--extra", "10")
    assert_one_line(ended, 2, "--extra", "(see tallyport budgets set --help)")
    assert_one_line(tallyport("--nope"), 2, "(see tallyport --help)")


def test_all_wrong_settings_are_listed(tallyport: Command) -> None:
    ended = tallyport("budgets", "list", API_PORT="x", KAFKA_BOOTSRAP="a:1", CURRENCY="euro")
    assert ended.status == 2
    assert len(ended.err.splitlines()) == 3
    assert "did you mean TALLYPORT_KAFKA_BOOTSTRAP?" in ended.err


@pytest.mark.parametrize(
    "arguments", [("budgets", "list"), ("watch",), ("emit",), ("prices", "list"), ("audit",)]
)
def test_no_kafka_anywhere_says_what_to_set(tallyport: Command, arguments: tuple[str, ...]) -> None:
    assert_one_line(tallyport(*arguments), 2, "TALLYPORT_KAFKA_BOOTSTRAP", "tallyport up")


@pytest.mark.parametrize(
    "arguments",
    [
        ("topics",),
        ("watch", "--once"),
        ("emit",),
        ("prices", "list"),
        ("audit",),
        ("forget", "user:u1"),  # without a terminal nothing is asked first
    ],
)
def test_a_kafka_that_does_not_answer(tallyport: Command, arguments: tuple[str, ...]) -> None:
    assert_one_line(tallyport(*arguments, KAFKA_BOOTSTRAP=NOWHERE), 1, NOWHERE)


@pytest.mark.parametrize("arguments", [("usage",), ("migrate",), ("migrate", "--check")])
def test_a_clickhouse_that_does_not_answer(tallyport: Command, arguments: tuple[str, ...]) -> None:
    ended = tallyport(*arguments, CLICKHOUSE_URL=f"http://{NOWHERE}")
    assert_one_line(ended, 1, f"http://{NOWHERE}")


def test_a_wrong_clickhouse_password(tallyport: Command, ledger_server: LedgerAddress) -> None:
    url = f"http://{ledger_server.user}:wrong@{ledger_server.host}:{ledger_server.port}/tallyport"
    ended = tallyport("usage", CLICKHOUSE_URL=url)
    assert_one_line(ended, 1, "password")
    assert "wrong@" not in ended.err


def test_debug_shows_the_traceback(tallyport: Command) -> None:
    ended = tallyport("usage", "--debug", CLICKHOUSE_URL=f"http://{NOWHERE}")
    assert ended.status == 1
    assert "Traceback" in ended.err


def test_check_lists_settings_and_servers_at_once(tallyport: Command) -> None:
    ended = tallyport(
        "check", API_PORT="x", KAFKA_BOOTSTRAP=NOWHERE, CLICKHOUSE_URL=f"http://{NOWHERE}"
    )
    assert ended.status == 2
    assert "TALLYPORT_API_PORT" in ended.out
    assert f"kafka {NOWHERE}: " in ended.out
    assert f"clickhouse {NOWHERE}: " in ended.out


def test_check_of_nothing_is_fine(tallyport: Command) -> None:
    assert tallyport("check").status == 0


def test_check_finds_a_server_that_is_away(tallyport: Command) -> None:
    assert tallyport("check", WEBHOOK_URL=f"http://{NOWHERE}/hook").status == 1


def test_a_missing_extra_is_named(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['click'] = None\n"
        "from pipeline.__main__ import main; main(['check'])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 2
    assert "tallyport[all]" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield taken.getsockname()[1]


def test_a_port_in_use_is_named(tallyport: Command, taken_port: int) -> None:
    ended = tallyport("api", KAFKA_BOOTSTRAP=NOWHERE, API_PORT=str(taken_port))
    assert_one_line(ended, 2, "TALLYPORT_API_PORT", str(taken_port), "in use")


def test_an_api_without_keys_stays_on_loopback(tallyport: Command) -> None:
    ended = tallyport("api", KAFKA_BOOTSTRAP=NOWHERE, API_HOST="0.0.0.0", API_PORT="0")
    assert_one_line(ended, 2, "TALLYPORT_API_HOST", "TALLYPORT_API_KEYS_FILE")


@pytest.fixture
def api(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "api"],
        cwd=tmp_path,
        env=environment(KAFKA_BOOTSTRAP=NOWHERE, API_PORT="0"),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout
        line = process.stdout.readline()
        assert line.startswith("ready api=http://127.0.0.1:")
        yield process, line.strip().removeprefix("ready api=")
    finally:
        process.kill()
        process.wait(30)
        if process.stdout:
            process.stdout.close()


def test_the_api_lives_without_kafka_and_says_so(
    api: tuple[subprocess.Popen[str], str],
) -> None:
    process, url = api
    with httpx.Client(base_url=url, timeout=60) as client:
        assert client.get("/health/live").status_code == 200
        ready = client.get("/health/ready")
        assert ready.status_code == 503
        assert "Kafka" in ready.json()["problems"][0]
        assert client.get("/health/pipeline").status_code == 503
        assert "tallyport_source_lag_records" in client.get("/metrics").text
        assert client.get("/health/live", headers={"Host": "evil.example"}).status_code == 403
        assert client.get("/health/live", headers={"Origin": "http://x"}).status_code == 403
        assert client.get("/health/live", headers={"Origin": url}).status_code == 200
        assert client.get("/nowhere").status_code == 404
        assert 'tallyport_http_requests_total{status="404"} 1.0' in client.get("/metrics").text
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0


def test_what_cannot_be_undone_is_not_done_by_mistake(tallyport: Command) -> None:
    for words, why in (
        (("forget", "port:p"), "only users are forgotten: user:ID, not 'port:p'"),
        (("forget", "user:*", "--yes"), "user:* is every user; name one"),
        (("export", "2026-13"), "MONTH: must be a month like 2026-08, not '2026-13'"),
        (("export",), "Missing argument 'MONTH...'"),
    ):
        done = tallyport(*words)
        assert (done.status, done.out) == (2, "")
        assert done.err.startswith("tallyport: ")
        assert why in done.err
        assert done.err.count("\n") == 1


def test_a_connection_that_its_own_client_gave_up_is_one_line() -> None:
    async def given_up() -> None:
        raise asyncio.CancelledError

    with pytest.raises(TallyportError, match="given up by its own client"):
        run_async(given_up())


GIVEN_UP_SINK = """
import asyncio, os, signal, sys
from aiokafka.errors import KafkaConnectionError
from pipeline.cli import running
from pipeline.core.errors import CorruptRecord
from pipeline.kafka import KafkaUnreachable
from pipeline.ledger import sink
from pipeline.settings import Settings

async def given_up(configured, stop, *_, **__):
    if sys.argv[1] == "told":
        os.kill(os.getpid(), signal.SIGTERM)
        await stop.wait()
    raise {
        "given up": asyncio.CancelledError(),
        "away": KafkaUnreachable("Kafka cannot be used"),
        "gone": KafkaConnectionError("gone"),
        "corrupt": CorruptRecord("usage.priced partition 0 offset 7"),
    }[sys.argv[2]]

sink.run_sink = given_up
sys.exit(running.run_async(running._run_sink(Settings())))
"""


@pytest.mark.parametrize("what", ["given up", "away", "gone", "corrupt"])
@pytest.mark.parametrize(("when", "status"), [("told", 0), ("by itself", 1)])
def test_a_sink_that_is_told_to_end_while_kafka_goes_away_has_ended(
    when: str, status: int, what: str
) -> None:
    """A damaged record is an error whenever it is found."""
    status = 1 if what == "corrupt" else status
    ended = subprocess.run(
        [sys.executable, "-c", GIVEN_UP_SINK, when, what],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == status, ended.stderr

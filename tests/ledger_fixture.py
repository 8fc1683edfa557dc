"""The ClickHouse that tests run against.

In this order: the address in ``TALLYPORT_TEST_CLICKHOUSE`` (``http://user:password@host:port``,
a user that may write), a container where a Docker engine answers, the embedded server. There is
no skip: when none of them comes up, the tests fail.
"""

import contextlib
import os
import selectors
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import clickhouse_connect
import pytest

from pipeline.ledger.server import SINK_USER
from pipeline.ops.tether import tethered

ADDRESS_VARIABLE = "TALLYPORT_TEST_CLICKHOUSE"
IMAGE = "clickhouse/clickhouse-server:25.8"
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 60.0
ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class LedgerAddress:
    """A running ClickHouse, and who may write there."""

    host: str
    port: int
    user: str
    password: str

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def url_with_login(self) -> str:
        """What ``TALLYPORT_CLICKHOUSE_URL`` takes."""
        return f"http://{self.user}:{self.password}@{self.host}:{self.port}/tallyport"

    def writer(self, **options: Any) -> Any:
        """A clickhouse-connect client that may write; the caller closes it."""
        return clickhouse_connect.get_client(
            host=self.host,
            port=self.port,
            username=self.user,
            password=self.password,
            autogenerate_session_id=False,
            **({"database": "tallyport"} | options),
        )

    def reader(self, **options: Any) -> Any:
        """A client of the user without a password; the caller closes it."""
        return clickhouse_connect.get_client(
            host=self.host,
            port=self.port,
            autogenerate_session_id=False,
            **({"database": "tallyport"} | options),
        )


class LedgerProcess:
    """``tallyport ledger-server`` as a process of its own, on a data folder and a free port."""

    def __init__(self, folder: Path, port: int = 0, **settings: str) -> None:
        self.folder = folder
        self.port = port
        self.settings = settings
        self.process: subprocess.Popen[str] | None = None
        self.address: LedgerAddress | None = None

    def spawn(self) -> subprocess.Popen[str]:
        """Start the process without waiting for it."""
        outside = {name: text for name, text in os.environ.items() if name[:10] != "TALLYPORT_"}
        self.process = subprocess.Popen(
            tethered([sys.executable, "-m", "pipeline", "ledger-server"]),
            cwd=ROOT,
            env=outside
            | {"TALLYPORT_DATA_DIR": str(self.folder), "TALLYPORT_LEDGER_PORT": str(self.port)}
            | self.settings,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        return self.process

    def start(self) -> LedgerAddress:
        """Start it and wait until it says that it takes work."""
        line = _first_line(self.spawn())
        assert line.startswith("ready clickhouse=http://127.0.0.1:"), line
        password = (self.folder / "ledger" / "sink-password").read_text().strip()
        self.address = LedgerAddress("127.0.0.1", int(line.rsplit(":", 1)[1]), SINK_USER, password)
        return self.address

    def stop(self) -> int:
        """SIGTERM; returns the exit status."""
        assert self.process is not None
        self.process.terminate()
        try:
            return self.process.wait(STOP_TIMEOUT_S)
        finally:
            self.kill()

    def kill(self) -> None:
        """SIGKILL, and no trace of the process afterwards."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(STOP_TIMEOUT_S)
            for pipe in (self.process.stdout, self.process.stderr):
                if pipe is not None:
                    pipe.close()
            self.process = None


def _first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    with selectors.DefaultSelector() as waiting:
        waiting.register(process.stdout, selectors.EVENT_READ)
        if not waiting.select(START_TIMEOUT_S):
            raise TimeoutError(f"no ready line within {START_TIMEOUT_S:.0f} s")
    line = process.stdout.readline().strip()
    if not line:
        assert process.stderr is not None
        raise RuntimeError(f"the ledger server ended: {process.stderr.read().strip()}")
    return line


@pytest.fixture(scope="session")
def embedded_ledger() -> Iterator[LedgerAddress]:
    """The embedded server, whatever else there is."""
    with tempfile.TemporaryDirectory(prefix="tallyport-ledger-") as folder:
        server = LedgerProcess(Path(folder))
        try:
            yield server.start()
        finally:
            server.kill()


@pytest.fixture(scope="session")
def ledger_server(request: pytest.FixtureRequest) -> Iterator[LedgerAddress]:
    """A real ClickHouse with a database ``tallyport`` and a user that may write."""
    given = os.environ.get(ADDRESS_VARIABLE)
    if given:
        parts = urlsplit(given)
        yield LedgerAddress(
            parts.hostname or "127.0.0.1",
            parts.port or 8123,
            unquote(parts.username or "default"),
            unquote(parts.password or ""),
        )
        return
    with contextlib.ExitStack() as stack:
        yield _container(stack) or request.getfixturevalue("embedded_ledger")


@pytest.fixture(scope="session")
def ledger_url(ledger_server: LedgerAddress) -> str:
    """``ledger_server`` in the form of ``TALLYPORT_CLICKHOUSE_URL``, as a user that may write."""
    return ledger_server.url_with_login


def _container(stack: contextlib.ExitStack) -> LedgerAddress | None:
    """A server in a container, or None where there is no engine or it cannot run the image."""
    if not os.environ.get("DOCKER_HOST") and not Path("/var/run/docker.sock").exists():
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import docker
            from testcontainers.core.container import DockerContainer

            docker.from_env(timeout=5).ping()
            login = {"CLICKHOUSE_USER": SINK_USER, "CLICKHOUSE_PASSWORD": "container"}
            container: Any = DockerContainer(IMAGE).with_exposed_ports(8123)
            for name, value in {**login, "CLICKHOUSE_DB": "tallyport"}.items():
                container = container.with_env(name, value)
            stack.callback(container.stop)
            container.start()
            address = LedgerAddress(
                container.get_container_host_ip(),
                int(container.get_exposed_port(8123)),
                SINK_USER,
                "container",
            )
            _wait(address)
        except Exception as error:  # no engine, no image, no network: the embedded one then
            print(f"no ClickHouse in a container ({type(error).__name__}); using the embedded one")
            return None
    return address


def _wait(address: LedgerAddress) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            address.writer().close()
            return
        except Exception:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.3)

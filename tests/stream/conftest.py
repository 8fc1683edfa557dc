"""An empty, migrated ledger database that all workers of the session may look at."""

import uuid
from collections.abc import Iterator
from dataclasses import replace

import pytest

from pipeline.ledger.client import LedgerAddress, connect, parse_address
from pipeline.ledger.migrate import migrate_address
from tests import ledger_fixture


def url_of(address: LedgerAddress) -> str:
    """``address`` in the form of ``TALLYPORT_CLICKHOUSE_URL``."""
    login = f"{address.user}:{address.password}"
    return f"http://{login}@{address.host}:{address.port}/{address.database}"


def migrated_database(server: ledger_fixture.LedgerAddress) -> Iterator[LedgerAddress]:
    """A database of its own on ``server``, dropped at the end."""
    address = replace(parse_address(server.url_with_login), database=f"t_{uuid.uuid4().hex[:12]}")
    migrate_address(address)
    yield address
    client = connect(address, database="")
    client.command(f"DROP DATABASE IF EXISTS {address.database}")
    client.close()


@pytest.fixture(scope="session")
def empty_ledger_url(ledger_server: ledger_fixture.LedgerAddress) -> Iterator[str]:
    """A ledger without rows; workers only look at it, so they can share it."""
    for address in migrated_database(ledger_server):
        yield url_of(address)


@pytest.fixture
def own_ledger(ledger_server: ledger_fixture.LedgerAddress) -> Iterator[LedgerAddress]:
    """A migrated ledger that this test may fill."""
    yield from migrated_database(ledger_server)

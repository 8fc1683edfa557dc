"""A migrated database of its own for each test, on the one ledger of the session."""

import uuid
from collections.abc import Iterator
from dataclasses import replace

import pytest
from clickhouse_connect.driver.client import Client

from pipeline.ledger.client import LedgerAddress, connect, parse_address
from pipeline.ledger.migrate import migrate_address
from tests import ledger_fixture


@pytest.fixture
def empty_address(ledger_server: ledger_fixture.LedgerAddress) -> Iterator[LedgerAddress]:
    """A writer's address whose database does not exist yet; it is dropped at the end."""
    address = replace(
        parse_address(ledger_server.url_with_login), database=f"t_{uuid.uuid4().hex[:12]}"
    )
    yield address
    client = connect(address, database="")
    client.command(f"DROP DATABASE IF EXISTS {address.database}")
    client.close()


@pytest.fixture
def address(empty_address: LedgerAddress) -> LedgerAddress:
    """The same, migrated."""
    migrate_address(empty_address)
    return empty_address


@pytest.fixture
def client(address: LedgerAddress) -> Iterator[Client]:
    client = connect(address)
    yield client
    client.close()

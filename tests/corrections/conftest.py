"""Worker and sink for the tests of each module, on a ledger of their own."""

import asyncio
from collections.abc import Iterator

import pytest

from pipeline.ledger.client import LedgerAddress
from tests import ledger_fixture
from tests.corrections.desk import Desk
from tests.stream.conftest import migrated_database


@pytest.fixture(scope="module")
def module_ledger(ledger_server: ledger_fixture.LedgerAddress) -> Iterator[LedgerAddress]:
    """A migrated ledger that the tests of this module may fill."""
    yield from migrated_database(ledger_server)


@pytest.fixture
def own_ledger(ledger_server: ledger_fixture.LedgerAddress) -> Iterator[LedgerAddress]:
    """A migrated ledger for one test."""
    yield from migrated_database(ledger_server)


@pytest.fixture(scope="module")
def desk(
    kafka: str, module_ledger: LedgerAddress, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Desk]:
    """Worker and sink, ready, with rates and policies; what a test needs beside, it adds."""
    desk = Desk(kafka, module_ledger, tmp_path_factory.mktemp("corrections"))
    try:
        asyncio.run(desk.open())
        yield desk
        asyncio.run(desk.stop())
    finally:
        desk.end_all()

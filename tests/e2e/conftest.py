"""A ledger of its own for each module that fills one."""

from collections.abc import Iterator

import pytest

from pipeline.ledger.client import LedgerAddress
from tests import ledger_fixture
from tests.stream.conftest import migrated_database


@pytest.fixture(scope="module")
def module_ledger(ledger_server: ledger_fixture.LedgerAddress) -> Iterator[LedgerAddress]:
    """A migrated ledger that the tests of this module may fill."""
    yield from migrated_database(ledger_server)


@pytest.fixture
def empty_ledger(ledger_server: ledger_fixture.LedgerAddress) -> Iterator[LedgerAddress]:
    """A migrated ledger without rows."""
    yield from migrated_database(ledger_server)

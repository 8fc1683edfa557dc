"""The one currency of a ledger: amounts of two would be added up as if they were one."""

from clickhouse_connect.driver.client import Client

from pipeline.core.errors import ConfigurationError
from pipeline.ledger.manifests import INSERT_SETTINGS

# Not the driver's insert, which loads pandas and Arrow: a worker does without them.
_SETTLE = """
INSERT INTO ledger_currency (currency, written_at) SELECT {currency:String}, now64(6, 'UTC')
"""
_CURRENCY = "SELECT currency FROM ledger_currency ORDER BY written_at LIMIT 1"


def check_currency(client: Client, currency: str) -> bool:
    """Whether the ledger's currency is known. Raises ``ConfigurationError`` when it is another."""
    row = client.query(_CURRENCY).first_row
    if row and row[0] != currency:
        raise ConfigurationError(
            f"TALLYPORT_CURRENCY is {currency}, but this ledger's amounts are in {row[0]}; set it "
            f"back to {row[0]}, or start with an empty ledger, data folder and topic prefix"
        )
    return bool(row)


def settle_currency(client: Client, currency: str) -> None:
    """Makes ``currency`` the ledger's, if it has none yet; raises as above."""
    if not check_currency(client, currency):
        client.command(_SETTLE, parameters={"currency": currency}, settings=INSERT_SETTINGS)
        check_currency(client, currency)

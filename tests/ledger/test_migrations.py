"""The ledger's migrations and the client, against a real ClickHouse."""

from dataclasses import replace
from pathlib import Path

import pytest
from clickhouse_connect.driver.client import Client

from pipeline.core.errors import ConfigurationError, Refused, TallyportError
from pipeline.ledger.client import (
    EMBEDDED_WRITER,
    LedgerAddress,
    LedgerDatabaseMissing,
    LedgerError,
    LedgerLoginRefused,
    LedgerUnreachable,
    connect,
    ledger_address,
    ledger_errors,
    parse_address,
)
from pipeline.ledger.columns import LEDGER_COLUMNS
from pipeline.ledger.migrate import (
    Migration,
    left_out_at,
    load_migrations,
    migrate,
    migrate_address,
    pending,
    pending_at,
)
from pipeline.ledger.server import SINK_USER
from pipeline.ops.loopback_ports import free_port
from pipeline.settings import load_settings

EXTRA = Migration(
    len(load_migrations()) + 1,
    "extra",
    "-- first; not a command\nCREATE TABLE IF NOT EXISTS extra (a String) ENGINE = Memory;\n\n"
    "CREATE TABLE IF NOT EXISTS extra_two (a String DEFAULT ';') ENGINE = Memory;\n",
)


def test_migrates_an_empty_server_and_then_has_nothing_to_do(empty_address: LedgerAddress) -> None:
    shipped = load_migrations()
    required = [migration for migration in shipped if not migration.is_optional]
    assert pending_at(empty_address) == required
    applied = migrate_address(empty_address)
    assert applied[: len(required)] == required
    assert applied[len(required) :] + left_out_at(empty_address) == [
        migration for migration in shipped if migration.is_optional
    ]
    assert pending_at(empty_address) == []
    assert migrate_address(empty_address) == []
    with ledger_errors(empty_address):
        client = connect(empty_address)
        tables = {name for (name,) in client.query("SHOW TABLES").result_rows}
        client.close()
    assert {"ledger_entries", "usage_ledger", "usage_daily", "ai_usage_daily"} <= tables
    assert {"focus_charges", "sink_manifests", "log_epochs", "schema_migrations"} <= tables


def test_the_columns_module_has_the_columns_of_the_table(client: Client) -> None:
    found = client.query("DESCRIBE ledger_entries").result_rows
    assert tuple(column[0] for column in found) == LEDGER_COLUMNS


def test_a_new_migration_is_applied_once(client: Client) -> None:
    shipped = [*load_migrations(), EXTRA]
    assert migrate(client, shipped) == [EXTRA]
    assert pending(client, shipped) == []
    assert client.query("EXISTS extra_two").first_row == (1,)


def test_a_migration_that_was_cut_short_is_run_again(client: Client) -> None:
    client.command(EXTRA.statements[0])
    assert migrate(client, [*load_migrations(), EXTRA]) == [EXTRA]


def test_a_failing_migration_is_not_recorded(client: Client) -> None:
    broken = replace(EXTRA, sql=EXTRA.sql + "CREATE TABLE nonsense;\n")
    with pytest.raises(LedgerError, match=rf"migration {EXTRA} failed"):
        migrate(client, [*load_migrations(), broken])
    assert pending(client, [*load_migrations(), broken]) == [broken]


def test_a_changed_migration_is_refused(client: Client) -> None:
    first, *others = load_migrations()
    changed = replace(first, sql=first.sql + "\n-- a later thought\n")
    with pytest.raises(Refused, match="0001_ledger has changed"):
        pending(client, [changed, *others])


def test_a_newer_schema_is_refused(client: Client) -> None:
    migrate(client, [*load_migrations(), EXTRA])
    with pytest.raises(Refused, match=rf"newer than this release.*{EXTRA}"):
        migrate(client)


def test_statements_are_split_at_the_end_of_a_line_only() -> None:
    assert len(EXTRA.statements) == 2
    assert EXTRA.statements[1].endswith("DEFAULT ';') ENGINE = Memory")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://h", LedgerAddress("h", 8123, False, "default", "tallyport")),
        ("https://h", LedgerAddress("h", 8443, True, "default", "tallyport")),
        (
            "http://us%40er:p%3Aw@[::1]:9/other",
            LedgerAddress("::1", 9, False, "us@er", "other", "p:w"),
        ),
    ],
)
def test_the_parts_of_an_address(url: str, expected: LedgerAddress) -> None:
    assert parse_address(url) == expected


def test_messages_never_show_the_password() -> None:
    address = parse_address("http://user:secret@h:1")
    assert "secret" not in f"{address} {address.url}"


def test_without_an_address_the_message_says_what_to_set(tmp_path: Path) -> None:
    settings = load_settings({"TALLYPORT_DATA_DIR": str(tmp_path)}, None)
    with pytest.raises(ConfigurationError, match="TALLYPORT_CLICKHOUSE_URL"):
        ledger_address(settings)


def test_the_embedded_server_and_its_clients_agree_on_the_writer() -> None:
    assert EMBEDDED_WRITER == SINK_USER


def test_each_way_to_fail_is_one_clear_line(address: LedgerAddress) -> None:
    cases: list[tuple[LedgerAddress, type[TallyportError], str]] = [
        (replace(address, port=free_port()), LedgerUnreachable, "does not answer"),
        (replace(address, password="wrong"), LedgerLoginRefused, "wrong name or password"),
        (replace(address, database="nowhere"), LedgerDatabaseMissing, "tallyport migrate"),
    ]
    for wrong, error, words in cases:
        with pytest.raises(error, match=words) as raised:
            connect(wrong)
        assert "\n" not in str(raised.value)

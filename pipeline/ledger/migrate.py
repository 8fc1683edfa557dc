"""Migrations of the ledger: numbered SQL files, each applied once, in order, and never changed."""

import hashlib
import re
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources

from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError

from pipeline.core.errors import Refused, TallyportError
from pipeline.ledger.client import (
    LedgerAddress,
    LedgerDatabaseMissing,
    LedgerError,
    connect,
    ledger_errors,
    server_words,
)

_FILE_NAME = re.compile(r"(\d{4})_(\w+)\.sql")
_STATEMENT_END = re.compile(r";[ \t]*(?:\n|$)")
_OPTIONAL = re.compile(r"-- optional: \w")
_MAY_NOT_MANAGE_USERS = {497, 514}
"""ACCESS_DENIED, and ACCESS_STORAGE_FOR_INSERTION_NOT_FOUND."""
_IDENTIFIER = re.compile(r"\w+", re.ASCII)

_CREATE_RECORDS = """
CREATE TABLE IF NOT EXISTS schema_migrations
(number UInt32, name String, sha256 String, applied_at DateTime64(3, 'UTC'))
ENGINE = ReplacingMergeTree ORDER BY number
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1
"""
_RECORD = """
INSERT INTO schema_migrations (number, name, sha256, applied_at)
SELECT {number:UInt32}, {name:String}, {sha256:String}, now64(3, 'UTC')
"""
_APPLIED = "SELECT number, name, sha256 FROM schema_migrations FINAL ORDER BY number"
_RECORDS_EXIST = (
    "SELECT count() FROM system.tables WHERE database = {database:String} "
    "AND name = 'schema_migrations'"
)


@dataclass(frozen=True)
class Migration:
    """One file of ``migrations/``; ``sha256`` is of its text."""

    number: int
    name: str
    sql: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()

    @property
    def statements(self) -> list[str]:
        """The commands of the file, split where a ``;`` ends a line, without comment lines."""
        lines = [line for line in self.sql.splitlines() if not line.lstrip().startswith("--")]
        parts = (part.strip() for part in _STATEMENT_END.split("\n".join(lines)))
        return [part for part in parts if part]

    @property
    def is_optional(self) -> bool:
        """Whether the ledger works without it: it is applied where the server lets us."""
        return _OPTIONAL.match(self.sql) is not None

    def __str__(self) -> str:
        return f"{self.number:04d}_{self.name}"


def load_migrations() -> list[Migration]:
    """The migrations this release ships, by number; they count 1, 2, 3 without a gap."""
    found: list[Migration] = []
    for file in resources.files("pipeline.ledger").joinpath("migrations").iterdir():
        if match := _FILE_NAME.fullmatch(file.name):
            found.append(Migration(int(match[1]), match[2], file.read_text(encoding="utf-8")))
    found.sort(key=lambda migration: migration.number)
    if [migration.number for migration in found] != list(range(1, len(found) + 1)):
        raise TallyportError("the ledger's migrations are not numbered 1, 2, 3, …")
    return found


def create_database(address: LedgerAddress) -> None:
    """Creates the address's database if it is missing."""
    if not _IDENTIFIER.fullmatch(address.database):
        raise TallyportError(f"{address.database!r} is not a name for a ClickHouse database")
    client = connect(address, database="")
    try:
        with ledger_errors(address):
            client.command(f"CREATE DATABASE IF NOT EXISTS `{address.database}`")
    finally:
        client.close()


def pending(client: Client, shipped: list[Migration] | None = None) -> list[Migration]:
    """The migrations that are still to be applied, without changing anything; no optional ones.

    Raises ``Refused`` when an applied migration has changed since, or when the ledger's schema is
    newer than this release.
    """
    shipped = load_migrations() if shipped is None else shipped
    applied = {number: (name, sha256) for number, name, sha256 in _applied(client)}
    for migration in shipped:
        if migration.number in applied and applied[migration.number][1] != migration.sha256:
            raise Refused(
                f"migration {migration} has changed since it was applied to this ledger; "
                "use the release that applied it, or one after it"
            )
    newer = sorted(set(applied) - {migration.number for migration in shipped})
    if newer:
        raise Refused(
            f"the ledger's schema is newer than this release (it has migration {newer[-1]:04d}_"
            f"{applied[newer[-1]][0]}); upgrade tallyport"
        )
    return [m for m in shipped if m.number not in applied and not m.is_optional]


def left_out(client: Client, shipped: list[Migration] | None = None) -> list[Migration]:
    """The optional migrations that the server has not let us apply so far."""
    applied = {number for number, _, _ in _applied(client)}
    shipped = load_migrations() if shipped is None else shipped
    return [m for m in shipped if m.number not in applied and m.is_optional]


def migrate(client: Client, shipped: list[Migration] | None = None) -> list[Migration]:
    """Applies what is pending, and the optional ones that can be, and returns what was applied.

    A migration is recorded after its last command, and every command may be repeated, so a run
    that was cut short is simply run again. Raises what ``pending`` raises.
    """
    todo = pending(client, shipped)
    client.command(_CREATE_RECORDS)
    for migration in todo:
        _apply(client, migration)
    for migration in left_out(client, shipped):
        try:
            _apply(client, migration)
        except LedgerError as error:
            if error.code not in _MAY_NOT_MANAGE_USERS:
                raise
            continue
        todo.append(migration)
    return todo


def _apply(client: Client, migration: Migration) -> None:
    for statement in migration.statements:
        _run(client, migration, statement.replace("$database", f"`{client.database}`"))
    record = {"number": migration.number, "name": migration.name, "sha256": migration.sha256}
    client.command(_RECORD, parameters=record)


def _run(client: Client, migration: Migration, statement: str) -> None:
    try:
        client.command(statement)
    except DatabaseError as error:
        if error.code is None:
            raise
        raise LedgerError(
            f"migration {migration} failed and is not recorded: {server_words(error)}", error.code
        ) from error


def migrate_address(address: LedgerAddress) -> list[Migration]:
    """Creates the database if need be and applies what is pending; returns what was applied."""
    create_database(address)
    with _connected(address) as client:
        return migrate(client)


def left_out_at(address: LedgerAddress) -> list[Migration]:
    """``left_out`` of the ledger at ``address``."""
    with _connected(address) as client:
        return left_out(client)


def pending_at(address: LedgerAddress) -> list[Migration]:
    """What ``migrate_address`` would apply, without changing anything."""
    try:
        with _connected(address) as client:
            return pending(client)
    except LedgerDatabaseMissing:
        return [migration for migration in load_migrations() if not migration.is_optional]


@contextmanager
def _connected(address: LedgerAddress) -> Generator[Client]:
    client = connect(address)
    try:
        with ledger_errors(address):
            yield client
    finally:
        client.close()


def _applied(client: Client) -> list[tuple[int, str, str]]:
    there = client.query(_RECORDS_EXIST, parameters={"database": client.database}).first_row
    if not there or not there[0]:
        return []
    return [(int(n), str(name), str(sha)) for n, name, sha in client.query(_APPLIED).result_rows]

"""The roles and row policies for a ClickHouse that keeps users itself.

The embedded engine keeps none, so there the policies' own conditions are put on its one user
through its configuration; on a server that lets us create users, a user with the role asks.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest
from clickhouse_connect.driver.client import Client

from pipeline.ledger.client import LedgerAddress
from pipeline.ledger.migrate import left_out, load_migrations
from tests import ledger_fixture

[READERS] = [migration for migration in load_migrations() if migration.name == "readers"]
POLICY = re.compile(
    r"CREATE ROW POLICY IF NOT EXISTS (\w+)\s+ON (.*?) FOR SELECT\s+USING (.*?)\s+TO "
)
PEEKS = {
    "SELECT count() FROM usage_ledger": "3",
    "SELECT sum(requests) FROM usage_daily": "3",
    "SELECT sum(entries) FROM usage_daily_users": "3",
    "SELECT sum(entries) FROM usage_daily_ports": "3",
    "SELECT sum(request_count) FROM ai_usage_daily": "3",
    "SELECT sum(x_Requests) FROM focus_charges": "3",
    "SELECT count() FROM ledger_entries": "3",
    "SELECT count() FROM ledger_entries PREWHERE NOT throwIf(port_id != 'p1')": "3",
    "SELECT count() FROM rollup_daily PREWHERE NOT throwIf(port_id != 'p1')": "1",
    "SELECT count() FROM usage_ledger WHERE NOT throwIf(port_id != 'p1')": "3",
    "SELECT sum(requests) FROM usage_daily WHERE NOT throwIf(port_id != 'p1')": "3",
    "SELECT min(occurred_at) FROM ledger_entries": "2026-09-01 00:00:01.000000",
    "SELECT count() FROM port_readers WHERE reader != currentUser()": "0",
}
"""What a reader of port p1 gets to see of three ports with three entries each."""
FILL = [
    "INSERT INTO ledger_entries (event_id, occurred_at, port_id, requests) "
    "SELECT toString(number), toDateTime64('2026-09-01', 6, 'UTC') + number, "
    "'p' || toString(number % 3), 1 FROM numbers(9)",
    "INSERT INTO day_marks SELECT '2026-09-01', 'x', 1, now()",
    "INSERT INTO rollup_daily SELECT 7, * FROM entries_daily",
    "INSERT INTO rollup_users SELECT 7, * FROM entries_users",
    "INSERT INTO rollup_ports SELECT 7, * FROM entries_ports",
]
CLOSE = "INSERT INTO day_closings SELECT '2026-09-01', 7, 1, now()"


def policies() -> list[tuple[str, list[str], str]]:
    """Name, tables and condition of every policy for limited readers."""
    return [
        (name, [table.strip() for table in tables.split(",")], condition)
        for statement in READERS.statements
        for name, tables, condition in POLICY.findall(statement)
        if name.startswith("tallyport_own")
    ]


def test_every_table_with_a_port_has_a_policy(client: Client) -> None:
    sql = (
        "SELECT table FROM system.columns WHERE database = {d:String} AND name = 'port_id' "
        "AND table IN (SELECT name FROM system.tables "
        "WHERE database = {d:String} AND engine LIKE '%MergeTree')"
    )
    found = client.query(sql, parameters={"d": client.database}).result_rows
    limited = {table for _, tables, _ in policies() for table in tables}
    assert limited == {table for (table,) in found} | {"port_readers"}


@pytest.mark.parametrize("closed", [False, True])
def test_the_conditions_let_a_reader_see_its_ports_only(tmp_path: Path, closed: bool) -> None:
    statements = [
        statement
        for migration in load_migrations()
        for statement in migration.statements
        if migration != READERS or statement.startswith("CREATE TABLE")
    ]
    statements += FILL + ([CLOSE] if closed else [])
    statements += ["INSERT INTO port_readers VALUES ('default', 'p1'), ('other', 'p2')"]
    filters = "".join(
        f"<{table}><filter>{condition.replace('$database', 'tallyport')}</filter></{table}>"
        for _, tables, condition in policies()
        for table in tables
    )
    (tmp_path / "users.xml").write_text(
        "<clickhouse><profiles><default/></profiles><quotas><default/></quotas><users><default>"
        "<password/><networks><ip>::/0</ip></networks><profile>default</profile>"
        f"<quota>default</quota><databases><tallyport>{filters}</tallyport></databases>"
        "</default></users></clickhouse>"
    )
    config = tmp_path / "config.xml"
    config.write_text(f"<clickhouse><users_config>{tmp_path}/users.xml</users_config></clickhouse>")
    store = tmp_path / "store"
    run_on_engine(str(store), statements, [])
    found = run_on_engine(f"{store}?config-file={config}", [], list(PEEKS))
    assert dict(zip(PEEKS, found, strict=True)) == PEEKS


def run_on_engine(path: str, statements: list[str], queries: list[str]) -> list[str]:
    """In a process of its own: the engine reads its users once, when it is opened."""
    code = (
        "import chdb, json, sys\n"
        "path, statements, queries = json.load(sys.stdin)\n"
        "c = chdb.connect(path)\n"
        "c.query('CREATE DATABASE IF NOT EXISTS tallyport'); c.query('USE tallyport')\n"
        "for statement in statements: c.query(statement)\n"
        "found = [bytes(c.query(query, 'TSVRaw').bytes()).decode() for query in queries]\n"
        "print(json.dumps([text.strip() for text in found]))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps([path, statements, queries]),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    return json.loads(ended.stdout)


def test_the_statements_are_clickhouse_sql(client: Client) -> None:
    for statement in READERS.statements:
        parsed = client.query(
            "SELECT formatQuery({s:String})",
            parameters={"s": statement.replace("$database", "tallyport")},
        )
        assert parsed.result_rows


def test_a_user_with_the_role_sees_its_ports_where_the_server_keeps_users(
    client: Client, address: LedgerAddress, ledger_server: ledger_fixture.LedgerAddress
) -> None:
    if left_out(client):
        # The embedded server keeps no users: then nothing of the migration may be half done.
        assert client.query("EXISTS TABLE port_readers").first_row == (0,)
        with pytest.raises(Exception, match="ACCESS_DENIED"):
            client.command("CREATE ROLE tallyport_reader")
        return
    for statement in [*FILL, CLOSE]:
        client.command(statement)
    name = f"reader_{uuid4().hex[:8]}"
    client.command(f"CREATE USER {name} IDENTIFIED BY 'secret' DEFAULT ROLE tallyport_port_reader")
    client.command(f"GRANT tallyport_port_reader TO {name}")
    client.command(f"INSERT INTO port_readers VALUES ('{name}', 'p1'), ('other', 'p2')")
    reader = ledger_server.reader(username=name, password="secret", database=address.database)
    try:
        found = [str(reader.query(sql).first_row[0]) for sql in PEEKS]
        assert [text[:19] for text in found] == [text[:19] for text in PEEKS.values()]
    finally:
        reader.close()
        client.command(f"DROP USER {name}")

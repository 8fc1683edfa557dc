"""Readers with an API key: what a key that is limited to ports lets one see, and nothing else."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import clickhouse_connect
import pytest

from pipeline.ledger.client import connect, parse_address
from pipeline.ledger.columns import entries_table
from pipeline.ledger.day_marks import DayMarks
from pipeline.ledger.migrate import migrate_address
from pipeline.ledger.server.limits import quote
from pipeline.ledger.server.port_rows import VIEWS
from pipeline.web.key_file import create_key, revoke_key
from tests.ledger.closed_days import close_all
from tests.ledger.http_requests import Answer, ask
from tests.ledger.priced_blocks import block, row
from tests.ledger_fixture import LedgerAddress, LedgerProcess

READONLY, DENIED, REFUSED, UNKNOWN_COLUMN = 164, 497, 516, 47
NOW = datetime(2026, 11, 22, tzinfo=UTC)
START = datetime(2026, 9, 1, tzinfo=UTC)
DAYS = 3
MINE = 'it\'s \\mine\t"1"'
OTHERS = ("harbor-2", "harbor-3", "harbor-4")
PER_DAY = 30
"""Entries of each port on each day."""


class Served(NamedTuple):
    ledger: LedgerAddress
    keys: Path
    texts: dict[str, str]

    def client(self, name: str) -> Any:
        return clickhouse_connect.get_client(
            host=self.ledger.host, port=self.ledger.port, username=name,
            password=self.texts[name], database="tallyport", autogenerate_session_id=False,
        )  # fmt: skip

    def ask(self, name: str, statement: str, **parameters: str) -> Answer:
        login = {"X-ClickHouse-User": name, "X-ClickHouse-Key": self.texts[name]}
        return ask(self.ledger, statement, headers=login, **parameters)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A ledger of four ports, two days rolled up and one open, and keys of all roles."""
    folder = tmp_path_factory.mktemp("ledger")
    keys = folder / "keys.json"
    texts: dict[str, str] = {}
    for name, role, ports in [
        ("bi-mine", "read", [MINE]),
        ("bi-two", "read", ["harbor-2", "harbor-3"]),
        ("bi-many", "read", [f"{MINE}{n:0100d}" for n in range(999)] + [MINE]),
        ("bi-all", "read", []),
        ("boss", "admin", []),
        ("sender", "ingest", [MINE]),
        ("gone", "read", [MINE]),
    ]:
        texts[name] = create_key(keys, name, role, ports=ports, who="test", now=NOW)[1]
    revoke_key(keys, "gone", who="test", now=NOW)
    server = LedgerProcess(folder, TALLYPORT_API_KEYS_FILE=str(keys))
    try:
        ledger = server.start()
        fill(ledger)
        yield Served(ledger, keys, texts)
    finally:
        server.kill()


def fill(ledger: LedgerAddress) -> None:
    address = parse_address(ledger.url_with_login)
    migrate_address(address)
    client = connect(address)
    rows = [
        row(
            event_id=f"e{number}", port_id=port, user_id=f"user of {port}", source_offset=number,
            cost_nano=1_000_000_000, input_tokens=5,
            occurred_at_us=int((START + timedelta(days=day)).timestamp()) * 1_000_000 + number,
        )
        for day in range(DAYS)
        for port in (MINE, *OTHERS)
        for number in range(PER_DAY)
    ]  # fmt: skip
    days = [START.date() + timedelta(days=day) for day in range(DAYS)]
    DayMarks().before_change(client, days)
    client.insert_arrow("ledger_entries", entries_table([block(rows, 0, PER_DAY)], "USD"))
    assert close_all(client) == DAYS
    DayMarks().before_change(client, days[-1:])
    client.close()


COUNTS = {
    "usage_ledger": "count()",
    "usage_daily": "sum(requests)",
    "usage_daily_users": "sum(entries)",
    "usage_daily_ports": "sum(entries)",
    "ai_usage_daily": "sum(request_count)",
    "focus_charges": "sum(x_Requests)",
}


@pytest.mark.parametrize("view", sorted(VIEWS))
@pytest.mark.parametrize(
    ("name", "ports"), [("bi-mine", 1), ("bi-two", 2), ("bi-many", 1), ("bi-all", 4), ("boss", 4)]
)
def test_each_key_sees_its_ports(served: Served, view: str, name: str, ports: int) -> None:
    answer = served.ask(name, f"SELECT {COUNTS[view]} FROM {view}")
    assert answer.text == f"{ports * PER_DAY * DAYS}\n"


def test_the_driver_takes_the_key_as_a_password(served: Served) -> None:
    client = served.client("bi-mine")
    found = client.query("SELECT DISTINCT port_id, user_id FROM usage_daily").result_rows
    assert found == [(MINE, f"user of {MINE}")]
    client.close()


@pytest.mark.parametrize(
    ("name", "key"),
    [("bi-mine", "wrong"), ("bi-two", "bi-mine"), ("sender", "sender"), ("gone", "gone")],
)
def test_who_may_not_read_is_refused(served: Served, name: str, key: str) -> None:
    login = {"X-ClickHouse-User": name, "X-ClickHouse-Key": served.texts.get(key, key)}
    assert ask(served.ledger, "SELECT 1", headers=login).code == REFUSED


def test_a_key_that_is_revoked_opens_nothing_any_more(served: Served) -> None:
    text = create_key(served.keys, "short", "read", who="test", now=NOW)[1]
    served.texts["short"] = text
    assert wait_for(served, "short", 0) == "1\n"
    revoke_key(served.keys, "short", who="test", now=NOW)
    assert "Authentication failed" in wait_for(served, "short", REFUSED)


def wait_for(served: Served, name: str, code: int) -> str:
    deadline = time.monotonic() + 60
    while (answer := served.ask(name, "SELECT 1")).code != code:
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.1)
    return answer.text


@pytest.mark.parametrize("name", ["bi-mine", "bi-all", "boss"])
@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO day_marks VALUES ('2026-09-01', 'x', 1, now())",
        "ALTER TABLE ledger_entries DELETE WHERE 1",
        "SELECT * FROM file('/etc/passwd', 'LineAsString')",
        "SET additional_table_filters = {}",
    ],
)
def test_nobody_with_a_key_writes_or_leaves_the_ledger(
    served: Served, name: str, statement: str
) -> None:
    assert served.ask(name, statement).code in (READONLY, DENIED, 62)


# Each would tell of other ports' rows if a condition of the reader were asked about them: by an
# error, by what it returns, or by a count.
PEEKS = """
SELECT count() FROM {view} WHERE NOT {other}
SELECT count() FROM {view} WHERE {other} = 0
SELECT count() FROM (SELECT * FROM {view} WHERE {other} = 0)
SELECT count() FROM {view} WHERE intDiv(1, {port} = {mine}) = 1
SELECT count() FROM {view} WHERE toUInt8(if({port} = {mine}, '1', 'x')) = 1
SELECT count() FROM {view} AS a JOIN {view} AS b ON a.{port} = b.{port} WHERE {other_of_b} = 0
SELECT count() FROM {view} WHERE {port} IN (SELECT {port} FROM {view} WHERE NOT {other})
SELECT count() FROM view(SELECT * FROM {view} WHERE NOT {other})
WITH x AS (SELECT * FROM {view}) SELECT count() FROM x WHERE NOT {other}
SELECT {other} FROM {view} ORDER BY {other} LIMIT 1
SELECT {port}, count() FROM {view} GROUP BY {port} HAVING NOT {other}
SELECT sum({other}) OVER () FROM {view} LIMIT 1
SELECT count() FROM {view} AS `tallyport.ledger_entries` WHERE NOT {other}
SELECT count() FROM {view} WHERE {port} IN ('harbor-2') OR NOT {other}
SELECT 1 UNION ALL SELECT count() FROM {view} WHERE {other}
""".strip().splitlines()


@pytest.mark.parametrize("peek", PEEKS)
@pytest.mark.parametrize("view", sorted(VIEWS - {"ai_usage_daily"}))
def test_no_condition_is_asked_about_rows_of_others(served: Served, view: str, peek: str) -> None:
    mine = quote(MINE)
    port = "SubAccountId" if view == "focus_charges" else "port_id"
    other = f"throwIf({port} != {mine})"
    names = {"other_of_b": other.replace(port, f"b.{port}"), "other": other}
    statement = peek.format(view=view, port=port, mine=mine, **names)
    answer = served.ask("bi-mine", statement)
    assert answer.status == 200 or answer.code == UNKNOWN_COLUMN, answer.text
    assert "harbor" not in answer.text
    # Else an error after the first row would break the answer off instead of giving its code.
    told = served.ask("bi-all", statement, wait_end_of_query="1")
    assert told.code != 0, "the peek would not have told anything"


REFUSED_PEEKS = """
SELECT count() FROM ledger_entries
SELECT count() FROM ledger_entries PREWHERE NOT throwIf(port_id != 'x')
SELECT count() FROM rollup_daily
SELECT count() FROM entries_daily
SELECT * FROM day_states
SELECT * FROM sink_manifests
SELECT * FROM schema_migrations
SELECT 'a' IN ledger_entries
WITH ledger_entries AS (SELECT 1) SELECT * FROM ledger_entries
SELECT * FROM (WITH rollup_daily AS (SELECT 1) SELECT 1), rollup_daily
WITH x AS (SELECT 1) SELECT * FROM tallyport.x
WITH x AS (SELECT * FROM rollup_daily) SELECT * FROM x
SELECT * FROM usage_ledger WHERE port_id IN (SELECT port_id FROM rollup_ports)
SELECT * FROM usage_ledger AS a JOIN ledger_entries AS b ON a.event_id = b.event_id
DESCRIBE ledger_entries
SHOW CREATE TABLE ledger_entries
EXISTS ledger_entries
SELECT * FROM merge('tallyport', 'ledger')
SELECT * FROM {t:Identifier}
SELECT * FROM system.data_skipping_indices
SELECT * FROM system.parts
EXPLAIN SELECT count() FROM usage_ledger
EXPLAIN ESTIMATE SELECT count() FROM usage_ledger
EXPLAIN PLAN indexes = 1 SELECT count() FROM usage_ledger
EXPLAIN PIPELINE SELECT count() FROM usage_ledger
SELECT count() FROM usage_ledger SETTINGS additional_table_filters = {}
SELECT count() FROM usage_ledger SETTINGS query_plan_merge_filters = 1
SELECT count() FROM usage_ledger SETTINGS optimize_move_to_prewhere = 1
SELECT count() FROM usage_ledger SETTINGS additional_result_filter = ''
""".strip().splitlines()


@pytest.mark.parametrize("peek", REFUSED_PEEKS)
def test_a_limited_reader_gets_the_views_only(served: Served, peek: str) -> None:
    answer = served.ask("bi-mine", peek, param_t="ledger_entries")
    assert answer.code in (READONLY, DENIED), answer.text
    setting = peek.partition("SETTINGS ")[2].partition(" = ")
    if setting[0]:
        url = served.ask("bi-mine", "SELECT 1", **{setting[0]: setting[2]})
        assert url.code == READONLY, url.text


def test_sizes_and_counts_tell_nothing_of_others(served: Served) -> None:
    shown = served.ask("bi-mine", "SELECT name FROM system.tables WHERE database = 'tallyport'")
    assert set(shown.text.split()) == VIEWS
    assert set(served.ask("bi-mine", "SHOW TABLES").text.split()) == VIEWS
    for table, column in (("tables", "table_name"), ("columns", "table_name")):
        sql = (
            f"SELECT DISTINCT {column} FROM information_schema.{table} "
            "WHERE table_schema = 'tallyport'"
        )
        assert set(served.ask("bi-mine", sql).text.split()) == VIEWS, table
    answer = served.ask("bi-mine", "SELECT count() FROM usage_ledger FORMAT JSON")
    assert "statistics" not in answer.text
    assert '"read_rows":"0"' in answer.headers["X-ClickHouse-Summary"]


def test_a_limited_reader_keeps_the_limits(served: Served) -> None:
    too_many = "SELECT number FROM numbers(2000000)"
    assert served.ask("bi-mine", too_many, wait_end_of_query="1").code == 396
    assert served.ask("bi-mine", "SELECT 1", max_result_rows="100000000").code == 452


def test_with_a_password_any_host_may_be_asked_for(served: Served) -> None:
    login = {"X-ClickHouse-User": "bi-mine", "X-ClickHouse-Key": served.texts["bi-mine"]}
    answer = ask(served.ledger, "SELECT 1", headers={**login, "Host": "ledger.example"})
    assert answer.text == "1\n"

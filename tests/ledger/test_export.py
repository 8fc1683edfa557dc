"""Months to files and out of the ledger: exact, whole, and gone on with after any kill."""

import os
import signal
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from clickhouse_connect.driver.client import Client

from pipeline.audit.ledger_side import LedgerSide
from pipeline.core.errors import CorruptRecord, InvalidField, Refused
from pipeline.ledger import export
from pipeline.ledger.client import LedgerAddress
from pipeline.ledger.columns import by_month, entries_table
from pipeline.ledger.dropped import DROPPED, KEPT, registered
from pipeline.ledger.dropping import drop_month, finish_interrupted
from pipeline.ledger.export import Content, month_content, read_back, write_month
from pipeline.ledger.months import parse_month
from pipeline.ops.export import LOCK_NAME, export_months
from pipeline.settings import Settings
from tests.ledger.closed_days import close_all
from tests.ledger.priced_blocks import chain
from tests.stream.conftest import url_of

NOVEMBER, DECEMBER = parse_month("2026-11"), parse_month("2026-12")
BLOCKS = chain(21, 30)
POINTS = ["marked", "registered", "moved", "verified", "decided", "dropped"]
TOTALS = "SELECT count(), sum(cost_nano), sum(unpriced_requests) FROM usage_ledger"
DAILY = "SELECT sum(requests), sum(cost_nano), sum(unpriced_requests) FROM usage_daily"
DROP = """
import sys
from pathlib import Path
from pipeline.ledger.client import connect, parse_address
from pipeline.ledger.dropping import drop_month, finish_interrupted
from pipeline.ledger.export import write_month
from pipeline.ledger.months import parse_month
client, month = connect(parse_address(sys.argv[1])), parse_month("2026-11")
finish_interrupted(client, month)
drop_month(client, month, *write_month(client, month, Path(sys.argv[2])))
"""


@pytest.fixture
def filled(client: Client) -> Client:
    """Entries of November and December 2026, some of them inserted twice."""
    for entries in by_month(entries_table(BLOCKS, "USD")):
        client.insert_arrow("ledger_entries", entries)
        client.insert_arrow("ledger_entries", entries.slice(0, 5))
    close_all(client)
    return client


def row_of(client: Client, statement: str) -> tuple[Any, ...]:
    found = client.query(statement).first_row
    assert found is not None
    return tuple(found)


def accepted(client: Client) -> tuple[int, int]:
    """What the audit takes for counted: in the ledger, or dropped on purpose."""
    opening = LedgerSide(client, "usage.events", 1).opening_of_cut_off(0, 10**9, 0)
    return opening.accepted, opening.unpriced


def test_a_file_holds_every_value_of_the_month(
    filled: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "ROW_GROUP_ROWS", 100)
    path, content = write_month(filled, NOVEMBER, tmp_path / "new")
    assert path.name == "usage_ledger-2026-11.parquet"
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    found = pq.read_table(path)
    assert pq.ParquetFile(path).num_row_groups == -(-found.num_rows // 100) > 2
    wanted = filled.query_arrow(
        "SELECT * FROM usage_ledger WHERE toYYYYMM(occurred_at) = 202611 "
        "ORDER BY toDate(occurred_at), port_id, event_id, entry_no",
        settings={"output_format_arrow_string_as_string": 1},
    )
    for name in wanted.column_names:
        assert found[name].to_pylist() == wanted[name].to_pylist(), name
    assert {"epoch", "self_hosted", "cache_hit"} <= set(found.column_names)
    assert content.rows == wanted.num_rows
    assert content.cost_nano == sum(cost or 0 for cost in wanted["cost_nano"].to_pylist())
    assert read_back(path) == content == month_content(filled, NOVEMBER, "ledger_entries")


def test_another_value_is_another_digest(filled: Client, tmp_path: Path) -> None:
    _, before = write_month(filled, NOVEMBER, tmp_path)
    for change in ("model = 'other'", "tags = map('a', '2')", "reported_cost = '1'"):
        filled.command(
            f"ALTER TABLE ledger_entries UPDATE {change} WHERE source_offset = "
            "(SELECT min(source_offset) FROM ledger_entries "
            "WHERE toYYYYMM(occurred_at) = 202611 AND NOT (model = 'other'))",
            settings={"mutations_sync": 2},
        )
        after = month_content(filled, NOVEMBER, "ledger_entries")
        assert after[:2] == before[:2]
        assert after.digest != before.digest
        before = after


def test_what_cannot_be_exported_leaves_no_file(
    filled: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Refused, match="no entries of 2026-05"):
        write_month(filled, parse_month("2026-05"), tmp_path)

    def wrong(path: Path) -> Content:
        return read_back(path)._replace(digest="0")

    monkeypatch.setattr(export, "read_back", wrong)
    with pytest.raises(CorruptRecord, match="does not read back as it was written"):
        write_month(filled, NOVEMBER, tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_bytes(b"no parquet")
    with pytest.raises(CorruptRecord, match="can be read"):
        read_back(tmp_path / "file")
    for text in ("2026-13", "2026", "2026-1", "x"):
        with pytest.raises(InvalidField, match="MONTH: must be a month like 2026-08"):
            parse_month(text)


def test_a_full_disk_is_one_error_and_leaves_no_file(filled: Client) -> None:
    # /dev/full cannot be renamed to: a folder of its own on a full disk is not to be had here.
    full = Path("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        export._write(filled, NOVEMBER, full)  # pyright: ignore[reportPrivateUsage]


def test_a_dropped_month_is_gone_and_known(filled: Client, tmp_path: Path) -> None:
    before, counted = row_of(filled, TOTALS), accepted(filled)
    path, content = write_month(filled, NOVEMBER, tmp_path)
    drop_month(filled, NOVEMBER, path, content)
    left = row_of(filled, TOTALS)
    assert left[0] == before[0] - content.rows
    assert left[1] == before[1] - content.cost_nano
    assert row_of(filled, DAILY) == left
    assert accepted(filled) == counted
    known = registered(filled, NOVEMBER)
    assert known is not None
    assert (known.state, known.file, known.entries) == (DROPPED, str(path), content.rows)
    assert (known.digest, known.cost_nano) == (content.digest, content.cost_nano)
    [note] = LedgerSide(filled, "usage.events", 1).left_months()
    assert "2026-11 was exported and dropped" in note
    rollups = filled.query("SELECT count() FROM rollup_daily WHERE toYYYYMM(day) = 202611")
    assert rollups.first_row == (0,)
    tables = [name for (name,) in filled.query("SHOW TABLES").result_rows]
    assert [name for name in tables if name.startswith("leaving")] == []
    close_all(filled)
    assert row_of(filled, DAILY) == left


def test_what_changed_since_the_export_is_not_dropped(filled: Client, tmp_path: Path) -> None:
    before = row_of(filled, TOTALS)
    path, content = write_month(filled, NOVEMBER, tmp_path)
    filled.command(
        "INSERT INTO ledger_entries (event_id, occurred_at, port_id, requests, cost_nano) "
        "VALUES ('late', '2026-11-30 23:59:59', 'p', 1, 7)"
    )
    with pytest.raises(Refused, match="have changed since they were exported"):
        drop_month(filled, NOVEMBER, path, content)
    assert row_of(filled, TOTALS) == (before[0] + 1, before[1] + 7, before[2])
    assert row_of(filled, DAILY)[1] == before[1] + 7
    known = registered(filled, NOVEMBER)
    assert known is not None
    assert known.state == KEPT


@pytest.mark.parametrize("point", POINTS)
def test_a_drop_that_is_killed_is_gone_on_with(
    filled: Client, address: LedgerAddress, tmp_path: Path, point: str
) -> None:
    before, counted = row_of(filled, TOTALS), accepted(filled)
    command = [sys.executable, "-c", DROP, url_of(address), str(tmp_path)]
    killed = subprocess.run(
        command, env={**os.environ, "FAULT_POINT": f"drop-{point}:1"}, timeout=120, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    content = read_back(tmp_path / "usage_ledger-2026-11.parquet")
    there = row_of(filled, TOTALS)
    assert there[0] in (before[0], before[0] - content.rows)
    assert row_of(filled, DAILY)[1:] == there[1:]
    assert accepted(filled) == counted
    known = registered(filled, NOVEMBER)
    if known is None or known.state != DROPPED:
        subprocess.run(command, timeout=120, check=True)
    else:
        finish_interrupted(filled, NOVEMBER)
    assert row_of(filled, TOTALS)[:2] == (
        before[0] - content.rows,
        before[1] - content.cost_nano,
    )
    assert accepted(filled) == counted
    assert row_of(filled, DAILY)[1:] == row_of(filled, TOTALS)[1:]


def test_months_in_need_are_not_dropped(
    client: Client, address: LedgerAddress, tmp_path: Path
) -> None:
    today = date.today()
    client.command(
        "INSERT INTO ledger_entries (event_id, occurred_at, recorded_at, requests) VALUES "
        "('now', now64(6), now64(3), 1), ('late', '2026-01-05', now64(3), 1), "
        "('old', '2026-02-05', '2026-02-05', 1)"
    )
    client.command("INSERT INTO day_marks VALUES ('2026-02-05', 'x', 1, now64(3))")
    folder = tmp_path / "files"
    settings = Settings(
        clickhouse_url=url_of(address), kafka_bootstrap="127.0.0.1:9", data_dir=tmp_path / "data"
    )
    for month, why in (
        (f"{today:%Y-%m}", "budgets of the running month"),
        ("2026-01", "ids are remembered for 9 days"),
        ("2026-02", "one of its days is open"),
    ):
        with pytest.raises(Refused, match=f"{month} cannot be dropped: .*{why}"):
            export_months(settings, [parse_month(month)], folder, drop=True)
    assert not folder.exists()
    assert row_of(client, TOTALS)[0] == 3
    # Without --drop every month may be written, the running one as it is at the moment.
    found = export_months(settings, [parse_month(f"{today:%Y-%m}")], folder)
    assert [(one.rows, one.dropped) for one in found] == [(1, False)]


def test_a_second_drop_is_refused_while_one_goes_on(
    filled: Client, address: LedgerAddress, tmp_path: Path
) -> None:
    settings = Settings(
        clickhouse_url=url_of(address), kafka_bootstrap="127.0.0.1:9", data_dir=tmp_path / "data"
    )
    command = [sys.executable, "-m", "pipeline", "export", "2026-11", "--to", str(tmp_path)]
    environ = {**os.environ, **settings.environ()}
    before = row_of(filled, TOTALS)

    def drop() -> str:
        ended = subprocess.run(
            [*command, "--drop"],
            env=environ,
            timeout=120,
            check=False,
            capture_output=True,
            text=True,
        )
        assert ended.returncode == 1
        return ended.stderr

    first = subprocess.Popen(
        [*command, "--drop"], env={**environ, "FAULT_POINT": "export-alone:1:hang"}
    )
    try:
        lock = tmp_path / "data" / LOCK_NAME
        deadline = time.monotonic() + 60
        while not (lock.exists() and lock.read_text()):
            assert first.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        told = drop()
        assert "`tallyport export --drop` is already running" in told
        assert f"(process {first.pid}); run this again when it has ended" in told
        # Files alone may be written beside it.
        subprocess.run(command, env=environ, timeout=120, check=True, capture_output=True)
    finally:
        first.kill()
        first.wait(10)
    # The lock falls with the process; now the month itself decides.
    assert "2026-11 cannot be dropped" in drop()
    assert row_of(filled, TOTALS) == before

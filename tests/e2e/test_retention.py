"""Users are forgotten and months dropped on real parts, and audit and restore stay right."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.structs import TopicPartition

from pipeline.audit.run import run_audit
from pipeline.core.errors import Refused
from pipeline.core.names import Name
from pipeline.ledger.client import LedgerAddress, connect
from pipeline.ledger.day_marks import DayMarks
from pipeline.ledger.months import Month
from pipeline.ops import export
from pipeline.ops.export import export_months
from pipeline.ops.rebuild import rebuild
from pipeline.stream.name_log import edit_name, load_names
from pipeline.stream.tables import read_tables
from tests.e2e.metering import Metering
from tests.stream.worker_deployment import RATE, event

POLICIES: list[dict[str, Any]] = [
    {"scope": "user:user-1", "unit": "tokens", "period": "month", "hard_cap": 900_000},
    {"scope": "user:*", "unit": "cost", "period": "month", "hard_cap": "5"},
    {"scope": "port:*", "unit": "tokens", "period": "month", "hard_cap": 900_000},
]
STEPS = ["registered", "name", "policies", "states", "marked", "renamed", "marked-again", "entries"]
SUMS = "SELECT sum(requests), sum(cost_nano), sum(total_tokens) FROM {}"
USERS = "SELECT DISTINCT user_id FROM {} ORDER BY user_id"
WITH_ID = ("usage_ledger", "usage_daily", "rollup_daily", "rollup_users", "rollup_charges")


def old_month() -> Month:
    """The month four months ago."""
    today = date.today()
    number = today.year * 12 + today.month - 1 - 4
    return Month(number // 12, number % 12 + 1)


OLD = old_month()
OLD_DAY = f"{OLD}-15T12:00:00Z"


@pytest.fixture(scope="module")
def metering(
    kafka: str, module_ledger: LedgerAddress, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Metering]:
    """Events of today and of a month long past in the ledger; nothing runs."""
    found = Metering(kafka, module_ledger, tmp_path_factory.mktemp("metering"))
    try:
        asyncio.run(fill(found))
        yield found
    finally:
        found.end_all()


async def fill(metering: Metering) -> None:
    await metering.prepare()
    await metering.set_rate(**RATE)
    for policy in POLICIES:
        await metering.set_policy(**policy)
    metering.more = {"max_event_age_days": 200, "dedupe_days": 202}
    await metering.start()
    await metering.publish(event(n) for n in range(200))
    await metering.publish(event(n, occurred_at=OLD_DAY) for n in range(200, 300))
    await metering.held()
    await metering.until_query("SELECT uniqExact(key) FROM policy_records", [(3,)])
    await metering.stop()


def forget(metering: Metering, fault: str = "") -> subprocess.CompletedProcess[str]:
    return command(metering, "forget", "user:user-1", "--yes", fault=fault)


def command(metering: Metering, *words: str, fault: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *words, "--json"],
        env={**os.environ, **metering.settings.environ(), "FAULT_POINT": fault},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


async def agreed(metering: Metering) -> list[str]:
    """The notes of an audit that found no difference."""
    report = await run_audit(metering.settings)
    assert report.ok, report.lines()
    assert report.compared["cells"]
    return report.notes


async def test_a_user_is_forgotten_whatever_dies_and_later_events_as_well(
    metering: Metering,
) -> None:
    before = metering.query(SUMS.format("usage_ledger"))
    await metering.start()
    assert "user:user-1|tokens|month" in await metering.states()
    for scope in ("user:user-1", "user:user-2"):
        name = Name(scope, "Ann Example", "ann@example.com")
        await edit_name(metering.client, metering.topics, "test", scope, lambda _, it=name: it)
    for step in STEPS:
        ended = await asyncio.to_thread(forget, metering, f"forget-{step}:1")
        assert ended.returncode == -9, (step, ended.stderr)
        assert metering.query(SUMS.format("usage_daily")) == before
    ended = await asyncio.to_thread(forget, metering)
    assert ended.returncode == 0, ended.stderr
    result = json.loads(ended.stdout)
    pseudonym = result["pseudonym"]
    assert result["left"] == 0
    assert not any(key.startswith("user:user-1|") for key in await metering.states())
    assert metering.query("SELECT uniqExact(key) FROM policy_records") == [(2,)]
    assert [*(await load_names(metering.client, metering.topics)).names] == ["user:user-2"]
    # What is on its way is renamed, too: the sink learns of it while it writes.
    await metering.publish(event(n) for n in range(300, 400))
    await metering.held()
    users = {f"user-{n}" for n in range(7)} - {"user-1"} | {pseudonym}
    for table in WITH_ID:
        found = {str(user) for (user,) in metering.query(USERS.format(table))}
        assert found <= users, table
    requests = sum(one["user_id"] == "user-1" for one in metering.sent)
    of_user = f"SELECT sum(requests) FROM usage_daily WHERE user_id = '{pseudonym}'"
    assert metering.query(of_user) == [(requests,)]
    assert "1 users are forgotten: their states not compared" in await agreed(metering)
    again = json.loads((await asyncio.to_thread(forget, metering)).stdout)
    assert (again["pseudonym"], again["entries"], again["policies"]) == (pseudonym, 0, [])
    await metering.stop()


async def test_a_month_leaves_once_nobody_needs_it_and_the_audit_knows(
    metering: Metering, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drop() -> list[export.ExportedMonth]:
        return export_months(metering.settings, [OLD], tmp_path, drop=True)

    written = await asyncio.to_thread(command, metering, "export", str(OLD), "--to", str(tmp_path))
    assert written.returncode == 0, written.stderr
    [plain] = json.loads(written.stdout)
    assert (plain["month"], plain["rows"], plain["dropped"]) == (str(OLD), 100, False)
    in_month = f"SELECT count() FROM usage_ledger WHERE toYYYYMM(occurred_at) = {OLD.number}"
    metering.more = {}
    with pytest.raises(Refused, match="ids are remembered for 9 days"):
        await asyncio.to_thread(drop)
    later_ms = int(time.time() + 40 * 86_400) * 1000
    monkeypatch.setattr(export, "_now_ms", lambda: later_ms)
    # Who rolls up closes a day once it is quiet; here somebody writes to it at this moment.
    await asyncio.to_thread(open_day, metering, date.fromisoformat(OLD_DAY[:10]))
    with pytest.raises(Refused, match="one of its days is open"):
        await asyncio.to_thread(drop)
    monkeypatch.setattr(export, "QUIET_S", 0)
    with pytest.raises(Refused, match="Kafka still has events of it"):
        await asyncio.to_thread(drop)
    await forget_log(metering)
    with pytest.raises(Refused, match="still has cells of it"):
        await asyncio.to_thread(drop)
    # Now events are younger: the tables let go of the days that no window needs.
    await metering.start()
    await metering.publish(event(n) for n in range(400, 500))
    await metering.held()
    await metering.stop()
    assert metering.query(in_month) == [(100,)]
    [month] = await asyncio.to_thread(drop)
    assert (month.rows, month.dropped) == (100, True)
    assert (month.digest, month.cost_nano) == (plain["digest"], plain["cost_nano"])
    assert metering.query(in_month) == [(0,)]
    assert metering.query(SUMS.format("usage_daily")) == metering.query(SUMS.format("usage_ledger"))
    await metering.start()
    notes = await agreed(metering)
    assert any(note.startswith(f"{OLD} was exported and dropped (100 entries") for note in notes)
    await metering.stop()
    with pytest.raises(Refused, match=r"was exported to .* and dropped on"):
        await asyncio.to_thread(drop)


def open_day(metering: Metering, day: date) -> None:
    client = connect(metering.ledger)
    try:
        DayMarks().before_change(client, [day])
    finally:
        client.close()


async def forget_log(metering: Metering) -> None:
    """Kafka deletes the events that are there, as its retention would."""
    topic = metering.topics.events
    tables = await read_tables(metering.client, metering.topics, list(range(metering.partitions)))
    ends = {partition: table.next_offset for partition, table in tables.items()}
    admin = AIOKafkaAdminClient(**metering.client)
    await admin.start()
    try:
        await admin.delete_records(
            {
                TopicPartition(topic, p): RecordsToDelete(before_offset=end)
                for p, end in ends.items()
            }
        )
    finally:
        await admin.close()


async def test_a_restore_goes_on_with_what_is_left(metering: Metering) -> None:
    cells = await metering.cells()
    new = metering.elsewhere(partitions=3)
    await new.prepare()
    try:
        await rebuild(new.settings)
        restored = await new.cells()
        days = {day for _, day in restored}
        recent = (datetime.now(UTC) - timedelta(days=2)).date().toordinal() - 719_163
        assert min(days) >= recent
        assert not any(scope == "user:user-1" for scope, _ in restored)
        for scope in ("all", "port:port-1", "org:org-0", "user:user-2"):
            found = {day: totals for (one, day), totals in restored.items() if one == scope}
            assert found == {d: t for (one, d), t in cells.items() if one == scope}
        await new.start()
        await new.publish([event(n) for n in range(500, 550)])
        await new.counted()
        await new.until_query("SELECT count() FROM usage_ledger", [(450,)])
        await agreed(new)
    finally:
        new.end_all()

"""The audit on real parts: what agrees passes, also in traffic; whatever is spoilt is found."""

import asyncio
import itertools
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.structs import TopicPartition
from clickhouse_connect.driver.client import Client

from pipeline.audit.differences import Kind
from pipeline.audit.fates import Block, Refusal
from pipeline.audit.kafka_side import Decisions, KafkaSide
from pipeline.audit.ledger_side import LedgerSide
from pipeline.audit.report import AuditReport
from pipeline.audit.run import Audit, run_audit
from pipeline.audit.state_log import StateLog, StateRecord
from pipeline.audit.tables import Table
from pipeline.careful_records import MAX_RECORD_BYTES
from pipeline.ledger.client import LedgerAddress, connect, ledger_reader
from pipeline.ledger.day_marks import DayMarks
from pipeline.ops.rebuild import rebuild
from producers.kafka import Publisher
from producers.simulator import simulate, steady
from tests.compressed_batches import Blanks, Given, send_zstd
from tests.e2e.metering import Metering

DEMO_TIMEOUT_S = 360.0
DAY_EVENTS = 1_500
PER_SECOND = 500
TRAFFIC_S = 3_600
"""Longer than any audit takes."""
BATCH = 25


def processes_that_mention(text: str) -> Iterator[str]:
    """Command lines of living processes with ``text`` in their arguments or environment."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            seen = (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
        except OSError:
            continue
        if text.encode() in seen and int(folder.name) != os.getpid():
            yield (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()


def test_demo_agrees_to_the_last_nano_and_leaves_nothing(tmp_path: Path) -> None:
    environ = {**os.environ, "TMPDIR": str(tmp_path), "TALLYPORT_DATA_DIR": str(tmp_path / "own")}
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "demo", "--json"],
        env=environ,
        capture_output=True,
        text=True,
        timeout=DEMO_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout.strip().splitlines()[-1])
    assert result["ok"]
    assert result["problems"] == []
    assert result["audit"]["compared"]["ledger rows"] == result["audit"]["fates"]["accepted"]
    crossed = {(t["budget"], t["status"]) for t in result["transitions"] if t["ms"] is not None}
    assert ("port:harbor-7|tokens|month", "soft-cap-exceeded") in crossed
    assert ("port:harbor-7|tokens|month", "hard-cap-exceeded") in crossed
    assert list(tmp_path.iterdir()) == []
    assert list(processes_that_mention(str(tmp_path))) == []


# -- one deployment that agrees, for everything below ----------------------------------------------


async def send_day(metering: Metering, seed: int) -> None:
    sent = simulate(seed, DAY_EVENTS, datetime.now(UTC), partitions=metering.partitions)
    async with Publisher(metering.client, metering.topics.events) as publisher:
        for one in sent:
            await publisher.send(one.value, one.key, one.headers, one.partition)
        await publisher.flush()
        assert (publisher.sent, publisher.failed) == (len(sent), 0)


async def _deploy(metering: Metering) -> None:
    await metering.prepare()
    await metering.start()
    empty = await run_audit(metering.settings, wait_s=2)
    assert Kind.NOTHING_COMPARED in {d.kind for d in empty.differences}
    await metering.set_policy(scope="all", unit="cost", period="month", hard_cap="1")
    await metering.set_policy(scope="user:*", unit="tokens", period="day", soft_cap=5_000)
    await send_day(metering, 1)
    too_large = [Given(b"a", Blanks(2 * MAX_RECORD_BYTES)), Given(b"a", b"no event")]
    await send_zstd(metering.client, metering.topics.events, 0, too_large)
    whole = await run_audit(metering.settings)
    assert whole.ok, whole.lines()
    assert min(whole.compared.values()) > 0, whole.compared


@pytest.fixture(scope="module")
def deployed(
    kafka: str,
    module_ledger: LedgerAddress,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Metering]:
    """Worker and sink that run, a day of usage, and an audit that agrees."""
    metering = Metering(kafka, module_ledger, tmp_path_factory.mktemp("audit"))
    try:
        asyncio.run(_deploy(metering))
        yield metering
    finally:
        metering.end_all()


@pytest.fixture
def ledger(deployed: Metering) -> Iterator[Client]:
    """A client that may write."""
    client = connect(deployed.ledger)
    yield client
    client.close()


# -- the ledger spoilt -----------------------------------------------------------------------------

Row = dict[str, Any]
Change = Callable[[Row], Row | None]
"""What stands in the ledger instead of a row; None for nothing."""

ROW_CHANGES: dict[str, tuple[Kind, Change]] = {
    "row": (Kind.ROW_MISSING, lambda row: None),
    "cost_nano": (Kind.ROW_CHANGED, lambda row: {**row, "cost_nano": row["cost_nano"] + 1}),
    "occurred_at_us": (
        Kind.ROW_CHANGED,
        lambda row: {**row, "occurred_at": row["occurred_at"] - timedelta(days=1)},
    ),
    "recorded_at_ms": (
        Kind.ROW_CHANGED,
        lambda row: {**row, "recorded_at": row["recorded_at"] + timedelta(milliseconds=1)},
    ),
    "user_id": (Kind.ROW_CHANGED, lambda row: {**row, "user_id": "somebody-else"}),
    "rate_id": (Kind.ROW_CHANGED, lambda row: {**row, "rate_id": "another"}),
    "currency": (Kind.ROW_CHANGED, lambda row: {**row, "currency": "EUR"}),
    "price_status": (Kind.ROW_CHANGED, lambda row: {**row, "price_status": "free"}),
    "estimated": (Kind.ROW_CHANGED, lambda row: {**row, "estimated": True}),
    "tags": (Kind.ROW_CHANGED, lambda row: {**row, "tags": {"a": "b"}}),
    "entry_no": (Kind.ROW_MISSING, lambda row: {**row, "entry_no": 3}),
    "service": (Kind.ROW_CHANGED, lambda row: {**row, "service": "other"}),
}


def delete_row(ledger: Client, row: Row) -> None:
    ledger.command(
        "ALTER TABLE ledger_entries DELETE WHERE port_id = {port:String} "
        "AND event_id = {event:String} SETTINGS mutations_sync = 2",
        parameters={"port": row["port_id"], "event": row["event_id"]},
    )


def insert_row(ledger: Client, row: Row) -> None:
    ledger.insert("ledger_entries", [list(row.values())], column_names=list(row))


async def test_each_changed_row_of_the_ledger_is_found(deployed: Metering, ledger: Client) -> None:
    found = ledger.query(
        "SELECT * FROM ledger_entries FINAL WHERE epoch = 1 AND cost_nano > 0 AND NOT estimated "
        "AND tags = map() AND source_partition = 1 ORDER BY source_offset LIMIT 40"
    )
    rows = [dict(zip(found.column_names, row, strict=True)) for row in found.result_rows]
    rows = rows[:: len(rows) // (len(ROW_CHANGES) + 1)]
    twice = {**rows[-1], "event_id": "a copy"}
    for row, (_, change) in zip(rows, ROW_CHANGES.values(), strict=False):
        delete_row(ledger, row)
        if (changed := change(row)) is not None:
            insert_row(ledger, changed)
    insert_row(ledger, twice)
    report = await run_audit(deployed.settings)
    delete_row(ledger, twice)
    for row in rows:
        delete_row(ledger, row)
        insert_row(ledger, row)
    # Days may have been rolled up as they were meanwhile.
    days = {row["occurred_at"].date() for row in rows}
    DayMarks().before_change(ledger, days | {day - timedelta(days=1) for day in days})

    seen = {(d.kind, d.offset): d for d in report.differences if d.part == "ledger"}
    for row, (what, (kind, _)) in zip(rows, ROW_CHANGES.items(), strict=False):
        difference = seen.pop((kind, row["source_offset"]))
        assert ("row" if kind is Kind.ROW_MISSING else what) in difference.what, difference.line
        assert difference.partition == 1
        assert difference.subject == f"port:{row['port_id']} event {row['event_id']}"
        assert difference.day == row["occurred_at"].date().isoformat()
        if what == "cost_nano":
            assert difference.amounts == {"cost_nano": 1}
        if kind is Kind.ROW_MISSING:
            assert difference.amounts["cost_nano"] == -row["cost_nano"]
    assert [(d.kind, d.offset) for d in seen.values()] == [
        (Kind.ROW_TWICE, rows[-1]["source_offset"])
    ]
    # What is no first entry is a correction, which nobody sent.
    [correction] = [d for d in report.differences if d.part == "corrections"]
    renumbered = rows[[*ROW_CHANGES].index("entry_no")]
    assert (correction.kind, correction.offset) == (
        Kind.ROW_UNEXPECTED, renumbered["source_offset"]
    )  # fmt: skip
    assert not report.ok


async def test_a_hole_in_the_manifests_is_found(deployed: Metering, ledger: Client) -> None:
    found = ledger.query("SELECT * FROM sink_manifests FINAL ORDER BY partition DESC LIMIT 1")
    run = dict(zip(found.column_names, found.result_rows[0], strict=True))
    ledger.command(
        "ALTER TABLE sink_manifests DELETE WHERE partition = {p:UInt32} "
        "AND first_offset = {first:Int64} SETTINGS mutations_sync = 2",
        parameters={"p": run["partition"], "first": run["first_offset"]},
    )
    report = await run_audit(deployed.settings, wait_s=1)
    ledger.insert("sink_manifests", [list(run.values())], column_names=list(run))
    found_kinds = {(d.kind, d.partition) for d in report.differences}
    assert found_kinds & {(Kind.MANIFEST_GAP, run["partition"]), (Kind.BEHIND, run["partition"])}


async def test_a_changed_row_of_usage_daily_is_found(deployed: Metering, ledger: Client) -> None:
    right = str(ledger.query("SHOW CREATE VIEW usage_daily").first_row[0])  # type: ignore[index]
    ledger.command(right.replace("CREATE VIEW", "CREATE OR REPLACE VIEW", 1).replace(
        "usage_daily", "usage_daily_right", 1))  # fmt: skip
    ledger.command(
        "CREATE OR REPLACE VIEW usage_daily AS SELECT * REPLACE "
        "(if(port_id = 'harbor-7', requests + 1, requests) AS requests) FROM usage_daily_right"
    )
    report = await run_audit(deployed.settings)
    ledger.command(right.replace("CREATE VIEW", "CREATE OR REPLACE VIEW", 1))
    ledger.command("DROP VIEW usage_daily_right")
    assert {(d.kind, d.subject) for d in report.differences} == {
        (Kind.DAILY_CHANGED, "port:harbor-7")
    }
    assert all(d.amounts == {"requests": 1} and d.day for d in report.differences)


# -- what Kafka holds, spoilt on its way to the audit ----------------------------------------------


class CellOneMore(KafkaSide):
    async def table(self, partition: int) -> Table:
        table = await super().table(partition)
        if partition != 1:
            return table
        (scope, day), cell = min((k, c) for k, c in table.cells.items() if k[0] > "port:")
        changed = {**table.cells, (scope, day): (cell[0] + 1, *cell[1:])}
        return replace(table, cells=changed)


class PartitionSkipped(KafkaSide):
    async def table(self, partition: int) -> Table:
        table = await super().table(partition)
        none = dict.fromkeys(table.counts, 0)
        return table if partition != 1 else replace(table, cells={}, counts=none)


class TableStandsStill(KafkaSide):
    async def table(self, partition: int) -> Table:
        table = await super().table(partition)
        return table if partition != 1 else Table(1, 0, {}, {})


class RulesMissing(KafkaSide):
    async def decisions(self, epoch: int) -> Decisions:
        found = await super().decisions(epoch)
        found.rules.pop(1)
        return found


class AnotherBook(KafkaSide):
    async def decisions(self, epoch: int) -> Decisions:
        found = await super().decisions(epoch)
        found.rules[1] = [rules._replace(book="0" * 64) for rules in found.rules[1]]
        return found


class RefusalMissing(KafkaSide):
    async def refusals(self, since_ms: int) -> AsyncIterator[Refusal]:
        lost = False
        async for refusal in super().refusals(since_ms):
            if refusal.partition == 1 and not lost:
                lost = True
                continue
            yield refusal


class BlockMissing(KafkaSide):
    async def blocks(
        self, epoch: int, start: Mapping[int, int]
    ) -> AsyncIterator[tuple[int, Block]]:
        lost = False
        async for offset, block in super().blocks(epoch, start):
            if block.partition == 1 and not lost and block.first_offset == 0:
                lost = True
                continue
            yield offset, block


class SpoiltStates(KafkaSide):
    """Every record of ``budget.state`` goes through ``spoil``, which gives what stands there."""

    def spoil(self, partition: int, record: StateRecord) -> list[StateRecord]:
        return [record]

    async def read_states(self, logs: Mapping[int, StateLog]) -> None:
        whole = {p: _Listening(p, log) for p, log in logs.items()}
        await super().read_states(whole)
        for partition, listening in whole.items():
            for record in listening.heard:
                logs[partition].feed(self.spoil(partition, record))


class _Listening(StateLog):
    def __init__(self, partition: int, log: StateLog) -> None:
        super().__init__(partition)
        self.next_offset = log.next_offset
        self.heard: list[StateRecord] = []

    def feed(self, records: Any) -> None:
        self.heard += records


class StateOneVersionOld(SpoiltStates):
    """The last state of ``all`` was never written: the one before it stands there."""

    last: StateRecord | None = None

    def spoil(self, partition: int, record: StateRecord) -> list[StateRecord]:
        if record.key != b"all|cost|month":
            return [record]
        before, self.last = self.last, record
        return [] if before is None else [before._replace(offset=record.offset)]


class VersionFalls(SpoiltStates):
    def spoil(self, partition: int, record: StateRecord) -> list[StateRecord]:
        if record.key != b"all|cost|month" or record.value is None:
            return [record]
        body = {**json.loads(record.value), "version": 1}
        return [record, record._replace(value=json.dumps(body).encode()), record]


class HeartbeatTooFar(SpoiltStates):
    def spoil(self, partition: int, record: StateRecord) -> list[StateRecord]:
        if record.key != b"!heartbeat|1":
            return [record]
        body = json.loads(record.value or b"")
        body["through"]["1"] += 10_000
        return [record._replace(value=json.dumps(body).encode()), record]


class StateMissing(SpoiltStates):
    def spoil(self, partition: int, record: StateRecord) -> list[StateRecord]:
        return [] if record.key == b"all|cost|month" else [record]


async def audit_spoilt(deployed: Metering, side: type[KafkaSide]) -> AuditReport:
    kafka = side(deployed.client, deployed.topics)
    epoch = await kafka.epoch()
    with ledger_reader(deployed.settings) as client:
        ledger = LedgerSide(client, deployed.topics.events, epoch.epoch)
        return await Audit(kafka, ledger, epoch, 1.5).run()


@pytest.mark.parametrize(
    ("side", "kind", "partition"),
    [
        (CellOneMore, Kind.TABLE_CELL, 1),
        (PartitionSkipped, Kind.TABLE_CELL, 1),
        (TableStandsStill, Kind.BEHIND, 1),
        (RulesMissing, Kind.RULES_MISSING, 1),
        (AnotherBook, Kind.NOT_VERIFIABLE, 1),
        (RefusalMissing, Kind.REFUSAL_MISSING, 1),
        (BlockMissing, Kind.BLOCK_GAP, 1),
        (StateOneVersionOld, Kind.STATE_CHANGED, None),
        (StateMissing, Kind.STATE_MISSING, None),
        (VersionFalls, Kind.STATE_VERSION, None),
        (HeartbeatTooFar, Kind.HEARTBEAT_AHEAD, 1),
    ],
)
async def test_what_is_spoilt_in_kafka_is_found(
    deployed: Metering, side: type[KafkaSide], kind: Kind, partition: int | None
) -> None:
    report = await audit_spoilt(deployed, side)
    found = [d for d in report.differences if d.kind is kind]
    assert found, report.lines()
    if partition is not None:
        assert {d.partition for d in found} == {partition}
    if kind is Kind.TABLE_CELL:
        assert all(d.day and d.subject and d.amounts for d in found)
    if kind is Kind.STATE_CHANGED:
        assert found[0].subject == "all|cost|month"


# -- in traffic, behind, and cut off ---------------------------------------------------------------


async def send_steadily(metering: Metering) -> None:
    pairs = steady(PER_SECOND * TRAFFIC_S, seed=9, end=datetime.now(UTC))
    async with Publisher(metering.client, metering.topics.events) as publisher:
        while await publisher.send_many(itertools.islice(pairs, BATCH)):  # noqa: ASYNC110
            await asyncio.sleep(BATCH / PER_SECOND)


async def test_three_audits_in_a_row_agree_in_traffic(deployed: Metering) -> None:
    traffic = asyncio.create_task(send_steadily(deployed))
    await asyncio.sleep(1)
    reached = 0
    try:
        for _ in range(3):
            report = await run_audit(deployed.settings)
            assert report.ok, report.lines()
            assert not traffic.done()
            assert sum(report.ranges["cut"].values()) > reached
            reached = sum(report.ranges["cut"].values())
    finally:
        traffic.cancel()
        await asyncio.wait([traffic])


async def test_a_ledger_that_is_behind_is_named(deployed: Metering) -> None:
    sink = next(part for part in deployed.parts if part.name == "sink")
    assert await sink.stopped() == 0
    await send_day(deployed, 2)
    behind = await run_audit(deployed.settings, wait_s=2)
    assert (Kind.BEHIND, "ledger") in {(d.kind, d.part) for d in behind.differences}
    await deployed.launch("sink").wait_ready()
    caught_up = await run_audit(deployed.settings)
    assert caught_up.ok, caught_up.lines()


async def test_after_a_rebuild_older_logs_count_by_the_ledger(deployed: Metering) -> None:
    new = deployed.elsewhere(partitions=2)
    try:
        await new.prepare()
        await rebuild(new.settings)
        await new.start()
        restored = await run_audit(new.settings)
        assert restored.ok, restored.lines()
        assert restored.compared["cells"] > 100
        assert restored.compared["states"] > 10
        await send_day(new, 1)
        repeated = await run_audit(new.settings)
        assert repeated.ok, repeated.lines()
        assert repeated.fates["duplicates"] > DAY_EVENTS // 2
        spoilt = await audit_spoilt(new, CellOneMore)
        assert [d.kind for d in spoilt.differences] == [Kind.TABLE_CELL]
        await new.stop()
    finally:
        new.end_all()


async def test_where_kafka_has_deleted_events_the_ledger_counts(deployed: Metering) -> None:
    """Last: the log of this deployment begins later from here on."""
    admin = AIOKafkaAdminClient(**deployed.client)
    await admin.start()
    try:
        places = {TopicPartition(deployed.topics.events, p): 400 for p in range(2)}
        await admin.delete_records({tp: RecordsToDelete(o) for tp, o in places.items()})
    finally:
        await admin.close()
    report = await run_audit(deployed.settings)
    assert report.ok, report.lines()
    assert report.ranges["events in Kafka"][1][0] == 400
    assert report.ranges["with the ledger only"][1][1] > 400
    assert report.compared["cells"] > 100
    assert report.compared["states"] > 10
    spoilt = await audit_spoilt(deployed, CellOneMore)
    assert [d.kind for d in spoilt.differences] == [Kind.TABLE_CELL]

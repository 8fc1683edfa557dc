"""A Kafka that is lost continues from the ledger: totals, policies, rates, ids, versions."""

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer

from pipeline.audit.run import run_audit
from pipeline.core.errors import Refused
from pipeline.endpoints import read_endpoints
from pipeline.ledger.client import LedgerAddress, ledger_reader
from pipeline.ops.rebuild import rebuild, restore_is_due
from pipeline.ops.tether import tethered
from pipeline.settings import Settings
from pipeline.stream import remains
from pipeline.stream.epoch import read_epoch
from pipeline.stream.merging import VERSION_BITS
from pipeline.stream.policy_log import load_policies
from pipeline.stream.rate_log import load_rates
from pipeline.stream.reader import read_to_end
from tests.day_fixture import within_one_day
from tests.e2e.metering import LEAD_S, Metering
from tests.processes import WAIT_S
from tests.stream.worker_deployment import RATE, SETTING_S, event

POLICIES: list[dict[str, Any]] = [
    {"scope": "all", "unit": "cost", "period": "month", "hard_cap": "1"},
    {"scope": "user:*", "unit": "tokens", "period": "day", "soft_cap": 500},
    {"scope": "port:*", "unit": "tokens", "period": "rolling-30d", "hard_cap": 5_000},
    {"scope": "port:port-1", "unit": "tokens", "period": "rolling-30d", "hard_cap": 900_000},
    {"scope": "org:org-0", "unit": "cost", "period": "week", "soft_cap": "0.001"},
]
DELETED = {"scope": "group:gone", "unit": "tokens", "period": "day", "hard_cap": 5}
RECORDED = """
SELECT (SELECT count() FROM rate_records), (SELECT count() FROM (
    SELECT key, argMax(value, (epoch, offset)) AS value FROM policy_records
    GROUP BY key HAVING value != ''))
"""
FILLED_S = 240.0
"""As long as it may take to fill, and to compare the day's states with another Kafka's."""
FAULTS = ("begun", "joined", "registers", "ids", "tables", "verified")


@pytest.fixture(scope="module")
def filled(
    kafka: str, module_ledger: LedgerAddress, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Metering]:
    """Policies, rates and events of two days, all of it in the ledger; nothing runs."""
    within_one_day(FILLED_S)
    metering = Metering(kafka, module_ledger, tmp_path_factory.mktemp("metering"))
    try:
        asyncio.run(fill(metering))
        yield metering
    finally:
        metering.end_all()


async def fill(metering: Metering) -> None:
    await metering.prepare()
    await metering.set_rate(**RATE)
    await metering.set_rate(**{**RATE, "rate_id": "too-early", "backdated": False})
    for policy in (*POLICIES, DELETED):
        await metering.set_policy(**policy)
    await metering.put(metering.topics.policies, "group:gone|tokens|day", None)
    await metering.start()
    # In time when it is set, past when it is used.
    applies_at = datetime.now(UTC) + timedelta(seconds=LEAD_S + SETTING_S)
    late = {**RATE, "rate_id": "later", "provider": "acme-2", "backdated": False}
    await metering.set_rate(**{**late, "effective_from": applies_at.isoformat()})
    yesterday = (datetime.now(UTC) - timedelta(days=1)).isoformat()
    await metering.publish(event(n, group_id=f"g{n % 3}") for n in range(300))
    await metering.publish(event(n, occurred_at=yesterday) for n in range(300, 400))
    await metering.publish(event(n, model="m-9") for n in range(400, 420))
    # An invalid record: the policy that was there stays in force.
    await metering.put(metering.topics.policies, "org:org-0|cost|week", b"{")
    await metering.held()
    await metering.until_query(RECORDED, [(3, len(POLICIES))])
    await metering.stop()


async def policies_of(metering: Metering) -> dict[str, Any]:
    return (await load_policies(metering.client, metering.topics)).policies


async def rates_of(metering: Metering) -> tuple[list[Any], list[tuple[str, str]]]:
    found = await load_rates(metering.client, metering.topics.rates, LEAD_S)
    return [used.rate for used in found.used], [(i.rate_id, i.reason) for i in found.ignored]


async def applies(metering: Metering, rate_id: str) -> None:
    """Returns once the rate applies."""
    used = (await load_rates(metering.client, metering.topics.rates, LEAD_S)).used
    [since_us] = [one.rate.effective_from_us for one in used if one.rate.rate_id == rate_id]
    await asyncio.sleep(since_us / 1e6 - time.time())


async def test_another_kafka_continues_what_the_ledger_holds(filled: Metering) -> None:
    old = filled
    cells, states = await old.cells(), await old.states()
    assert cells == old.expected_cells()
    new = old.elsewhere(partitions=3)
    try:
        await new.prepare()
        # Producers came back first: an event the ledger has, and one it has not.
        await new.publish([event(5, occurred_at=old.sent[5]["occurred_at"])], counted=False)
        await new.publish([event(1_000)])
        worker = new.launch("worker")
        assert await worker.ended() == 1
        assert "Run `tallyport rebuild`" in worker.printed
        new.parts.clear()

        foreseen = await rebuild(new.settings, dry_run=True)
        assert await read_epoch(new.client, new.topics) is None
        report = await rebuild(new.settings)
        assert (report.entries, report.ids, report.cells) == (420, 420, len(cells))
        assert (report.policies, report.rates) == (len(POLICIES), 3)
        assert (foreseen.cells, foreseen.ids) == (report.cells, report.ids)
        assert [held.kept_from for held in report.unheld] == [None, None]
        assert await new.cells() == cells
        assert await policies_of(new) == await policies_of(old)
        assert await rates_of(new) == await rates_of(old)

        await new.start()
        await new.held()
        assert await new.cells() == new.expected_cells()
        fates = await new.fates()
        assert (fates["accepted"], fates["duplicates"]) == (1, 1)

        # A producer that sends everything again is counted once; what is new counts on top.
        await new.publish(old.sent, counted=False)
        await new.publish(event(n) for n in range(1_001, 1_051))
        await applies(new, "later")
        await new.publish([event(2_000, provider="acme-2")])
        await new.counted()
        fates = await new.fates()
        assert (fates["accepted"], fates["rejected"]) == (52, 0)
        found = await new.states()
        assert found.keys() == states.keys()
        assert all(state["version"] >> VERSION_BITS == report.epoch for state in found.values())
        versions = {key: state["version"] for key, state in states.items()}
        assert all(state["version"] > versions[key] for key, state in found.items())
        sql = "SELECT rate_id FROM usage_ledger WHERE event_id = 'e2000'"
        await new.until_query(sql, [("later",)])
        await new.held()
        assert await new.cells() == new.expected_cells()
        await agrees(new)
        await new.stop()
    finally:
        new.end_all()


async def agrees(metering: Metering) -> None:
    audit = await run_audit(metering.settings)
    assert audit.ok, audit.lines()


async def test_killed_at_every_step_it_is_finished_by_the_next(filled: Metering) -> None:
    new = filled.elsewhere(partitions=2)
    try:
        assert not await restore_is_due(filled.settings)
        await new.prepare()
        assert await restore_is_due(new.settings)
        for fault in FAULTS:
            killed = new.launch("rebuild", f"rebuild-{fault}:1")
            assert await killed.ended() == -9, killed.printed
            assert await restore_is_due(new.settings)
        worker = new.launch("worker")
        assert await worker.ended() == 1
        assert "has not finished; run `tallyport rebuild`" in worker.printed
        # What somebody has set meanwhile is not overwritten.
        await new.set_policy(**{**POLICIES[0], "hard_cap": "77"})

        finished = new.launch("rebuild", "rebuild-ready:1")
        assert await finished.ended() == -9, finished.printed
        assert not await restore_is_due(new.settings)
        new.parts.clear()
        assert await new.cells() == new.expected_cells()
        assert await rates_of(new) == await rates_of(filled)
        assert await records_in(new, new.topics.rates) == 3
        assert await records_in(new, new.topics.policies) == len(POLICIES) + 1
        policies = await policies_of(new)
        assert policies.pop("all|cost|month").hard_cap == 77 * 10**9
        assert policies.items() <= (await policies_of(filled)).items()
        with pytest.raises(Refused, match="nothing to restore"):
            await rebuild(new.settings)

        await new.start()
        await new.publish(filled.sent[:50], counted=False)
        await new.counted()
        assert await new.cells() == new.expected_cells()
        await new.stop()
    finally:
        new.end_all()


async def records_in(metering: Metering, topic: str) -> int:
    return sum([len(records) async for records in read_to_end(metering.client, topic)])


async def test_tables_lost_beside_events_that_are_kept(
    filled: Metering, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = filled.elsewhere(partitions=2)
    try:
        await new.prepare()
        await rebuild(new.settings)
        worker, sink = new.launch("worker"), new.launch("sink")
        await worker.wait_ready()
        await new.publish(event(n) for n in range(3_000, 3_100))
        await new.held()
        # Rows show before their manifest; without any the ledger would not know this log.
        manifests = "SELECT uniqExact(partition) FROM sink_manifests WHERE topic = "
        await new.until_query(f"{manifests}'{new.topics.events}'", [(2,)])
        # What only the worker has taken, then what nobody has: the ledger ends before both.
        await sink.killed()
        new.parts.remove(sink)
        await new.publish(event(n) for n in range(3_100, 3_200))
        await new.put(new.topics.events, "port-1", b"{")
        await new.counted()
        monkeypatch.setattr(remains, "GROUPS_TIMEOUT_S", 0.5)
        with pytest.raises(Refused, match="still has 1 members"):
            await rebuild(new.settings, discard=True)
        await worker.killed()
        new.parts.clear()
        await new.publish(event(n) for n in range(3_200, 3_300))

        with pytest.raises(Refused, match="rebuild --discard-tables"):
            await rebuild(new.settings)
        monkeypatch.setattr(remains, "GROUPS_TIMEOUT_S", 30)
        before = await read_epoch(new.client, new.topics)
        assert before is not None
        await discard_killed_at(new, "rebuild-tables-deleted")
        worker = new.launch("worker")
        assert await worker.ended() == 1
        printed = worker.printed
        assert "was recreated" in printed
        assert "rebuild --discard-tables" in printed, printed
        new.parts.clear()
        await discard_killed_at(new, "rebuild-epoch-deleted")

        report = await rebuild(new.settings)
        assert report.epoch == before.epoch + 1
        assert (report.policies, report.rates, report.unheld) == (0, 0, [])
        assert report.starts == await asyncio.to_thread(manifest_ends, new)
        await new.start()
        await new.held()
        assert await new.cells() == new.expected_cells()
        sql = "SELECT count(), uniqExact(port_id, event_id) FROM usage_ledger"
        assert await asyncio.to_thread(new.query, sql) == [(len(new.sent), len(new.sent))]
        assert await rates_of(new) == await rates_of(filled)
        await agrees(new)
        await new.stop()
    finally:
        new.end_all()


def manifest_ends(metering: Metering) -> dict[int, int]:
    """A partition has none where the sink was killed between its rows and their manifest."""
    sql = "SELECT partition, max(next_offset) FROM sink_manifests WHERE topic = "
    rows = metering.query(f"{sql}'{metering.topics.events}' GROUP BY partition")
    return {int(partition): int(next_offset) for partition, next_offset in rows}


async def discard_killed_at(metering: Metering, fault: str) -> None:
    part = metering.launch("rebuild --discard-tables", f"{fault}:1")
    assert await part.ended() == -9, part.printed
    metering.parts.remove(part)


async def test_nothing_to_restore_is_an_error(kafka: str, empty_ledger: LedgerAddress) -> None:
    metering = Metering(kafka, empty_ledger, Path("unused"))
    assert not await restore_is_due_on_fresh(metering)
    with pytest.raises(Refused, match="never been written"):
        await rebuild(metering.settings)


async def restore_is_due_on_fresh(metering: Metering) -> bool:
    await metering.prepare()
    return await restore_is_due(metering.settings)


async def test_a_dry_run_of_the_command_prints_json(filled: Metering) -> None:
    new = filled.elsewhere(partitions=2)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "pipeline", "rebuild", "--dry-run", "--json"),
        env={**os.environ, **new.settings.environ()},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), WAIT_S)
    assert process.returncode == 0, err
    found = json.loads(out)
    assert found["dry_run"]
    assert found["policies"] == len(POLICIES)
    assert found["entries"] >= 420


def test_up_restores_an_empty_kafka_by_itself(tmp_path: Path) -> None:
    with up(tmp_path, "first") as (process, _):
        running = read_endpoints(tmp_path)
        assert running.kafka is not None
        asyncio.run(send(running.kafka, range(200)))
        taken_in(tmp_path, 200)
        process.terminate()
        assert process.wait(WAIT_S) == 0
    shutil.rmtree(tmp_path / "kafka")
    with up(tmp_path, "second") as (process, errors):
        running = read_endpoints(tmp_path)
        assert running.kafka is not None
        asyncio.run(send(running.kafka, range(150, 250)))
        deadline_s = time.monotonic() + WAIT_S
        while len(lines := errors.read_text().splitlines()) < 2:
            assert time.monotonic() < deadline_s, lines
            time.sleep(0.1)
        assert "restored epoch 2 from 200 ledger entries" in lines[0]
        assert lines[1:] == ["tallyport: audit: everything agrees"]
        taken_in(tmp_path, 250)


@contextlib.contextmanager
def up(folder: Path, name: str) -> Iterator[tuple["subprocess.Popen[str]", Path]]:
    """``tallyport up`` on ``folder``, ready; and the file of its standard error."""
    ports = {f"TALLYPORT_{part}_PORT": "0" for part in ("KAFKA", "LEDGER", "API")}
    errors = folder / f"{name}.err"
    with errors.open("w") as stderr:
        process = subprocess.Popen(
            tethered([sys.executable, "-m", "pipeline", "up"]),
            env={**os.environ, **ports, "TALLYPORT_DATA_DIR": str(folder)},
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("ready "), errors.read_text()
        yield process, errors
    finally:
        process.terminate()
        process.wait(WAIT_S)
        process.stdout.close()


async def send(bootstrap: str, numbers: range) -> None:
    async with AIOKafkaProducer(bootstrap_servers=bootstrap) as producer:
        for number in numbers:
            one = event(number)
            key = one["port_id"].encode()
            await producer.send_and_wait("usage.events", json.dumps(one).encode(), key)


def taken_in(folder: Path, rows: int) -> None:
    """Waits until the ledger has so many rows, and no more."""
    deadline_s = time.monotonic() + WAIT_S
    with ledger_reader(Settings(data_dir=folder)) as client:
        while (found := client.query("SELECT count() FROM usage_ledger").first_row) != (rows,):
            assert time.monotonic() < deadline_s, found
            time.sleep(0.1)

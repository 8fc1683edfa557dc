"""A kill between two steps loses and doubles no correction, and the audit sees what is false."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pipeline.audit.run import run_audit
from pipeline.ledger.client import connect
from pipeline.ledger.columns import LEDGER_COLUMNS
from tests.corrections.desk import Desk
from tests.group_members import forget_dead_members
from tests.processes import PartProcess
from tests.stream.worker_deployment import RATE, event

RESOLVER_FAULTS = [
    "resolver-taken",
    "resolver-waits",
    "resolver-judged",
    "price-sent",
    "price-acked",
    "resolver-committed",
]
SIGKILLED = -9


def bodies(port_id: str) -> list[dict[str, Any]]:
    """An amend, a repeat, one of an unknown event, and a void that depends on the amend."""
    common = {"port_id": port_id, "event_id": "e1", "reason": "r"}
    amend = {"correction_id": f"{port_id}-1", "kind": "amend", "counts": {"input_tokens": 5}}
    return [
        {**common, **amend},
        {**common, **amend},
        {**common, "correction_id": f"{port_id}-2", "kind": "void", "event_id": "never"},
        {**common, "correction_id": f"{port_id}-3", "kind": "void"},
    ]


async def relaunch(desk: Desk, part: PartProcess, fault: str = "") -> PartProcess:
    """Another process in the place of one that has ended, the only one of its group."""
    desk.parts.remove(part)
    topics = desk.topics
    group = topics.sink_group if part.name == "sink" else topics.worker_group
    await forget_dead_members(desk.client, group)
    new = desk.launch(part.name, fault)
    await new.ready_or_ended()
    return new


async def assert_corrected_once(desk: Desk, port_id: str, place: tuple[int, int]) -> None:
    rows = await desk.entries(port_id, "e1", 3)
    assert [row["input_tokens"] for row in rows] == [50, -45, -5]
    assert [row["requests"] for row in rows] == [1, 0, -1]
    assert dict((await desk.refused(place)).headers)["reason"] == b"unknown-event"
    await desk.assert_sums_agree()


@pytest.mark.parametrize("fault", RESOLVER_FAULTS)
async def test_the_resolver_is_killed_between_two_steps(desk: Desk, fault: str) -> None:
    port_id = f"killed-at-{fault}"
    await desk.count(event(1, event_id="e1", port_id=port_id, input_tokens=50))
    sink = next(part for part in desk.parts if part.name == "sink")
    assert await sink.stopped() == 0
    sink = await relaunch(desk, sink, f"{fault}:1")
    places = await desk.correct(*bodies(port_id))
    assert await sink.ended() == SIGKILLED
    await relaunch(desk, sink)
    await assert_corrected_once(desk, port_id, places[2])


@pytest.mark.parametrize("fault", ["price-taken", "corrections-committed"])
async def test_the_worker_is_killed_with_corrections_in_hand(desk: Desk, fault: str) -> None:
    port_id = f"killed-at-{fault}"
    await desk.count(event(1, event_id="e1", port_id=port_id, input_tokens=50))
    worker = next(part for part in desk.parts if part.name == "worker")
    assert await worker.stopped() == 0
    worker = await relaunch(desk, worker, f"{fault}:1")
    await worker.wait_ready()
    places = await desk.correct(*bodies(port_id))
    assert await worker.ended() == SIGKILLED
    await relaunch(desk, worker)
    await assert_corrected_once(desk, port_id, places[2])


async def test_a_bulk_correction_that_is_killed_is_run_again(desk: Desk) -> None:
    await desk.count(
        *(event(n, event_id=f"e{n}", port_id="again", model="m-8") for n in range(5)),
    )
    await desk.set_rate(**{**RATE, "rate_id": "eight", "model": "m-8"})
    day = datetime.now(UTC).date()
    command = f"reprice --port-id again --from {day - timedelta(1)} --to {day + timedelta(2)}"
    killed = desk.launch(command, "reprice-page-sent:1")
    assert await killed.ended() == SIGKILLED
    again = desk.launch(command)
    assert await again.ended() == 0, again.printed
    desk.parts.remove(killed)
    desk.parts.remove(again)
    for n in range(5):
        rows = await desk.entries("again", f"e{n}", 2)
        assert [row["rate_id"] for row in rows] == ["", "eight"]
    await desk.assert_sums_agree()


async def test_the_audit_agrees_and_then_finds_what_was_made_false(desk: Desk) -> None:
    await desk.count(event(1, event_id="e9", port_id="honest", input_tokens=50))
    await desk.assert_audited()
    port_id = f"killed-at-{RESOLVER_FAULTS[0]}"
    await asyncio.to_thread(plant, desk, port_id)
    report = await run_audit(desk.settings, wait_s=1)
    found = {(d.kind, d.what) for d in report.differences if d.part == "corrections"}
    assert {
        ("row-changed", "entry 1"),
        ("row-unexpected", "entry 1"),
        ("row-missing", "record"),
    } <= {(str(kind), what) for kind, what in found}, report.to_json()


def plant(desk: Desk, port_id: str) -> None:
    """A nano more, an entry that nobody asked for, and one that is gone."""
    client = connect(desk.ledger)
    forged = {"entry_no": "1", "correction_id": "'forged'", "requests": "0"}
    changed = {"cost_nano": "cost_nano + 1"}
    for values, where in (
        (changed, f"port_id = '{port_id}' AND entry_no = 1"),
        (forged, "port_id = 'honest' AND entry_no = 0"),
    ):
        columns = ", ".join(values.get(column, column) for column in LEDGER_COLUMNS)
        client.command(
            f"INSERT INTO ledger_entries ({', '.join(LEDGER_COLUMNS)}) "
            f"SELECT {columns} FROM ledger_entries WHERE {where}"
        )
    gone = f"killed-at-{RESOLVER_FAULTS[1]}"
    client.command(
        f"ALTER TABLE ledger_entries DELETE WHERE port_id = '{gone}' AND entry_no = 2",
        settings={"mutations_sync": 1},
    )
    client.close()

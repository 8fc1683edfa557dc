"""Corrections on real parts: each becomes one entry, and moves tables and budgets by its deltas."""

import asyncio
import itertools
import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.corrections.desk import Desk
from tests.processes import WAIT_S
from tests.stream.worker_deployment import RATE, event


def body(kind: str, correction_id: str, **more: Any) -> dict[str, Any]:
    return {
        "correction_id": correction_id,
        "port_id": "port-a",
        "event_id": "e1",
        "kind": kind,
        "reason": "a test",
        **more,
    }


async def test_each_kind_becomes_one_entry_with_deltas(desk: Desk) -> None:
    await desk.count(
        event(1, event_id="e1", port_id="kinds", input_tokens=100, output_tokens=10),
        event(1, event_id="e2", port_id="kinds", input_tokens=7, output_tokens=1),
    )
    cost = 100 * 1_000 + 10 * 2_000
    [place, *_] = await desk.correct(
        body("amend", "k1", port_id="kinds", counts={"input_tokens": 60}),
        body("reprice", "k2", port_id="kinds", rate_id="higher"),
        body("amend", "k3", port_id="kinds", counts={"output_tokens": 20}),
        body("reprice", "k4", port_id="kinds", rate_id="test-rate*half"),
        body("amend", "k5", port_id="kinds", counts={"input_tokens": 100, "output_tokens": 10}),
        body("reprice", "k6", port_id="kinds", rate_id="test-rate"),
    )
    rows = await desk.entries("kinds", "e1", 7)
    assert [row["entry_no"] for row in rows] == list(range(7))
    costs = [cost, 80_000, 800_000, 1_000_000, 50_000, 60_000, 120_000]
    deltas = [costs[0], *(b - a for a, b in itertools.pairwise(costs))]
    assert [row["cost_nano"] for row in rows] == deltas
    assert [row["input_tokens"] for row in rows] == [100, -40, 0, 0, 0, 40, 0]
    assert [row["output_tokens"] for row in rows] == [10, 0, 0, 10, 0, -10, 0]
    assert [row["requests"] for row in rows] == [1, 0, 0, 0, 0, 0, 0]
    rates = ["test-rate", "test-rate", "higher", "higher", *["test-rate*half"] * 2, "test-rate"]
    assert [row["rate_id"] for row in rows] == rates
    assert {row["occurred_at"] for row in rows} == {rows[0]["occurred_at"]}
    assert (rows[1]["correction_id"], rows[1]["correction_reason"]) == ("k1", "a test")
    assert rows[1]["source_topic"] == desk.topics.corrections
    assert (rows[1]["source_partition"], rows[1]["source_offset"]) == place
    await desk.correct(body("void", "k7", port_id="kinds"))
    void = (await desk.entries("kinds", "e1", 8))[7]
    assert (void["requests"], void["total_tokens"], void["cost_nano"]) == (-1, -110, -cost)
    await desk.assert_sums_agree()
    await desk.until_state("port:kinds|cost|month", used="0.000009")


REFUSED: list[tuple[str, dict[str, Any] | bytes]] = [
    ("too-large", b'{"pad":"' + b"x" * 65_536 + b'"}'),
    ("malformed-json", b'{"kind":'),
    ("not-an-object", b'["void"]'),
    ("missing-field", {"correction_id": "r1", "port_id": "refused", "event_id": "e1"}),
    ("wrong-type", body("void", "r2", port_id="refused", event_id=7)),
    ("out-of-range", body("undo", "r3", port_id="refused")),
    ("inconsistent-tokens", body("amend", "r4", port_id="refused", counts={"input_tokens": 0})),
    ("unknown-event", body("void", "r5", port_id="refused", event_id="never")),
    ("unknown-rate", body("reprice", "r6", port_id="refused", rate_id="none")),
    ("wrong-currency", body("reprice", "r7", port_id="refused", rate_id="foreign")),
    ("wrong-currency", body("void", "r8", port_id="refused", currency="EUR")),
]


async def test_what_cannot_be_carried_out_is_rejected_as_it_came(desk: Desk) -> None:
    await desk.count(
        event(1, event_id="e1", port_id="refused", cached_input_tokens=5),
        event(1, event_id="e2", port_id="refused"),
    )
    places = await desk.correct(*(sent for _, sent in REFUSED), partition=0)
    for (reason, sent), place in zip(REFUSED, places, strict=True):
        record = await desk.refused(place)
        added = dict(record.headers)
        assert added["reason"] == reason.encode(), added["detail"]
        assert record.headers[0] == ("sent-by", b"\x00a test")
        assert record.value == (sent if isinstance(sent, bytes) else json.dumps(sent).encode())
    # What was refused claims no id, and a void event stays void.
    [first, second] = await desk.correct(
        body("void", "r5", port_id="refused", event_id="e2"),
        body("amend", "r9", port_id="refused", event_id="e2", counts={"input_tokens": 1}),
    )
    assert dict((await desk.refused(second)).headers)["reason"] == b"already-void"
    rows = await desk.entries("refused", "e2", 2)
    assert [row["requests"] for row in rows] == [1, -1]
    assert (rows[1]["source_partition"], rows[1]["source_offset"]) == first
    assert len(await desk.entries("refused", "e1", 1)) == 1


async def test_the_first_of_an_id_wins(desk: Desk) -> None:
    await desk.count(
        event(1, event_id="e1", port_id="twice", input_tokens=50),
        event(1, event_id="e2", port_id="twice", input_tokens=50),
    )
    one = body("amend", "t1", port_id="twice", counts={"input_tokens": 40})
    other = body("amend", "t1", port_id="twice", event_id="e2", counts={"input_tokens": 1})
    await desk.correct(one, one, other)
    await desk.entries("twice", "e1", 2)
    await desk.correct(one, other, body("void", "t2", port_id="twice", event_id="e2"))
    rows = await desk.entries("twice", "e2", 2)
    assert [row["correction_id"] for row in rows] == ["", "t2"]
    assert [row["input_tokens"] for row in await desk.entries("twice", "e1", 2)] == [50, -10]


async def test_a_correction_waits_for_its_event(desk: Desk) -> None:
    """Sent behind its event, at once: the event is not in the ledger yet, or not even at home."""
    late = [event(n, event_id=f"e{n}", port_id=f"soon-{n}", input_tokens=100) for n in range(10)]
    await desk.publish(late)
    places = await desk.correct(
        *(body("void", f"s{n}", port_id=f"soon-{n}", event_id=f"e{n}") for n in range(10))
    )
    for n in range(10):
        rows = await desk.entries(f"soon-{n}", f"e{n}", 2)
        assert [row["requests"] for row in rows] == [1, -1]
    assert not set(places) & {
        (int(h["source-partition"]), int(h["source-offset"]))
        for h in (dict(record.headers) for record in await desk.refusals())
    }


async def test_corrections_one_after_another_build_on_each_other(desk: Desk) -> None:
    """The second comes at any moment on the way of the first one into the ledger."""
    names = [f"e{n}" for n in range(6)]
    await desk.count(*(event(1, event_id=e, port_id="chain", input_tokens=100) for e in names))
    for number, name in enumerate(names):
        first = body("amend", f"a-{name}", port_id="chain", event_id=name,
                     counts={"input_tokens": 60})  # fmt: skip
        await desk.correct(first)
        await asyncio.sleep(number * 0.15)
        await desk.correct(body("void", f"v-{name}", port_id="chain", event_id=name))
    for name in names:
        rows = await desk.entries("chain", name, 3)
        assert [row["entry_no"] for row in rows] == [0, 1, 2]
        assert [row["input_tokens"] for row in rows] == [100, -40, -60]
    await desk.assert_sums_agree()


async def test_a_budget_comes_back_below_its_cap(desk: Desk) -> None:
    await desk.set_policy(scope="port:capped", unit="tokens", period="month", hard_cap=100)
    await desk.count(
        event(1, event_id="e1", port_id="capped", input_tokens=90, output_tokens=0),
        event(1, event_id="e2", port_id="capped", input_tokens=20, output_tokens=0),
    )
    key = "port:capped|tokens|month"
    await desk.until_state(key, used=110, status="hard-cap-exceeded")
    await desk.correct(body("void", "b1", port_id="capped"))
    await desk.until_state(key, used=20, status="ok", remaining=80)


async def test_a_late_day_is_summed_anew(desk: Desk) -> None:
    """A correction restates the day of its event, also when that day was rolled up."""
    past = (datetime.now(UTC) - timedelta(days=3)).isoformat()
    await desk.count(event(1, event_id="e1", port_id="past", occurred_at=past, input_tokens=70))
    sql = (
        "SELECT sum(requests), sum(input_tokens) FROM usage_daily WHERE port_id = 'past' "
        "AND date < today()"
    )
    await desk.until_query(sql, [(1, 70)])
    await desk.correct(body("amend", "p1", port_id="past", counts={"input_tokens": 30}))
    await desk.until_query(sql, [(1, 30)])
    runs = (
        f"SELECT count() > 0 FROM sink_manifests WHERE topic = '{desk.topics.resolved}' "
        f"AND has(days, toDate('{past[:10]}'))"
    )
    await desk.until_query(runs, [(True,)])  # the run is written after its rows
    await desk.assert_sums_agree()


def tallyport(desk: Desk, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *arguments],
        env={**os.environ, **desk.settings.environ()},
        capture_output=True,
        text=True,
        timeout=WAIT_S * 2,
    )


@pytest.mark.usefixtures("one_day")
async def test_the_commands_show_the_difference_and_carry_it_out(desk: Desk) -> None:
    unpriced = {"provider": "unheard-of", "port_id": "bulk"}
    await desk.count(
        event(1, event_id="e1", port_id="bulk", input_tokens=100, output_tokens=10),
        event(2, event_id="e2", input_tokens=10, output_tokens=0, **unpriced),
        event(3, event_id="e3", input_tokens=20, output_tokens=0, **unpriced),
    )
    options = ("--port-id", "bulk", "--json")
    amend = ("amend", *options, "--event-id", "e1", "--count", "input_tokens=50", "--reason", "r")
    today, ends = datetime.now(UTC).date(), datetime.now(UTC) + timedelta(days=1)

    shown = await asyncio.to_thread(tallyport, desk, *amend, "--dry-run")
    assert shown.returncode == 0, shown.stderr
    [change] = json.loads(shown.stdout)["changes"]
    assert change == {
        "date": str(today), "port_id": "bulk", "events": 1,
        "tokens_before": 110, "tokens_after": 60, "tokens_delta": -50,
        "cost_before": "0.00012", "cost_after": "0.00007", "cost_delta": "-0.00005",
        "unpriced_before": 0, "unpriced_after": 0,
    }  # fmt: skip
    assert len(await desk.entries("bulk", "e1", 1)) == 1
    done = await asyncio.to_thread(tallyport, desk, *amend)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["changes"] == [change]
    assert len(await desk.entries("bulk", "e1", 2)) == 2

    await desk.set_rate(
        **{**RATE, "rate_id": "heard-of", "provider": "unheard-of", "backdated": True}
    )
    when = ("--from", str(today), "--to", ends.isoformat())
    reprice = ("reprice", *when, *options)
    shown = await asyncio.to_thread(tallyport, desk, *reprice, "--dry-run")
    assert shown.returncode == 0, shown.stderr
    found = json.loads(shown.stdout)
    assert (found["sent"], found["left"]["unchanged"]) == (0, 1)
    [change] = found["changes"]
    assert (change["events"], change["cost_delta"]) == (2, "0.00003")
    assert (change["unpriced_before"], change["unpriced_after"]) == (2, 0)
    for sent in (2, 0):
        done = await asyncio.to_thread(tallyport, desk, *reprice)
        assert done.returncode == 0, done.stdout + done.stderr
        assert json.loads(done.stdout)["sent"] == sent
    rows = await desk.entries("bulk", "e3", 2)
    assert [row["unpriced_requests"] for row in rows] == [1, -1]
    assert [row["cost_nano"] for row in rows] == [None, 20_000]

    refused = await asyncio.to_thread(
        tallyport, desk, "void", *options[:2], "--event-id", "none", "--reason", "r"
    )
    assert refused.returncode == 1
    assert "unknown-event" in refused.stdout
    wrong = await asyncio.to_thread(tallyport, desk, *amend[:-4], "--count", "x=1", "--reason", "r")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    await desk.assert_sums_agree()


async def test_an_audit_agrees_in_the_end(desk: Desk) -> None:
    """After everything that the tests above did to this deployment."""
    await desk.assert_sums_agree()
    await desk.assert_audited()

"""Corrections on real parts: each becomes one entry, and moves tables and budgets by its deltas."""

import itertools
from typing import Any

from tests.corrections.desk import Desk
from tests.stream.worker_deployment import event


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

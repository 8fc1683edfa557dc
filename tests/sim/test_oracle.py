"""The oracle stands alone, and knows right from wrong by examples worked out by hand."""

import ast
import json
import sys
from pathlib import Path

from tests.sim import oracle
from tests.sim.oracle import Record

NOON_MS = 1_795_003_200_000
RATE = {
    "rate_id": "r",
    "provider": "acme",
    "model": "m",
    "effective_from": "2026-01-01T00:00:00Z",
    "backdated": True,
    "per_million": {"input_tokens": "1", "cached_input_tokens": "0.1", "output_tokens": "2"},
}


def test_it_imports_the_standard_library_only() -> None:
    tree = ast.parse(Path(oracle.__file__).read_text())
    names = {
        name
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names


def event(offset: int, **changes: object) -> Record:
    body = {
        "event_id": "e",
        "occurred_at": "2026-11-18T12:00:00Z",
        "port_id": "p",
        "provider": "acme",
        "model": "m",
        "input_tokens": 1_000,
        "cached_input_tokens": 400,
        "output_tokens": 10,
        **changes,
    }
    return Record(0, offset, NOON_MS, b"p", json.dumps(body).encode(), ())


def judged(*records: Record) -> oracle.Judgement:
    rates = [Record(0, 0, NOON_MS, b"r", json.dumps(RATE).encode(), ())]
    judge = oracle.Judge(1)
    for record in records:
        judge.feed(record, [oracle.Rules(0, 0, 1, 2_000)], rates)
    return judge.judgement


def test_a_cost_by_hand() -> None:
    (one,) = judged(event(0)).accepted.values()
    # 600 · 1 000 + 400 · 100 + 10 · 2 000 nanos
    assert (one.cost_nano, one.tokens, one.status) == (660_000, 1_010, "priced")
    assert oracle.cells_of([one])["port:p", 20775] == (1, 1_010, 660_000, 660_000, 0, 0)


def test_fates_by_hand() -> None:
    found = judged(
        event(0),
        event(1, input_tokens=5, cached_input_tokens=0),
        event(2, event_id="f", model="unknown"),
        event(3, event_id="g", occurred_at="2026-11-10T12:00:00Z"),
        event(4, event_id="h", cached_input_tokens=1_001),
        event(5, port_id=None),
        event(6, input_tokens=True),
    )
    assert {place[1]: fate for place, fate in found.fates().items()} == {
        0: "accepted",
        1: "duplicate",
        2: "accepted",
        3: "rejected",
        4: "rejected",
        5: "rejected",
        6: "rejected",
    }
    reasons = ["too-old", "inconsistent-tokens", "missing-field", "wrong-type"]
    assert list(found.rejected.values()) == reasons
    assert found.accepted[0, 2].cost_nano is None


def test_a_state_by_hand() -> None:
    policy = {"scope": "port:*", "unit": "cost", "period": "week", "hard_cap": "0.0005"}
    cells = oracle.cells_of(judged(event(0)).accepted.values())
    states = oracle.expected_states({"port:*|cost|week": policy}, cells, NOON_MS)
    assert set(states) == {"port:*|cost|week", "port:p|cost|week"}
    state = states["port:p|cost|week"]
    assert (state["status"], state["used"], state["remaining"]) == (
        "hard-cap-exceeded",
        660_000,
        -160_000,
    )
    assert (state["period_start"], state["resets_at"]) == (
        "2026-11-16T00:00:00Z",
        "2026-11-23T00:00:00Z",
    )


def test_windows_by_hand() -> None:
    def days(period: str) -> list[str]:
        return [str(oracle.EPOCH.fromordinal(719_163 + d).date()) for d in window(period)]

    def window(period: str) -> tuple[int, int]:
        return oracle.window_of(period, NOON_MS)

    assert days("day") == ["2026-11-18", "2026-11-19"]
    assert days("week") == ["2026-11-16", "2026-11-23"]
    assert days("month") == ["2026-11-01", "2026-12-01"]
    assert days("rolling-30d") == ["2026-10-20", "2026-11-19"]

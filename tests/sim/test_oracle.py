"""The oracle stands alone, and knows right from wrong by examples worked out by hand."""

import ast
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.sim import oracle, oracle_corrections
from tests.sim.oracle import Record
from tests.sim.oracle_corrections import Corrected, CorrectionJudge, Sent, Trace

NOON_MS = 1_795_003_200_000
RATE = {
    "rate_id": "r",
    "provider": "acme",
    "model": "m",
    "effective_from": "2026-01-01T00:00:00Z",
    "backdated": True,
    "per_million": {"input_tokens": "1", "cached_input_tokens": "0.1", "output_tokens": "2"},
}


@pytest.mark.parametrize(
    ("module", "allowed"), [(oracle, set[str]()), (oracle_corrections, {"tests.sim"})]
)
def test_it_imports_the_standard_library_only(module: ModuleType, allowed: set[str]) -> None:
    tree = ast.parse(Path(module.__file__ or "").read_text())
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
    foreign = {name for name in names if name.split(".")[0] not in sys.stdlib_module_names}
    assert foreign <= {*allowed, *(f"{name}.oracle" for name in allowed)}


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


@pytest.mark.parametrize(("over_ms", "fate"), [(0, "duplicate"), (1, "rejected")])
def test_what_comes_home_late_by_hand(over_ms: int, fate: str) -> None:
    """Counted 300 s before its day began, and forwarded 9 days after that."""
    midnight_ms = NOON_MS - oracle.DAY_MS // 2
    first = event(0, occurred_at="2026-11-18T00:00:00Z")
    first = first._replace(timestamp_ms=midnight_ms - 300_000)
    came = ("forwarded-from", f"1/4/{NOON_MS + 3 * oracle.DAY_MS}".encode())
    late = event(1, occurred_at="2026-11-18T23:59:59Z")
    home_ms = midnight_ms - 300_000 + 9 * oracle.DAY_MS + over_ms
    late = late._replace(timestamp_ms=home_ms, headers=(came,))
    other = event(2, event_id="f")._replace(timestamp_ms=home_ms, headers=(came,))
    found = judged(first, late, other)
    fates = [found.fates()[0, offset] for offset in range(3)]
    assert fates == ["accepted", fate, "rejected" if over_ms else "accepted"]


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


def correction(offset: int, kind: str, **changes: object) -> Record:
    body = {
        "correction_id": f"c{offset}",
        "port_id": "p",
        "event_id": "e",
        "kind": kind,
        "reason": "r",
        **changes,
    }
    return Record(0, offset, NOON_MS, b"p", json.dumps(body).encode(), ())


def corrected(*corrections: Record, event_sent_s: float = 0.0, **traces: Trace) -> Corrected:
    """The fates of corrections sent at 1, 2, 3 … seconds; the rate is there from the start."""
    rates = [Record(0, 0, NOON_MS, b"r", json.dumps(RATE).encode(), ())]
    sent = Sent(
        {(0, 0): event_sent_s}, {(0, c.offset): c.offset + 1.0 for c in corrections}, {0: 0.0}
    )
    noted = {(0, int(name[1:])): trace for name, trace in traces.items()}
    judge = CorrectionJudge(judged(event(0)), rates, 2_000, sent, noted)
    for one in corrections:
        judge.feed(one)
    return judge.corrected


def accepted() -> Trace:
    return Trace("accepted", 20775, 1)


def test_corrections_by_hand() -> None:
    found = corrected(
        correction(0, "amend", counts={"input_tokens": 2_000}),
        correction(1, "amend", counts={"input_tokens": 9}, correction_id="c0"),
        correction(2, "reprice", rate_id="none"),
        correction(3, "amend", counts={"input_tokens": 399}),
        correction(4, "void", currency="EUR"),
        correction(5, "void"),
        correction(6, "void"),
        correction(7, "undo"),
        _0=accepted(),
        _5=accepted(),
    )
    assert {place[1]: fate for place, fate in found.fates().items()} == {
        0: "accepted",
        1: "",
        2: "unknown-rate",
        3: "inconsistent-tokens",
        4: "wrong-currency",
        5: "accepted",
        6: "already-void",
        7: "out-of-range",
    }
    amend, void = found.entries[0, 0], found.entries[0, 5]
    assert (amend.entry_no, amend.cost_nano, amend.tokens) == (1, 1_000_000, 1_000)
    assert (void.entry_no, void.cost_nano, void.tokens) == (2, -1_660_000, -2_010)
    cells = oracle.cells_of([*judged(event(0)).accepted.values(), amend, void])
    assert cells["port:p", 20775] == (0, 0, 0, 0, 0, 0)


def test_only_an_event_that_was_sent_later_may_be_unknown() -> None:
    void = correction(0, "void")
    assert corrected(void).rejected == {}
    assert corrected(void, _0=Trace("unknown-event")).rejected == {}
    late = corrected(void, event_sent_s=5.0, _0=Trace("unknown-event"))
    assert late.rejected == {(0, 0): "unknown-event"}
    assert corrected(void, event_sent_s=5.0, _0=accepted()).rejected == {}

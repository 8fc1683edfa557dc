"""The recount's own rules: fates, duplicates, cells, cut-off logs, older ids."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pipeline.audit.recount.count import LogRecord, Recount
from pipeline.audit.recount.envelopes import Headers
from pipeline.audit.recount.events import REASONS
from pipeline.audit.recount.places import home_of
from pipeline.audit.recount.rules import Rules
from producers.malformed import encode
from producers.simulator import expectations, simulate

END = datetime(2026, 11, 22, 12, tzinfo=UTC)
END_MS = int(END.timestamp() * 1000)
RULES = Rules(0, 0, "", 7, 9, 300, 60, "USD")
BODY: dict[str, Any] = {
    "event_id": "e1",
    "occurred_at": "2026-11-22T11:00:00Z",
    "port_id": "harbor-7",
    "provider": "openai",
    "model": "gpt-5",
    "input_tokens": 1_000,
    "output_tokens": 100,
}


def event(**changes: Any) -> bytes:
    return encode({**BODY, **changes})


def recount_of(records: Sequence[LogRecord], partitions: int = 1, **kwargs: Any) -> Recount:
    rules = {p: [RULES] for p in range(partitions)}
    recount = Recount(partitions, rules, (), **kwargs)
    recount.feed(records)
    return recount


def record(offset: int, value: bytes | None, at_ms: int = END_MS, **kwargs: Any) -> LogRecord:
    return LogRecord(kwargs.get("partition", 0), offset, at_ms, b"k", value, kwargs.get("h", ()))


# -- its own rules -------------------------------------------------------------------------------


def test_a_simulated_day_ends_as_its_labels_say() -> None:
    sent = simulate(events=3_000, end=END, partitions=4)
    expected = expectations(sent, END)
    logs: list[list[LogRecord]] = [[] for _ in range(4)]

    def append(partition: int, at_ms: int, value: bytes | None, headers: Headers) -> None:
        log = logs[partition]
        log.append(LogRecord(partition, len(log), at_ms, None, value, headers))

    for one in sent:
        home = home_of((one.key or b"").decode(), 4)
        partition = home if one.partition is None else one.partition
        at = len(logs[partition])
        append(partition, END_MS, one.value, one.headers)
        if one.label == "misrouted":
            whence = f"{partition}/{at}/{END_MS}".encode()
            append(home, END_MS + 5, one.value, (*one.headers, ("forwarded-from", whence)))
    recount = recount_of([r for log in logs for r in log], 4)
    fates = [count.fates_below(count.next_offset) for count in recount.counts.values()]
    assert sum(f["accepted"] for f in fates) == expected.accepted
    assert sum(f["duplicates"] for f in fates) == expected.duplicates
    assert sum(f["forwarded"] for f in fates) == expected.forwarded
    reasons = [
        REASONS[c.rejected.note(at)]
        for c in recount.counts.values()
        for at in range(len(c.rejected))
    ]
    assert {r: reasons.count(r) for r in set(reasons)} == expected.rejected
    cells = [c.cells.below(c.next_offset) for c in recount.counts.values()]
    month = [c for cell in cells for (scope, _), c in cell.items() if scope == "all"]
    assert sum(c[0] for c in month) == expected.accepted


def test_cost_and_cells_of_one_event() -> None:
    value = event(user_id="u", organization_id="o", group_id="g", billing_scope="user")
    count = recount_of([record(0, value)]).counts[0]
    # gpt-5: 1.25 and 10 USD per million, so 1000 · 1250 + 100 · 10,000 nano.
    day = (datetime(2026, 11, 22, tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)).days
    totals = (1, 1_100, 2_250_000, 0, 0, 0)
    assert count.cells.below(1) == {
        (scope, day): totals for scope in ("all", "port:harbor-7", "org:o", "group:g", "user:u")
    }


def test_the_first_accepted_wins_within_the_horizon_and_not_beyond() -> None:
    day_ms = 86_400_000
    at_ms = [END_MS, END_MS + 9 * day_ms, END_MS + 18 * day_ms + 1]
    later = (END + timedelta(days=18)).isoformat()
    values = [event(), event(model="gpt-4o"), event(occurred_at=later)]
    # The second is exactly 9 days younger: a duplicate, whatever its age. The age is judged
    # first, so it must be young itself.
    values[1] = event(occurred_at=(END + timedelta(days=9)).isoformat())
    count = recount_of([record(i, v, at_ms[i]) for i, v in enumerate(values)]).counts[0]
    assert list(count.accepted.offsets) == [0, 2]
    assert list(count.duplicates) == [1]


@pytest.mark.parametrize("more", [0, 1])
def test_what_is_too_large_to_be_forwarded_is_rejected(more: int) -> None:
    away = home_of(BODY["port_id"], 2) ^ 1
    content = b"x" * (512 * 1024 - len(b"k") - 2 * (16 + len("trace")) - len(b"y") + more)
    headers = (("trace", content), ("trace", b"y"))
    count = recount_of([record(0, event(), partition=away, h=headers)], 2).counts[away]
    fates = (f"forwarded to partition {away ^ 1}", "rejected: too-large")
    assert count.fate_of(0) == fates[more]


def test_a_forwarded_record_is_judged_by_its_first_time() -> None:
    old = (END - timedelta(days=7)).isoformat()
    value = event(occurred_at=old)
    late = END_MS + 60_000
    first = f"1/5/{END_MS}".encode()
    records = [
        record(0, value, late),
        record(1, value, late, h=(("forwarded-from", first),)),
        record(2, event(event_id="e2", occurred_at=old), late, h=(("forwarded-from", b"x"),)),
    ]
    count = recount_of(records).counts[0]
    assert [count.fate_of(offset) for offset in (0, 2)] == ["rejected: too-old"] * 2
    assert list(count.accepted.offsets) == [1]
    assert len(count.arrived) == 1


@pytest.mark.parametrize(("over_ms", "reason"), [(0, ""), (1, "rejected: too-old")])
def test_a_record_that_came_home_when_its_id_may_be_forgotten_is_too_old(
    over_ms: int, reason: str
) -> None:
    """Nine days after the earliest moment, 300 s before its day, that it can be accepted."""
    day_ms = 86_400_000
    today_ms = END_MS - END_MS % day_ms
    came = f"1/5/{END_MS + 3 * day_ms}".encode()
    home_ms = today_ms + 9 * day_ms - 300_000 + over_ms
    ends = datetime(2026, 11, 22, 23, 59, 59, 999_999, tzinfo=UTC).isoformat()
    records = [
        record(0, event(occurred_at=ends), home_ms, h=(("forwarded-from", came),)),
        record(1, event(event_id="e2"), home_ms, h=(("replayed-from", came),)),
    ]
    count = recount_of(records).counts[0]
    assert count.fate_of(0) == (reason or "accepted")
    assert count.fate_of(1) == "accepted"


def test_a_duplicate_is_told_by_the_time_at_home() -> None:
    day_ms = 86_400_000
    came = (("forwarded-from", f"1/5/{END_MS + 3 * day_ms}".encode()),)
    values = [event(event_id=name) for name in ("e1", "e2", "e1", "e2")]
    later = (END + timedelta(days=3)).isoformat()
    values[2:] = [event(event_id=name, occurred_at=later) for name in ("e1", "e2")]
    at_ms = [END_MS, END_MS + 1, END_MS + 9 * day_ms + 1, END_MS + 9 * day_ms + 1]
    headers = [(), (), came, came]
    records = [record(i, values[i], at_ms[i], h=headers[i]) for i in range(4)]
    count = recount_of(records).counts[0]
    assert list(count.accepted.offsets) == [0, 1, 2]
    assert list(count.duplicates) == [3]


def test_a_replayed_record_is_judged_by_the_time_of_its_original() -> None:
    value = event(occurred_at=(END - timedelta(days=7)).isoformat())
    late = END_MS + 60_000
    first = f"1/5/{END_MS}".encode()
    forwarded = ("forwarded-from", f"1/9/{late}".encode())
    records = [
        record(0, value, late, h=(("replayed-from", b"1/5"),)),
        record(1, value, late, h=(("replayed-from", first), forwarded)),
    ]
    count = recount_of(records).counts[0]
    assert count.fate_of(0) == "rejected: too-old"
    assert list(count.accepted.offsets) == [1]


def test_a_forwarded_record_is_not_younger_than_its_arrival() -> None:
    ahead = (END + timedelta(seconds=301)).isoformat()
    claimed = f"1/5/{END_MS + 60_000}".encode()
    count = recount_of([record(0, event(occurred_at=ahead), h=(("forwarded-from", claimed),))])
    assert count.counts[0].fate_of(0) == "rejected: in-the-future"


def test_rules_change_at_an_offset() -> None:
    young, old = RULES, RULES._replace(from_offset=1, max_event_age_days=3)
    five_days = (END - timedelta(days=5)).isoformat()
    recount = Recount(1, {0: [young, old]}, ())
    recount.feed([record(i, event(event_id=f"e{i}", occurred_at=five_days)) for i in range(2)])
    assert list(recount.counts[0].accepted.offsets) == [0]
    assert recount.counts[0].fate_of(1) == "rejected: too-old"


def test_records_without_rules_are_counted_as_such() -> None:
    recount = Recount(1, {0: [RULES._replace(from_offset=3)]}, ())
    recount.feed([record(0, event())])
    assert recount.counts[0].without_rules == 1


def test_a_cut_off_log_counts_one_horizon_after_its_start() -> None:
    day_ms = 86_400_000
    times = [END_MS, END_MS + 9 * day_ms, END_MS + 9 * day_ms + 1]
    values = [
        event(event_id=f"e{i}", occurred_at=datetime.fromtimestamp(t / 1000, UTC).isoformat())
        for i, t in enumerate(times)
    ]
    records = [record(10 + i, v, times[i]) for i, v in enumerate(values)]
    count = recount_of(records, log_starts={0: 10}).counts[0]
    assert list(count.accepted.offsets) == [12]
    assert count.counts_from == 12


def test_offsets_must_grow() -> None:
    with pytest.raises(ValueError, match="offset 0"):
        recount_of([record(0, event()), record(0, event())])

"""The comparison: what agrees passes, and every planted difference is found and named."""

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from pipeline.audit.budgets import PolicyRecord, budgets_in_force, days_of, read_policy
from pipeline.audit.compare import (
    Difference,
    Findings,
    Manifest,
    Refusal,
    StateRecord,
    Table,
    compare_coverage,
    compare_daily,
    compare_forwarded,
    compare_ledger,
    compare_manifests,
    compare_rejected,
    compare_something,
    compare_states,
    compare_tables,
)
from pipeline.audit.gather import ledger_row
from pipeline.audit.recount import LogRecord, Recount, Rules, home_of, sum_cells
from pipeline.core.accounts import Accounts
from pipeline.core.budgets import Heartbeat, heartbeat_json, heartbeat_key, state_json
from pipeline.core.errors import InvalidField
from pipeline.core.policies import Policy, parse_policy, policy_from_object, policy_json
from pipeline.core.windows import PERIODS, window
from producers.simulator import simulate

P = 2
END = datetime(2026, 11, 22, 12, tzinfo=UTC)
NOW_MS = int(END.timestamp() * 1000)
RULES = Rules(0, 0, "", 7, 9, 300, 60, "USD")
POLICIES: list[dict[str, Any]] = [
    {"scope": "port:harbor-7", "unit": "tokens", "period": "month", "soft_cap": 1, "hard_cap": 9},
    {"scope": "port:harbor-3", "unit": "cost", "period": "day", "hard_cap": "0.5"},
    {"scope": "port:*", "unit": "tokens", "period": "month", "hard_cap": 4_000_000},
    {"scope": "user:*", "unit": "cost", "period": "day", "hard_cap": "0.75"},
    {"scope": "org:*", "unit": "tokens", "period": "week", "enabled": False},
    {"scope": "group:team-lab", "unit": "cost", "period": "rolling-30d", "hard_cap": "0"},
    {"scope": "group:*", "unit": "cost", "period": "rolling-30d", "on_stale": "deny"},
    {"scope": "port:quay|north:2", "unit": "tokens", "period": "week", "soft_cap": 0},
    {
        "scope": "all",
        "unit": "cost",
        "period": "month",
        "hard_cap": "1",
        "warn_threshold_pct": 50,
        "extra": {"amount": "100000", "until": "2026-11-22T12:00:01Z"},
    },
]


def build_log() -> Recount:
    """A small simulated day on two partitions, forwarded copies included."""
    logs: list[list[LogRecord]] = [[] for _ in range(P)]
    for one in simulate(events=1_200, end=END, partitions=P):
        home = home_of(one.key or b"", P)
        partition = home if one.partition is None else one.partition
        log = logs[partition]
        log.append(LogRecord(partition, len(log), NOW_MS, one.key, one.value, one.headers))
        if one.label == "misrouted":
            whence = f"{partition}/{len(log) - 1}/{NOW_MS}".encode()
            headers = (*one.headers, ("forwarded-from", whence))
            copy = LogRecord(home, len(logs[home]), NOW_MS, one.key, one.value, headers)
            logs[home].append(copy)
    recount = Recount(P, {p: [RULES] for p in range(P)}, ())
    for log in logs:
        recount.feed(log)
    return recount


@pytest.fixture(scope="module")
def recount() -> Recount:
    return build_log()


def tables_of(recount: Recount) -> dict[int, Table]:
    return {
        p: Table(
            p,
            count.next_offset,
            count.cells_below(count.next_offset),
            count.fates_below(count.next_offset),
        )
        for p, count in recount.counts.items()
    }


def policies() -> list[Policy]:
    return [policy_from_object(body) for body in POLICIES]


def budgets() -> Any:
    records = [PolicyRecord(p.key.encode(), policy_json(p)) for p in policies()]
    return budgets_in_force(records, {})


def state_logs(recount: Recount, now_ms: int = NOW_MS) -> dict[int, list[StateRecord]]:
    """What the worker's own fold publishes, with a heartbeat behind it."""
    logs: dict[int, list[StateRecord]] = {}
    through = {p: count.next_offset for p, count in recount.counts.items()}
    for partition in range(P):

        def homes(scope: str, partition: int = partition) -> bool:
            return home_of(scope.encode(), P) == partition

        accounts = Accounts(homes, now_ms)
        for policy in policies():
            accounts.put_policy(policy)
        for source, count in recount.counts.items():
            for (scope, day), totals in count.cells_below(count.next_offset).items():
                if homes(scope):
                    accounts.apply_cell(source, scope, day, totals)
        log: list[StateRecord] = []
        for change in accounts.changes(100_000):
            assert change.state is not None
            value = state_json(change.state, 5, now_ms)
            log.append(StateRecord(len(log), change.key.encode(), value))
        heartbeat = heartbeat_json(Heartbeat(partition, now_ms, through))
        log.append(StateRecord(len(log), heartbeat_key(partition).encode(), heartbeat))
        logs[partition] = log
    return logs


def found_by(compare: Callable[..., Any], *arguments: Any) -> list[Difference]:
    findings = Findings()
    compare(findings, *arguments)
    assert findings.count == len(findings.differences)
    return findings.differences


# -- what agrees ---------------------------------------------------------------------------------


def test_everything_that_agrees_passes(recount: Recount) -> None:
    findings = Findings()
    tables = tables_of(recount)
    compare_something(findings, recount)
    compare_tables(findings, recount, tables, {})
    compare_states(findings, recount, state_logs(recount), budgets(), {})
    compare_manifests(findings, recount, manifests_of(recount))
    compare_rejected(findings, recount, refusals_of(recount), tables)
    compare_forwarded(findings, recount, tables)
    for partition, count in recount.counts.items():
        compare_ledger(findings, partition, count, count.rows, count.next_offset)
    assert findings.differences == []
    assert findings.compared["states"] > 100
    assert findings.compared["cells"] > 100
    assert findings.compared["ledger rows"] > 1_000


@pytest.mark.parametrize(
    "at", ["2026-11-22T23:59:59Z", "2026-11-23T00:00:00Z", "2027-01-01T00:00Z"]
)
def test_states_agree_at_other_times_too(recount: Recount, at: str) -> None:
    now_ms = int(datetime.fromisoformat(at).timestamp() * 1000)
    assert found_by(compare_states, recount, state_logs(recount, now_ms), budgets(), {}) == []


@pytest.mark.parametrize("period", PERIODS)
def test_both_windows_are_the_same(period: str) -> None:
    for day in range(20_000, 21_500):
        for now_ms in (day * 86_400_000, day * 86_400_000 + 86_399_999):
            mine, theirs = days_of(period, now_ms), window(period, now_ms)
            assert (mine.start, mine.stop) == (theirs.start_day, theirs.end_day)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"hard_cap": "1.0000000001"},
        {"hard_cap": 5},
        {"unit": "tokens", "hard_cap": 5},
        {"unit": "tokens", "hard_cap": "5"},
        {"hard_cap": "9223372036.854775807"},
        {"hard_cap": "9223372036.854775808"},
        {"soft_cap": "2", "hard_cap": "1"},
        {"soft_cap": None, "hard_cap": None},
        {"warn_threshold_pct": 101},
        {"warn_threshold_pct": True},
        {"enabled": 1},
        {"on_stale": "maybe"},
        {"period": "year"},
        {"scope": "port:"},
        {"scope": "port:a|b%c:d"},
        {"scope": "nobody:x"},
        {"notify": ["mailto:a@b.c"]},
        {"notify": ["ftp://x"]},
        {"notify": "mailto:a@b.c"},
        {"extra": {"amount": "1", "until": "2026-12-01T00:00:00.1234Z"}},
        {"extra": {"amount": "1", "until": "tomorrow"}},
        {"extra": {"amount": None, "until": "2026-12-01T00:00:00Z"}},
        {"unknown": 1},
    ],
)
def test_both_read_policies_alike(changes: dict[str, Any]) -> None:
    body = {"scope": "port:x", "unit": "cost", "period": "day", "hard_cap": "5", **changes}
    value = json.dumps(body).encode()
    scope = str(body["scope"]).replace("%", "%25").replace("|", "%7C")
    kind, _, ident = scope.partition(":")
    key = f"{kind}:{ident.replace(':', '%3A')}|{body['unit']}|{body['period']}".encode()
    mine = read_policy(key, value)
    try:
        theirs: Policy | None = parse_policy(key, value)
    except InvalidField:
        theirs = None
    assert (mine is None) == (theirs is None)
    if mine is not None and theirs is not None:
        assert mine.key == theirs.key
        assert (mine.soft_cap, mine.hard_cap) == (theirs.soft_cap, theirs.hard_cap)
        extra = None if theirs.extra is None else (theirs.extra.amount, theirs.extra.until_ms)
        assert mine.extra == extra
    assert read_policy(b"other", value) is None


def test_an_invalid_policy_leaves_the_last_valid_one() -> None:
    valid, other = (json.dumps(b).encode() for b in (POLICIES[0], {**POLICIES[0], "hard_cap": 7}))
    key = b"port:harbor-7|tokens|month"
    records = [PolicyRecord(key, valid), PolicyRecord(key, b"{}")]
    assert budgets_in_force(records, {})[key.decode()].hard_cap == 9
    assert budgets_in_force(records[1:], {key: other})[key.decode()].hard_cap == 7
    assert budgets_in_force([*records, PolicyRecord(key, None)], {key: other}) == {}


# -- planted differences: coverage and tables ----------------------------------------------------


def test_nothing_to_compare_is_a_failure() -> None:
    assert found_by(compare_something, Recount(P, {}, ()))[0].what == "events to compare"


def test_records_that_no_rules_decided_are_a_failure() -> None:
    recount = Recount(1, {}, ())
    recount.feed([LogRecord(0, 0, NOW_MS, None, b"{}", ())])
    assert [d.part for d in found_by(compare_something, recount)] == ["rules", "log"]


def test_a_part_that_is_behind_is_named() -> None:
    found = found_by(compare_coverage, "ledger", {0: 10, 1: 5}, {0: 10, 1: 3})
    assert [(d.part, d.partition, d.by) for d in found] == [("ledger", 1, -2)]


def test_a_changed_cell_is_named_with_its_day_and_amount(recount: Recount) -> None:
    tables = tables_of(recount)
    (scope, day), cell = next((k, c) for k, c in tables[1].cells.items() if k[0] != "all")
    tables[1].cells[scope, day] = (*cell[:2], cell[2] + 1, *cell[3:])
    (difference,) = found_by(compare_tables, recount, tables, {})
    assert difference[:3] == ("tables", 1, scope)
    assert (difference.what, difference.by) == ("cost_nano", 1)
    assert difference.day.startswith("2026-11-")


def test_missing_and_strange_cells_and_counts_are_found(recount: Recount) -> None:
    tables = tables_of(recount)
    lost = next(key for key in tables[0].cells if key[0].startswith("user:"))
    del tables[0].cells[lost]
    tables[0].cells["user:nobody", 20_000] = (1, 0, 0, 0, 0, 0)
    counts = {**tables[0].counts, "duplicates": 0}
    tables[0] = Table(0, tables[0].next_offset, tables[0].cells, counts)
    found = found_by(compare_tables, recount, tables, {})
    assert {d.subject for d in found} == {lost[0], "user:nobody", ""}
    del tables[1]
    assert ("tables", 1, "", "", "table") in [
        d[:5] for d in found_by(compare_tables, recount, tables, {})
    ]


def test_days_that_the_table_has_dropped_do_not_count(recount: Recount) -> None:
    tables = tables_of(recount)
    newest = max(day for _, day in tables[0].cells)
    kept = {key: cell for key, cell in tables[0].cells.items() if key[1] >= newest}
    tables[0] = Table(0, tables[0].next_offset, kept, tables[0].counts, oldest_day=newest)
    assert found_by(compare_tables, recount, tables, {}) == []


def test_an_opening_balance_counts_with_the_recount(recount: Recount) -> None:
    tables = tables_of(recount)
    more = {("port:old", 20_000): (3, 30, 7, 7, 0, 0)}
    cells = sum_cells([tables[0].cells, more])
    tables[0] = Table(0, tables[0].next_offset, cells, tables[0].counts)
    assert found_by(compare_tables, recount, tables, {0: more}) == []
    assert {d.by for d in found_by(compare_tables, recount, tables, {})} == {3, 30, 7}


# -- planted differences: states -----------------------------------------------------------------


def replaced(log: Sequence[StateRecord], key: bytes, **changes: Any) -> list[StateRecord]:
    return [
        r._replace(value=json.dumps({**json.loads(r.value or b""), **changes}).encode())
        if r.key == key
        else r
        for r in log
    ]


def partition_of(logs: dict[int, list[StateRecord]], key: bytes) -> int:
    return next(p for p, log in logs.items() if any(r.key == key for r in log))


def test_a_missing_state_is_found(recount: Recount) -> None:
    logs = state_logs(recount)
    key = b"port:harbor-7|tokens|month"
    home = partition_of(logs, key)
    logs[home] = [record for record in logs[home] if record.key != key]
    (difference,) = found_by(compare_states, recount, logs, budgets(), {})
    assert (difference.subject, difference.found) == (key.decode(), "none")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("used", 1),
        ("status", "ok"),
        ("remaining", None),
        ("hard_cap", 10),
        ("unpriced_events", 99),
        ("resets_at", "2026-12-02T00:00:00Z"),
        ("period_start", "2026-10-01T00:00:00Z"),
        ("on_stale", "deny"),
        ("scope", "port:other"),
    ],
)
def test_a_state_that_says_something_else_is_found(
    recount: Recount, field: str, value: object
) -> None:
    logs = state_logs(recount)
    key = b"port:harbor-7|tokens|month"
    home = partition_of(logs, key)
    logs[home] = replaced(logs[home], key, **{field: value})
    (difference,) = found_by(compare_states, recount, logs, budgets(), {})
    assert (difference.partition, difference.what) == (home, field)


def test_a_stale_state_and_one_without_a_reason_are_found(recount: Recount) -> None:
    logs = state_logs(recount)
    key = b"all|cost|month"
    home = partition_of(logs, key)
    late = next(r for r in logs[home] if r.key == key)
    logs[home] = [r for r in logs[home] if r.key != key]
    logs[home].append(late._replace(offset=len(logs[home])))  # behind the heartbeat: too late
    extra = StateRecord(-1, b"user:ghost|cost|day", late.value)
    logs[1 - home].insert(0, extra)
    found = found_by(compare_states, recount, logs, budgets(), {})
    assert {(d.subject, d.expected == "none") for d in found} == {
        (key.decode(), False),
        ("user:ghost|cost|day", True),
    }


def test_a_tombstone_removes_a_state(recount: Recount) -> None:
    logs = state_logs(recount)
    ghost = [
        StateRecord(-2, b"user:ghost|cost|day", b'{"version":1,"used":"1"}'),
        StateRecord(-1, b"user:ghost|cost|day", None),
    ]
    logs[0] = [*ghost, *logs[0]]
    assert found_by(compare_states, recount, logs, budgets(), {}) == []


def test_a_version_that_falls_is_found(recount: Recount) -> None:
    logs = state_logs(recount)
    key = b"all|cost|month"
    home = partition_of(logs, key)
    record = next(r for r in logs[home] if r.key == key)
    logs[home] = [*replaced([record], key, version=6), *logs[home]]
    (difference,) = found_by(compare_states, recount, logs, budgets(), {})
    assert difference.what.startswith("version")


def test_no_heartbeat_is_a_failure(recount: Recount) -> None:
    logs = state_logs(recount)
    logs[0] = logs[0][:-1]
    assert [d.what for d in found_by(compare_states, recount, logs, budgets(), {})] == ["heartbeat"]


def test_an_earlier_heartbeat_at_which_all_agrees_is_enough(recount: Recount) -> None:
    logs = state_logs(recount)
    home = partition_of(logs, b"all|cost|month")
    ahead = replaced([logs[home][0]], logs[home][0].key, used="1", version=9)
    heartbeat = logs[home][-1]
    logs[home] = [*logs[home], *ahead, heartbeat]
    assert found_by(compare_states, recount, logs, budgets(), {}) == []


# -- planted differences: the ledger -------------------------------------------------------------


def manifests_of(recount: Recount) -> dict[int, list[Manifest]]:
    manifests: dict[int, list[Manifest]] = {}
    for p, count in recount.counts.items():
        middle = count.next_offset // 2
        first, whole = count.fates_below(middle), count.fates_below(count.next_offset)
        second = {fate: whole[fate] - first[fate] for fate in whole}
        manifests[p] = [
            Manifest(p, 0, middle, *first.values()),
            Manifest(p, middle, count.next_offset, *second.values()),
        ]
    return manifests


def test_a_missing_and_a_doubled_row_are_found(recount: Recount) -> None:
    count = recount.counts[1]
    rows = [*count.rows[:10], *count.rows[11:20], count.rows[19], *count.rows[20:]]
    found = found_by(compare_ledger, 1, count, rows, count.next_offset)
    assert [(d.partition, d.by) for d in found] == [(1, -1), (1, 1)]
    assert count.rows[10].event_id in found[0].subject
    assert f"port:{count.rows[19].port_id}" in found[1].subject


def test_rows_missing_at_the_ends_and_a_strange_one_are_found(recount: Recount) -> None:
    count = recount.counts[0]
    rejected = next(iter(count.rejected))
    strange = count.rows[5]._replace(offset=rejected)
    rows = sorted([*count.rows[1:-1], strange])
    found = found_by(compare_ledger, 0, count, rows, count.next_offset)
    assert sorted(d.by or 0 for d in found) == [-1, -1, 1]
    assert found_by(compare_ledger, 0, count, [], count.next_offset)


def test_one_nano_is_found(recount: Recount) -> None:
    count = recount.counts[0]
    at = next(i for i, row in enumerate(count.rows) if row.cost_nano)
    wrong = count.rows[at]._replace(cost_nano=(count.rows[at].cost_nano or 0) + 1, digest=b"")
    rows = [*count.rows[:at], wrong, *count.rows[at + 1 :]]
    (difference,) = found_by(compare_ledger, 0, count, rows, count.next_offset)
    assert (difference.what, difference.by) == ("cost_nano", 1)


def test_rows_beyond_the_manifest_do_not_count(recount: Recount) -> None:
    count = recount.counts[0]
    end = count.rows[50].offset
    assert found_by(compare_ledger, 0, count, count.rows[:60], end) == []


def test_a_changed_column_is_named() -> None:
    value = (
        b'{"event_id":"e","occurred_at":"2026-11-22T11:00:00Z","port_id":"p","provider":"openai",'
        b'"model":"gpt-5","input_tokens":10,"reported_cost":"0.50","tags":{"b":"1","a":"2"}}'
    )
    recount = Recount(1, {0: [RULES]}, ())
    recount.feed([LogRecord(0, 0, NOW_MS, None, value, ())])
    values: list[Any] = [
        *(0, "e", int(datetime(2026, 11, 22, 11, tzinfo=UTC).timestamp()) * 1_000_000, "p"),
        *("openai", "gpt-5", "", "", "", "", "", "", "", "", "unspecified", "llm", "org"),
        *(10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, False, "0.5", {"a": "2", "b": "1"}),
        *(NOW_MS, 12_500, "priced"),
    ]
    assert found_by(compare_ledger, 0, recount.counts[0], [ledger_row(values)], 1) == []
    values[5] = "gpt-5-mini"
    (difference,) = found_by(compare_ledger, 0, recount.counts[0], [ledger_row(values)], 1)
    assert difference.what == "model at offset 0"


def test_gaps_and_wrong_counts_in_manifests_are_found(recount: Recount) -> None:
    manifests = manifests_of(recount)
    first, second = manifests[0]
    manifests[0] = [first._replace(next_offset=first.next_offset - 2), second]
    assert [d.by for d in found_by(compare_manifests, recount, manifests)] == [2]
    manifests[0] = [second]
    assert found_by(compare_manifests, recount, manifests)[0].what == "first offset"
    manifests[0] = [first._replace(accepted=first.accepted + 1), second]
    assert [d.by for d in found_by(compare_manifests, recount, manifests)] == [1]
    del manifests[0]
    assert found_by(compare_manifests, recount, manifests)[0].what == "manifests"


def test_daily_sums_that_differ_are_found() -> None:
    sums = {"requests": 5, "cost_nano": "12"}
    assert found_by(compare_daily, sums, dict(sums)) == []
    (difference,) = found_by(compare_daily, sums, {**sums, "requests": 4})
    assert (difference.what, difference.by) == ("requests", -1)


# -- planted differences: rejected and forwarded -------------------------------------------------


def refusals_of(recount: Recount) -> list[Refusal]:
    return [
        Refusal(p, offset, original.note, original.digest)
        for p, count in recount.counts.items()
        for offset, original in count.rejected.items()
    ]


def test_rejected_records_must_match_one_to_one(recount: Recount) -> None:
    tables = tables_of(recount)
    whole = refusals_of(recount)
    assert found_by(compare_rejected, recount, whole * 2, tables) == []
    accepted = recount.counts[0].rows[0].offset
    wrong = [
        whole[0]._replace(reason="too-new"),
        whole[1]._replace(digest=b""),
        *whole[3:],
        Refusal(0, accepted, "too-old", b""),
    ]
    found = found_by(compare_rejected, recount, wrong, tables)
    assert sorted(d.what for d in found) == [
        "key, value and headers",
        "reason",
        "record",
        "record",
    ]


def test_a_forwarded_record_that_did_not_arrive_is_found() -> None:
    recount = build_log()
    tables = tables_of(recount)
    place, _ = next((k, d) for c in recount.counts.values() for k, d in c.taken_over.items())
    for count in recount.counts.values():
        count.taken_over.pop(place, None)
    (difference,) = found_by(compare_forwarded, recount, tables)
    assert (difference.partition, difference.subject) == (place[0], f"offset {place[1]}")

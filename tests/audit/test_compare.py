"""The comparison: what agrees passes, and every planted difference is found and named."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

import pytest

from pipeline.audit.differences import Difference, Findings, Kind
from pipeline.audit.fates import (
    ADDED_HEADERS,
    Block,
    BlockChain,
    Refusal,
    compare_copies,
    compare_refusals,
    refusal_digest,
)
from pipeline.audit.manifests import Manifest, compare_manifests
from pipeline.audit.recount.cells import sum_cells
from pipeline.audit.recount.count import LogRecord, PartitionCount, Recount
from pipeline.audit.recount.events import REASONS
from pipeline.audit.recount.places import home_of
from pipeline.audit.recount.policies import PolicyRecord, budgets_in_force, read_policy
from pipeline.audit.recount.rows import canonical
from pipeline.audit.recount.rules import Rules
from pipeline.audit.recount.states import days_of
from pipeline.audit.rows import RowDigest, add_suspects, compare_rows
from pipeline.audit.state_log import StateLog, StateRecord
from pipeline.audit.states import ScopeSums, compare_claims, compare_home
from pipeline.audit.tables import Opening, Table, compare_table
from pipeline.core.accounts import Accounts
from pipeline.core.budgets import Heartbeat, heartbeat_json, heartbeat_key, state_json
from pipeline.core.errors import InvalidField
from pipeline.core.policies import Policy, parse_policy, policy_from_object, policy_json
from pipeline.core.windows import PERIODS, window
from producers.simulator import simulate

P = 2
TOPIC = "usage.events"
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


def records() -> list[LogRecord]:
    """A small simulated day on two partitions, forwarded copies included."""
    logs: list[list[LogRecord]] = [[] for _ in range(P)]
    for one in simulate(events=1_200, end=END, partitions=P):
        home = home_of((one.key or b"").decode(), P)
        partition = home if one.partition is None else one.partition
        log = logs[partition]
        log.append(LogRecord(partition, len(log), NOW_MS, one.key, one.value, one.headers))
        if one.label == "misrouted":
            whence = f"{partition}/{len(log) - 1}/{NOW_MS}".encode()
            headers = (*one.headers, ("forwarded-from", whence))
            copy = LogRecord(home, len(logs[home]), NOW_MS, one.key, one.value, headers)
            logs[home].append(copy)
    return [record for log in logs for record in log]


@pytest.fixture(scope="module")
def log() -> list[LogRecord]:
    return records()


def recount_of(log: Sequence[LogRecord], **kwargs: Any) -> Recount:
    recount = Recount(P, {p: [RULES] for p in range(P)}, (), **kwargs)
    recount.feed(log)
    return recount


@pytest.fixture(scope="module")
def recount(log: list[LogRecord]) -> Recount:
    return recount_of(log)


def table_of(partition: int, count: PartitionCount) -> Table:
    end = count.next_offset
    return Table(partition, end, count.cells.below(end), count.fates_below(end), 0, 1, 9)


def tables_of(recount: Recount) -> dict[int, Table]:
    return {p: table_of(p, count) for p, count in recount.counts.items()}


def cuts_of(recount: Recount) -> dict[int, int]:
    return {p: count.next_offset for p, count in recount.counts.items()}


def in_table(recount: Recount, table: Table, opening: Opening | None = None) -> list[Difference]:
    findings = Findings()
    count = recount.counts[table.partition]
    compare_table(findings, count, table, opening or Opening(), epoch=1, rules_digest=None)
    return findings.differences


def policies() -> list[Policy]:
    return [policy_from_object(body) for body in POLICIES]


def budgets() -> Any:
    found = [PolicyRecord(p.key.encode(), policy_json(p)) for p in policies()]
    return budgets_in_force(found, {})


def state_records(recount: Recount, now_ms: int = NOW_MS) -> dict[int, list[StateRecord]]:
    """What the worker's own fold publishes, with a heartbeat behind it."""
    logs: dict[int, list[StateRecord]] = {}
    through = cuts_of(recount)
    for partition in range(P):

        def homes(scope: str, partition: int = partition) -> bool:
            return home_of(scope, P) == partition

        accounts = Accounts(homes, now_ms)
        for policy in policies():
            accounts.put_policy(policy)
        for source, count in recount.counts.items():
            for (scope, day), totals in count.cells.below(count.next_offset).items():
                if homes(scope):
                    accounts.apply_cells(source, [(scope, day, totals)])
        log: list[StateRecord] = []
        for change in accounts.changes(100_000):
            assert change.state is not None
            value = state_json(change.state, 5, now_ms)
            log.append(StateRecord(len(log), change.key.encode(), value))
        heartbeat = heartbeat_json(Heartbeat(partition, now_ms, through))
        log.append(StateRecord(len(log), heartbeat_key(partition).encode(), heartbeat))
        logs[partition] = log
    return logs


def in_states(
    recount: Recount, logs: Mapping[int, Sequence[StateRecord]], **claims: Any
) -> list[Difference]:
    findings = Findings()
    sums = ScopeSums(recount, [], budgets())
    positions, ends = claims.get("positions", cuts_of(recount)), cuts_of(recount)
    for partition, found in logs.items():
        state_log = StateLog(partition)
        state_log.feed([r._replace(offset=at) for at, r in enumerate(found)])
        compare_home(findings, state_log, sums, budgets(), P)
        compare_claims(findings, state_log, recount.counts, positions, ends, 1)
    return findings.differences


def row_digests(recount: Recount) -> list[RowDigest]:
    return [
        RowDigest(TOPIC, p, offset, count.accepted.digest(at))
        for p, count in recount.counts.items()
        for at, offset in enumerate(count.accepted.offsets)
    ]


def in_rows(
    recount: Recount, log: Sequence[LogRecord], rows: Sequence[RowDigest], **found: Any
) -> list[Difference]:
    findings = Findings()
    suspects = compare_rows(findings, recount, TOPIC, rows, found.get("cuts", cuts_of(recount)))
    expected = {(r.partition, r.offset): recount.row_of(r) or {} for r in log}
    add_suspects(findings, recount, suspects, expected, found.get("found", {}))
    return findings.differences


def in_manifests(recount: Recount, manifests: Sequence[Manifest]) -> list[Difference]:
    findings = Findings()
    compare_manifests(findings, recount, manifests)
    return findings.differences


def kinds(differences: Sequence[Difference]) -> list[Kind]:
    return [difference.kind for difference in differences]


# -- what agrees -----------------------------------------------------------------------------------


def test_everything_that_agrees_passes(recount: Recount, log: list[LogRecord]) -> None:
    for table in tables_of(recount).values():
        assert in_table(recount, table) == []
    assert in_states(recount, state_records(recount)) == []
    assert in_rows(recount, log, row_digests(recount)) == []
    assert in_manifests(recount, manifests_of(recount)) == []
    assert in_refusals(recount, refusals_of(recount, log)) == []
    assert in_blocks(recount, blocks_of(recount)) == []
    findings = Findings()
    compare_copies(findings, recount, cuts_of(recount))
    assert findings.differences == []
    assert findings.compared["forwarded"] > 5


@pytest.mark.parametrize(
    "at", ["2026-11-22T23:59:59Z", "2026-11-23T00:00:00Z", "2027-01-01T00:00Z"]
)
def test_states_agree_at_other_times_too(recount: Recount, at: str) -> None:
    now_ms = int(datetime.fromisoformat(at).timestamp() * 1000)
    assert in_states(recount, state_records(recount, now_ms)) == []


def test_digests_tell_where_one_text_ends() -> None:
    assert canonical(["ab", "c"], [1]) != canonical(["a", "bc"], [1])
    assert canonical(["a"], [1, 23]) != canonical(["a"], [12, 3])
    assert canonical(["a"], [None]) != canonical(["a"], [0])


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
    found = [PolicyRecord(key, valid), PolicyRecord(key, b"{}")]
    assert budgets_in_force(found, {})[key.decode()].hard_cap == 9
    assert budgets_in_force(found[1:], {key: other})[key.decode()].hard_cap == 7
    assert budgets_in_force([*found, PolicyRecord(key, None)], {key: other}) == {}


# -- planted differences: tables -------------------------------------------------------------------


def test_a_changed_cell_is_named_with_its_day_and_amount(recount: Recount) -> None:
    table = tables_of(recount)[1]
    (scope, day), cell = next((k, c) for k, c in table.cells.items() if k[0] != "all")
    cells = {**table.cells, (scope, day): (*cell[:2], cell[2] + 1, *cell[3:])}
    (found,) = in_table(recount, replace(table, cells=cells))
    assert (found.kind, found.partition, found.subject) == (Kind.TABLE_CELL, 1, scope)
    assert found.amounts == {"cost_nano": 1}
    assert found.day.startswith("2026-11-")


def test_missing_and_strange_cells_and_counts_are_found(recount: Recount) -> None:
    table = tables_of(recount)[0]
    cells = dict(table.cells)
    lost = next(key for key in cells if key[0].startswith("user:"))
    del cells[lost]
    cells["user:nobody", 20_000] = (1, 0, 0, 0, 0, 0)
    counts = {**table.counts, "duplicates": 0}
    found = in_table(recount, replace(table, cells=cells, counts=counts))
    assert {d.subject for d in found} == {lost[0], "user:nobody", ""}
    assert Kind.TABLE_COUNT in kinds(found)


def test_a_table_of_another_epoch_and_other_rules_is_found(recount: Recount) -> None:
    table = replace(tables_of(recount)[0], epoch=2, flush=0)
    findings = Findings()
    compare_table(findings, recount.counts[0], table, Opening(), epoch=1, rules_digest=b"others")
    assert kinds(findings.differences) == [Kind.TABLE_STAMP, Kind.TABLE_STAMP]
    findings = Findings()
    table = tables_of(recount)[0]
    compare_table(findings, recount.counts[0], table, Opening(), epoch=1, rules_digest=b"others")
    assert kinds(findings.differences) == [Kind.RULES_MISSING]


def test_days_that_the_table_has_dropped_do_not_count(recount: Recount) -> None:
    table = tables_of(recount)[0]
    newest = max(day for _, day in table.cells)
    kept = {key: cell for key, cell in table.cells.items() if key[1] >= newest}
    assert in_table(recount, replace(table, cells=kept, oldest_day=newest)) == []


def test_an_opening_balance_counts_with_the_recount(recount: Recount) -> None:
    table = tables_of(recount)[0]
    more = {("port:old", 20_000): (3, 30, 7, 7, 0, 0)}
    table = replace(table, cells=sum_cells([table.cells, more]))
    assert in_table(recount, table, Opening(more)) == []
    (found,) = in_table(recount, table)
    assert found.amounts == {"requests": 3, "tokens": 30, "cost_nano": 7, "org_cost_nano": 7}


def test_deleted_records_that_were_never_counted_are_found(log: list[LogRecord]) -> None:
    late = Recount(P, {p: [RULES] for p in range(P)}, (), {0: 50, 1: 0})
    late.feed([r for r in log if r.partition == 0 and r.offset >= 50])
    table = Table(0, 40, {}, {}, 0, 1, 1)
    assert Kind.INPUT_LOST in kinds(in_table(late, table))


def test_prices_of_an_unknown_book_are_not_verified(log: list[LogRecord]) -> None:
    older = Recount(P, {p: [RULES._replace(book="older")] for p in range(P)}, (), book="mine")
    older.feed(log)
    assert older.counts[0].unverifiable["older"].count > 100
    table = tables_of(older)[0]
    (scope, day), cell = next(iter(table.cells.items()))
    cells = {**table.cells, (scope, day): (*cell[:2], cell[2] + 1, *cell[3:])}
    assert in_table(older, replace(table, cells=cells)) == []
    cells = {**table.cells, (scope, day): (cell[0], cell[1] + 1, *cell[2:])}
    assert kinds(in_table(older, replace(table, cells=cells))) == [Kind.TABLE_CELL]


# -- planted differences: states -------------------------------------------------------------------

KEY = b"port:harbor-7|tokens|month"


def replaced(log: Sequence[StateRecord], key: bytes, **changes: Any) -> list[StateRecord]:
    return [
        r._replace(value=json.dumps({**json.loads(r.value or b""), **changes}).encode())
        if r.key == key
        else r
        for r in log
    ]


def partition_of(logs: Mapping[int, Sequence[StateRecord]], key: bytes) -> int:
    return next(p for p, found in logs.items() if any(r.key == key for r in found))


def test_a_missing_state_is_found(recount: Recount) -> None:
    logs = state_records(recount)
    home = partition_of(logs, KEY)
    logs[home] = [record for record in logs[home] if record.key != KEY]
    (found,) = in_states(recount, logs)
    assert (found.kind, found.subject) == (Kind.STATE_MISSING, KEY.decode())


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
    logs = state_records(recount)
    home = partition_of(logs, KEY)
    logs[home] = replaced(logs[home], KEY, **{field: value})
    (found,) = in_states(recount, logs)
    assert (found.kind, found.partition, found.what) == (Kind.STATE_CHANGED, home, field)


def test_a_cost_is_told_in_nanos(recount: Recount) -> None:
    logs = state_records(recount)
    key = b"port:harbor-3|cost|day"
    home = partition_of(logs, key)
    used = next(json.loads(r.value or b"")["used"] for r in logs[home] if r.key == key)
    logs[home] = replaced(logs[home], key, used=f"{used}0000000000"[:-9] if "." in used else "0")
    for found in in_states(recount, logs):
        assert "used_nano" in found.amounts


def test_a_stale_state_and_one_without_a_reason_are_found(recount: Recount) -> None:
    logs = state_records(recount)
    key = b"all|cost|month"
    home = partition_of(logs, key)
    late = next(r for r in logs[home] if r.key == key)
    logs[home] = [r for r in logs[home] if r.key != key]
    logs[home].append(late)  # behind the heartbeat: too late
    logs[1 - home].insert(0, StateRecord(-1, b"user:ghost|cost|day", late.value))
    found = in_states(recount, logs)
    assert sorted((d.kind, d.subject) for d in found) == [
        (Kind.STATE_MISSING, key.decode()),
        (Kind.STATE_UNEXPECTED, "user:ghost|cost|day"),
    ]


def test_a_tombstone_removes_a_state(recount: Recount) -> None:
    logs = state_records(recount)
    ghost = [
        StateRecord(-2, b"user:ghost|cost|day", b'{"version":1,"used":"1"}'),
        StateRecord(-1, b"user:ghost|cost|day", None),
    ]
    logs[0] = [*ghost, *logs[0]]
    assert in_states(recount, logs) == []


def test_a_version_that_falls_or_is_absent_or_too_high_is_found(recount: Recount) -> None:
    logs = state_records(recount)
    key = b"all|cost|month"
    home = partition_of(logs, key)
    record = next(r for r in logs[home] if r.key == key)
    falling = {home: [*replaced([record], key, version=6), *logs[home]]}
    assert kinds(in_states(recount, falling)) == [Kind.STATE_VERSION]
    absent = {home: replaced(logs[home], key, version=None)}
    assert kinds(in_states(recount, absent)) == [Kind.STATE_VERSION]
    later_epoch = {home: replaced(logs[home], key, version=2 << 36)}
    assert kinds(in_states(recount, later_epoch)) == [Kind.STATE_VERSION]


def test_no_heartbeat_is_a_failure(recount: Recount) -> None:
    logs = state_records(recount)
    logs[0] = logs[0][:-1]
    assert kinds(in_states(recount, logs)) == [Kind.HEARTBEAT_MISSING]


def test_a_heartbeat_that_claims_too_much_is_found(recount: Recount) -> None:
    logs = state_records(recount)
    far = {p: end + 5 for p, end in cuts_of(recount).items()}
    logs[0][-1] = logs[0][-1]._replace(value=heartbeat_json(Heartbeat(0, NOW_MS, far)))
    found = in_states(recount, logs)
    assert kinds(found) == [Kind.HEARTBEAT_AHEAD] * P
    behind = {p: end - 3 for p, end in cuts_of(recount).items()}
    found = in_states(recount, state_records(recount), positions=behind)
    assert set(kinds(found)) == {Kind.HEARTBEAT_AHEAD}


def test_an_earlier_heartbeat_at_which_all_agrees_is_enough(recount: Recount) -> None:
    logs = state_records(recount)
    home = partition_of(logs, b"all|cost|month")
    ahead = replaced([logs[home][0]], logs[home][0].key, used="1", version=9)
    logs[home] = [*logs[home], *ahead, logs[home][-1]]
    assert in_states(recount, logs) == []


def test_states_agree_in_the_middle_of_the_log(log: list[LogRecord]) -> None:
    """A heartbeat is judged at what it claims, not at what the recount has come to."""
    half = [r for r in log if r.offset < 300]
    logs = state_records(recount_of(half))
    whole = recount_of(log)
    assert in_states(whole, logs) == []


# -- planted differences: the ledger ---------------------------------------------------------------


def manifests_of(recount: Recount) -> list[Manifest]:
    manifests: list[Manifest] = []
    for p, count in recount.counts.items():
        middle = count.next_offset // 2
        first, whole = count.fates_below(middle), count.fates_below(count.next_offset)
        names = ("accepted", "rejected", "duplicates", "forwarded")
        manifests += [
            Manifest(p, 0, middle, *(first[name] for name in names)),
            Manifest(p, middle, count.next_offset, *(whole[n] - first[n] for n in names)),
        ]
    return manifests


def test_a_missing_and_a_doubled_row_are_found(recount: Recount, log: list[LogRecord]) -> None:
    rows = row_digests(recount)
    lost, twice = rows[10], rows[20]
    found = in_rows(recount, log, [*rows[:10], *rows[11:], twice])
    assert [(d.kind, d.partition, d.offset) for d in found] == [
        (Kind.ROW_TWICE, twice.partition, twice.offset),
        (Kind.ROW_MISSING, lost.partition, lost.offset),
    ]
    assert found[1].subject.startswith("port:")
    assert found[1].day.startswith("2026-11-")
    assert found[1].amounts["requests"] == -1


def test_rows_that_should_not_be_there_are_found(recount: Recount, log: list[LogRecord]) -> None:
    rejected = recount.counts[0].rejected.offsets[0]
    strange = [RowDigest(TOPIC, 0, rejected, b""), RowDigest("other", 7, 1, b"")]
    row = {"port_id": "p", "event_id": "e", "total_tokens": 5, "cost_nano": 7, "requests": 1}
    places = [(row.topic, row.partition, row.offset) for row in strange]
    found = in_rows(
        recount, log, [*row_digests(recount), *strange], found={place: [row] for place in places}
    )
    assert kinds(found) == [Kind.ROW_UNEXPECTED] * 2
    assert found[0].expected.startswith("rejected: ")
    assert found[0].amounts == {"total_tokens": 5, "requests": 1, "cost_nano": 7}


def test_a_changed_column_is_named(recount: Recount, log: list[LogRecord]) -> None:
    rows = row_digests(recount)
    record = next(r for r in log if (r.partition, r.offset) == rows[3][1:3])
    right = recount.row_of(record)
    assert right is not None
    wrong = {**right, "cost_nano": (right["cost_nano"] or 0) + 1, "rate_id": "other"}
    changed = rows[3]._replace(digest=sha256(b"other").digest()[:20])
    place = (TOPIC, rows[3].partition, rows[3].offset)
    found = in_rows(recount, log, [*rows[:3], changed, *rows[4:]], found={place: [wrong]})
    (difference,) = found
    assert (difference.kind, difference.what) == (Kind.ROW_CHANGED, "rate_id, cost_nano")
    assert right["cost_nano"] is None or difference.amounts == {"cost_nano": 1}


def test_rows_beyond_the_cut_do_not_count(recount: Recount, log: list[LogRecord]) -> None:
    cuts = dict.fromkeys(range(P), 50)
    rows = [row for row in row_digests(recount) if row.offset < 60]
    assert in_rows(recount, log, rows, cuts=cuts) == []


def test_what_is_not_shown_is_still_counted(recount: Recount) -> None:
    findings = Findings()
    suspects = compare_rows(findings, recount, TOPIC, [], cuts_of(recount))
    add_suspects(findings, recount, suspects, {}, {})
    accepted = sum(len(count.accepted) for count in recount.counts.values())
    assert findings.by_kind[Kind.ROW_MISSING] == findings.count == accepted


def test_gaps_and_wrong_counts_in_manifests_are_found(recount: Recount) -> None:
    first, second, *others = manifests_of(recount)
    short = first._replace(next_offset=first.next_offset - 2)
    found = in_manifests(recount, [short, second, *others])
    assert Kind.MANIFEST_GAP in kinds(found)
    gap = next(d for d in found if d.kind is Kind.MANIFEST_GAP)
    assert (gap.partition, gap.offset, gap.amounts) == (0, short.next_offset, {"offsets": -2})
    (late,) = in_manifests(recount, [second, *others])
    assert (late.kind, late.offset) == (Kind.MANIFEST_GAP, 0)
    more = first._replace(accepted=first.accepted + 1)
    (wrong,) = in_manifests(recount, [more, second, *others])
    assert (wrong.kind, wrong.amounts) == (Kind.MANIFEST_COUNT, {"accepted": 1})
    assert kinds(in_manifests(recount, others)) == [Kind.MANIFEST_GAP]


# -- planted differences: where records ended ------------------------------------------------------


def refusals_of(recount: Recount, log: Sequence[LogRecord]) -> list[Refusal]:
    by_place = {(r.partition, r.offset): r for r in log}
    found: list[Refusal] = []
    for p, count in recount.counts.items():
        for at, offset in enumerate(count.rejected.offsets):
            record = by_place[p, offset]
            reason = REASONS[count.rejected.note(at)]
            added = [(name, b"x") for name in ADDED_HEADERS]
            added[0] = ("reason", reason.encode())
            headers = [*record.headers, *added]
            digest = refusal_digest(record.key, record.value, headers)
            found.append(Refusal(p, offset, reason, digest))
    return found


def in_refusals(recount: Recount, refusals: Sequence[Refusal]) -> list[Difference]:
    findings = Findings()
    compare_refusals(findings, recount, refusals, cuts_of(recount))
    return findings.differences


def test_rejected_records_must_match(recount: Recount, log: list[LogRecord]) -> None:
    whole = refusals_of(recount, log)
    assert in_refusals(recount, whole * 2) == []
    accepted = recount.counts[0].accepted.offsets[0]
    wrong = [
        whole[0]._replace(reason="too-new"),
        whole[1]._replace(digest=b""),
        *whole[3:],
        Refusal(0, accepted, "too-old", b""),
    ]
    found = in_refusals(recount, wrong)
    assert sorted(kinds(found)) == [
        Kind.REFUSAL_CHANGED,
        Kind.REFUSAL_CHANGED,
        Kind.REFUSAL_MISSING,
        Kind.REFUSAL_UNEXPECTED,
    ]
    missing = next(d for d in found if d.kind is Kind.REFUSAL_MISSING)
    assert (missing.partition, missing.offset) == whole[2][:2]


def test_a_refusal_has_all_headers_it_came_with() -> None:
    added = [(name, b"x") for name in ADDED_HEADERS]
    sent = [("reason", b"mine"), ("a", b"1")]
    whole = refusal_digest(b"k", b"v", [*sent, *added])
    assert whole != refusal_digest(b"k", b"v", [*sent[1:], *added])
    assert whole != refusal_digest(b"k", None, [*sent, *added])
    assert whole != refusal_digest(b"k", b"v", [*sent, ("reason", b"y"), *added[1:]])


def test_a_forwarded_record_that_arrived_changed_is_found(log: list[LogRecord]) -> None:
    at = next(i for i, r in enumerate(log) if any(n == "forwarded-from" for n, _ in r.headers))
    changed = [*log]
    changed[at] = log[at]._replace(key=b"another")
    recount = recount_of(changed)
    findings = Findings()
    compare_copies(findings, recount, cuts_of(recount))
    (found,) = findings.differences
    source = dict(log[at].headers)["forwarded-from"]
    assert source is not None
    assert (found.kind, found.partition, found.offset) == (
        Kind.COPY_MISSING,
        *map(int, source.split(b"/")[:2]),
    )


def blocks_of(recount: Recount) -> list[Block]:
    blocks: list[Block] = []
    for p, count in recount.counts.items():
        for start in range(0, count.next_offset, 100):
            stop = min(start + 100, count.next_offset)
            fates = (
                count.accepted.offsets,
                count.rejected.offsets,
                count.duplicates,
                count.forwarded.offsets,
            )
            inside = ([o for o in offsets if start <= o < stop] for offsets in fates)
            blocks.append(Block(p, start, stop, *inside))
    return blocks


def in_blocks(recount: Recount, blocks: Sequence[Block]) -> list[Difference]:
    findings = Findings()
    chains = {p: BlockChain(count, p, 0) for p, count in recount.counts.items()}
    for at, block in enumerate(blocks):
        chains[block.partition].feed(findings, block, at)
    return findings.differences


def test_gaps_and_other_fates_in_blocks_are_found(recount: Recount) -> None:
    blocks = blocks_of(recount)
    (gap,) = in_blocks(recount, [blocks[0], *blocks[2:]])
    assert (gap.kind, gap.partition, gap.offset) == (Kind.BLOCK_GAP, 0, 100)
    offset = blocks[1].accepted[0]
    as_duplicate = blocks[1]._replace(
        accepted=blocks[1].accepted[1:], duplicates=[*blocks[1].duplicates, offset]
    )
    found = in_blocks(recount, [blocks[0], as_duplicate, *blocks[2:]])
    assert [(d.kind, d.offset, dict(d.amounts)) for d in found] == [
        (Kind.BLOCK_FATE, offset, {"accepted": -1}),
        (Kind.BLOCK_FATE, offset, {"duplicates": 1}),
    ]

"""Accounts against a recomputation from scratch, and the rules one by one."""

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.accounts import Accounts
from pipeline.core.budgets import State, heartbeat_key, state_json
from pipeline.core.cells import packed
from pipeline.core.policies import Extra, Policy
from pipeline.core.scopes import record_key
from pipeline.core.windows import DAY_MS, parse_ms

Totals = tuple[int, int, int, int, int, int]
Cells = dict[tuple[int, str, int], Totals]

NOW = parse_ms("2026-11-22T10:15:03.120Z")
TODAY = NOW // DAY_MS
MINUTE_MS = 60_000


def everything(_: str) -> bool:
    return True


class Published:
    """A subscriber: keeps what was published, and checks that nothing comes twice."""

    def __init__(self) -> None:
        self.states: dict[str, State] = {}

    def take(self, accounts: Accounts, limit: int = 10_000) -> list[tuple[str, State | None]]:
        changes = accounts.changes(limit)
        assert len(changes) <= limit
        for key, state in changes:
            if state is None:
                assert key in self.states, f"a tombstone for {key}, which is not there"
                del self.states[key]
            else:
                assert state.key == key
                assert self.states.get(key) != state, f"{key} is published again"
                self.states[key] = state
        return [(change.key, change.state) for change in changes]

    def drain(self, accounts: Accounts) -> dict[str, State]:
        self.take(accounts)
        assert accounts.dirty == 0
        assert accounts.changes(1) == []
        return self.states


# The recomputation: dates rather than day numbers, and nothing incremental.


def first_and_last(period: str, now_ms: int) -> tuple[datetime, datetime]:
    midnight = datetime.fromtimestamp(now_ms // 1000, UTC).replace(hour=0, minute=0, second=0)
    if period == "day":
        return midnight, midnight + timedelta(1)
    if period == "week":
        monday = midnight - timedelta(midnight.weekday())
        return monday, monday + timedelta(7)
    if period == "month":
        first = midnight.replace(day=1)
        return first, (first + timedelta(40)).replace(day=1)
    return midnight - timedelta(29), midnight + timedelta(1)


def recompute(
    cells: Cells,
    policies: dict[str, Policy],
    now_ms: int,
    homes: Callable[[str], bool] = everything,
) -> dict[str, State]:
    found: dict[str, State] = {}
    used_scopes = {scope for _, scope, _ in cells}
    for policy in policies.values():
        kind = policy.scope.removesuffix(":*")
        scopes = [policy.scope] if homes(policy.scope) else []
        if kind != policy.scope:
            ids = [s for s in used_scopes if s.startswith((f"{kind}:", f"{kind}="))]
            own = {record_key(s, policy.unit, policy.period) for s in ids} & policies.keys()
            scopes += [s for s in ids if record_key(s, policy.unit, policy.period) not in own]
        for scope in scopes:
            state = recompute_one(cells, policy, scope, now_ms)
            if state is not None:
                found[record_key(scope, policy.unit, policy.period)] = state
    return found


def recompute_one(cells: Cells, policy: Policy, scope: str, now_ms: int) -> State | None:
    start, end = first_and_last(policy.period, now_ms)
    inside = [
        totals
        for (_, name, day), totals in cells.items()
        if name == scope and start <= datetime(1970, 1, 1, tzinfo=UTC) + timedelta(day) < end
    ]
    if scope != policy.scope and not inside:
        return None
    org_only = policy.unit == "cost" and not scope.startswith("user")
    column = 1 if policy.unit == "tokens" else 3 if org_only else 2
    used = sum(totals[column] for totals in inside)
    hard = policy.hard_cap
    if hard is not None and policy.extra is not None and now_ms < policy.extra.until_ms:
        hard += policy.extra.amount
    above = False
    if policy.soft_cap is not None:
        above = used > policy.soft_cap
    elif hard is not None:
        above = used * 100 > policy.warn_threshold_pct * hard
    status = "soft-cap-exceeded" if above else "ok"
    if hard is not None and used >= hard:
        status = "hard-cap-exceeded"
    if not policy.enabled:
        status = "disabled"
    return State(
        scope=scope,
        unit=policy.unit,
        period=policy.period,
        period_start_ms=int(start.timestamp()) * 1000,
        resets_at_ms=int(end.timestamp()) * 1000,
        status=status,
        used=used,
        soft_cap=policy.soft_cap,
        hard_cap=hard,
        unpriced_events=sum(totals[5 if org_only else 4] for totals in inside),
        on_stale=policy.on_stale,
    )


# Small worlds: the same few budgets, days and sources meet again and again.
cell_scopes = st.sampled_from(["port:a", "port:a", "port=*", "user:u", "all"])
policy_scopes = st.sampled_from(["port:a", "port:*", "port:*", "user:*", "all"])
budgets = st.tuples(
    policy_scopes,
    st.sampled_from(["tokens", "tokens", "cost"]),
    st.sampled_from(["day", "week", "month", "rolling-30d", "rolling-30d"]),
)
amounts = st.integers(0, 12) | st.just(10**30)
all_totals = st.tuples(*[amounts] * 6)
caps = st.none() | st.integers(0, 20)


@st.composite
def drawn_policies(draw: st.DrawFn) -> Policy:
    soft, hard = draw(caps), draw(caps)
    if soft is not None and hard is not None:
        soft, hard = sorted((soft, hard))
    until = st.integers(-3 * DAY_MS, 10 * DAY_MS).map(lambda ms: NOW + ms)
    return Policy(
        *draw(budgets),
        enabled=draw(st.sampled_from([True, True, True, False])),
        soft_cap=soft,
        hard_cap=hard,
        warn_threshold_pct=draw(st.sampled_from([80, 80, 0, 33, 100])),
        extra=draw(st.none() | st.builds(Extra, st.integers(0, 9), until)),
    )


time_steps = st.sampled_from([1, MINUTE_MS, 14 * 3_600_000, DAY_MS, DAY_MS, 9 * DAY_MS])
days_from_now = st.sampled_from([-40, -29, -22, -6, -1, 0, 0, 0, 1])
operation_kinds = {
    "cell": st.tuples(st.just("cell"), st.integers(0, 1), cell_scopes, days_from_now, all_totals),
    "flush": st.tuples(
        st.just("flush"),
        st.integers(0, 1),
        st.lists(st.tuples(cell_scopes, days_from_now, all_totals), max_size=6),
    ),
    "put": st.tuples(st.just("put"), drawn_policies()),
    "delete": st.tuples(st.just("delete"), budgets),
    "advance": st.tuples(st.just("advance"), time_steps),
    "expire": st.tuples(st.just("expire"), time_steps | st.just(45 * DAY_MS)),
    "take": st.tuples(st.just("take"), st.integers(1, 4)),
    "drain": st.tuples(st.just("drain")),
    "restart": st.tuples(st.just("restart"), st.randoms(use_true_random=False)),
}
weights = "cell cell cell flush flush put put put delete advance expire take drain drain restart"
operations = st.sampled_from(weights.split()).flatmap(operation_kinds.__getitem__)
histories = st.lists(operations, min_size=5, max_size=40)


class World:
    """Runs operations on accounts, and keeps what a recomputation needs."""

    def __init__(self, homes: Callable[[str], bool] = everything) -> None:
        self.homes = homes
        self.now_ms = NOW
        self.accounts = Accounts(homes, NOW)
        self.cells: Cells = {}
        self.policies: dict[str, Policy] = {}
        self.published = Published()

    def run(self, name: str, *values: Any) -> None:
        getattr(self, name)(*values)

    def cell(self, source: int, scope: str, days_from_now: int, totals: Totals) -> None:
        day = self.now_ms // DAY_MS + days_from_now
        self.cells[source, scope, day] = totals
        self.accounts.apply_cells(source, [(scope, day, totals)])

    def flush(self, source: int, values: list[tuple[str, int, Totals]]) -> None:
        today = self.now_ms // DAY_MS
        cells = [(scope, today + days_from_now, totals) for scope, days_from_now, totals in values]
        self.cells |= {(source, scope, day): totals for scope, day, totals in cells}
        self.accounts.apply_cells(source, cells)

    def put(self, policy: Policy) -> None:
        self.policies[policy.key] = policy
        self.accounts.put_policy(policy)

    def delete(self, budget: tuple[str, str, str]) -> None:
        self.policies.pop(record_key(*budget), None)
        self.accounts.delete_policy(record_key(*budget))

    def advance(self, step_ms: int) -> None:
        self.now_ms += step_ms
        self.accounts.advance(self.now_ms)

    def expire(self, step_ms: int) -> None:
        self.now_ms += step_ms
        for day in self.accounts.expire(self.now_ms):
            assert day < self.now_ms // DAY_MS - 28

    def take(self, limit: int) -> None:
        self.published.take(self.accounts, limit)

    def drain(self) -> None:
        assert self.published.drain(self.accounts) == self.expected()

    def restart(self, order: random.Random) -> None:
        """A new owner: replays cells, policies and published records in any order."""
        self.accounts = Accounts(
            self.homes, self.now_ms - order.choice([0, DAY_MS, 5 * DAY_MS, 40 * DAY_MS])
        )
        steps: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        for (source, scope, day), totals in self.cells.items():
            older = (0, *totals[1:])
            if order.random() < 0.5:
                at_rest = packed(older) or older
                steps += [(self.accounts.restore_cell, (source, (scope, day, at_rest)))]
            else:
                steps += [(self.accounts.apply_cells, (source, [(scope, day, older)]))]
        steps += [(self.accounts.put_policy, (policy,)) for policy in self.policies.values()]
        steps += [
            (self.accounts.restore_published, (key, state_json(state, 7, NOW)))
            for key, state in self.published.states.items()
        ]
        steps += [(self.accounts.advance, (self.now_ms,))]
        order.shuffle(steps)
        for step, values in steps:
            step(*values)
        for (source, scope, day), totals in self.cells.items():
            self.accounts.apply_cells(source, [(scope, day, totals)])

    def expected(self) -> dict[str, State]:
        return recompute(self.cells, self.policies, self.now_ms, self.homes)


@settings(max_examples=250, deadline=None)
@given(histories)
def test_any_history_gives_what_a_recomputation_gives(history: list[tuple[Any, ...]]) -> None:
    world = World()
    for operation in history:
        world.run(*operation)
    world.drain()
    assert {state.key: state for state in world.accounts.states()} == world.expected()


@settings(max_examples=50, deadline=None)
@given(histories)
def test_records_of_scopes_homed_elsewhere_are_not_published(
    history: list[tuple[Any, ...]],
) -> None:
    elsewhere = {"port:*", "port:never", "user:*", "all"}
    world = World(lambda scope: scope not in elsewhere)
    for operation in history:
        if operation[0] != "cell" or operation[2] != "all":
            world.run(*operation)
    world.drain()
    assert not {state.scope for state in world.published.states.values()} & elsewhere


@settings(max_examples=50, deadline=None)
@given(histories, st.randoms(use_true_random=False))
def test_an_unchanged_record_is_not_published_again_after_a_restart(
    history: list[tuple[Any, ...]], order: random.Random
) -> None:
    world = World()
    for operation in history:
        world.run(*operation)
    world.drain()
    world.restart(order)
    assert world.accounts.changes(10_000) == []


# The rules one by one.


@pytest.fixture
def world() -> World:
    return World()


def tokens(count: int) -> Totals:
    return (1, count, 0, 0, 0, 0)


def monthly(scope: str, hard: int, **more: Any) -> Policy:
    return Policy(scope, "tokens", "month", hard_cap=hard, **more)


def test_a_policy_shows_what_was_used_before_it_existed(world: World) -> None:
    world.cell(0, "port:a", -1, tokens(5))
    world.cell(1, "port:a", 0, tokens(7))
    world.cell(0, "port:a", -22, tokens(100))
    assert world.accounts.changes(10) == []
    world.put(monthly("port:a", 100))
    ((key, state),) = world.published.take(world.accounts)
    assert key == "port:a|tokens|month"
    assert state is not None
    assert (state.used, state.status) == (12, "ok")


def test_the_same_cell_again_changes_nothing(world: World) -> None:
    world.put(monthly("port:a", 100))
    world.cell(0, "port:a", 0, tokens(5))
    world.drain()
    world.cell(0, "port:a", 0, tokens(5))
    assert world.accounts.dirty == 0


def test_a_wildcard_has_a_record_and_one_per_id_from_its_first_event(world: World) -> None:
    world.cell(0, "port:a", 0, tokens(5))
    world.put(monthly("port:*", 10))
    world.cell(0, "port:b", 0, tokens(0))
    world.drain()
    used = {key: state.used for key, state in world.published.states.items()}
    assert used == {
        "port:*|tokens|month": 0,
        "port:a|tokens|month": 5,
        "port:b|tokens|month": 0,
    }


def test_the_id_star_is_apart_from_the_wildcard(world: World) -> None:
    world.put(monthly("port:*", 10))
    world.accounts.apply_cells(0, [("port:*", TODAY, tokens(4))])
    states = world.published.drain(world.accounts)
    assert states["port:*|tokens|month"].used == 0
    assert states["port:%2A|tokens|month"].used == 4
    assert b'"scope":"port:*"' in state_json(states["port:%2A|tokens|month"], 1, NOW)


def test_an_own_policy_replaces_the_wildcards_and_its_deletion_brings_it_back(
    world: World,
) -> None:
    world.cell(0, "port:a", 0, tokens(5))
    world.put(monthly("port:*", 10))
    world.put(monthly("port:a", 5))
    world.drain()
    assert world.published.states["port:a|tokens|month"].status == "hard-cap-exceeded"
    world.delete(("port:a", "tokens", "month"))
    world.drain()
    assert world.published.states["port:a|tokens|month"].hard_cap == 10
    world.delete(("port:*", "tokens", "month"))
    world.drain()
    assert world.published.states == {}


def test_a_changed_wildcard_leaves_own_policies_alone(world: World) -> None:
    world.put(monthly("port:*", 10))
    world.cell(0, "port:a", 0, tokens(5))
    world.cell(0, "port:b", 0, tokens(5))
    world.put(monthly("port:a", 6))
    world.put(monthly("port:*", 20))
    world.drain()
    caps = {key: state.hard_cap for key, state in world.published.states.items()}
    assert caps == {
        "port:*|tokens|month": 20,
        "port:a|tokens|month": 6,
        "port:b|tokens|month": 20,
    }


def test_time_may_jump_over_days_that_have_cells(world: World) -> None:
    world.put(Policy("all", "tokens", "rolling-30d"))
    for days in (-29, -28, -5, 0, 1):
        world.cell(0, "all", days, tokens(1))
    world.drain()
    assert world.published.states["all|tokens|rolling-30d"].used == 4
    world.advance(2 * DAY_MS)
    world.drain()
    assert world.published.states["all|tokens|rolling-30d"].used == 3


def test_id_records_end_with_the_period_and_own_ones_start_again(world: World) -> None:
    world.put(Policy("port:*", "tokens", "day", hard_cap=10))
    world.put(Policy("port:own", "tokens", "day", hard_cap=10))
    world.cell(0, "port:a", 0, tokens(5))
    world.cell(0, "port:own", 0, tokens(5))
    world.drain()
    world.advance((TODAY + 1) * DAY_MS - world.now_ms)
    changes = dict(world.published.take(world.accounts))
    assert changes["port:a|tokens|day"] is None
    own, wildcard = changes["port:own|tokens|day"], changes["port:*|tokens|day"]
    assert own is not None
    assert wildcard is not None
    assert (own.used, wildcard.used) == (0, 0)
    assert own.period_start_ms == wildcard.period_start_ms == (TODAY + 1) * DAY_MS


def test_nothing_happens_a_millisecond_before_midnight(world: World) -> None:
    world.put(Policy("all", "tokens", "day", hard_cap=10))
    world.drain()
    midnight_ms = (TODAY + 1) * DAY_MS
    world.advance(midnight_ms - 1 - world.now_ms)
    assert world.accounts.dirty == 0
    world.advance(1)
    assert world.accounts.has_urgent


def test_an_event_ahead_of_midnight_counts_in_its_own_day(world: World) -> None:
    world.put(Policy("port:*", "tokens", "day", hard_cap=10))
    world.cell(0, "port:a", 1, tokens(5))
    world.drain()
    assert "port:a|tokens|day" not in world.published.states
    world.advance(DAY_MS)
    world.drain()
    assert world.published.states["port:a|tokens|day"].used == 5


def test_time_does_not_go_back(world: World) -> None:
    world.put(Policy("all", "tokens", "day", hard_cap=10))
    world.advance(DAY_MS)
    world.drain()
    world.accounts.advance(NOW)
    assert world.accounts.dirty == 0
    assert world.accounts.now_ms == NOW + DAY_MS


def test_the_end_of_an_extra_is_due_on_time_also_for_ids_of_a_wildcard(world: World) -> None:
    until_ms = NOW + MINUTE_MS
    world.put(monthly("port:*", 10, extra=Extra(5, until_ms)))
    world.cell(0, "port:a", 0, tokens(12))
    world.drain()
    assert world.published.states["port:a|tokens|month"].status == "ok"
    world.advance(MINUTE_MS - 1)
    assert world.accounts.dirty == 0
    world.advance(1)
    world.drain()
    state = world.published.states["port:a|tokens|month"]
    assert (state.hard_cap, state.status) == (10, "hard-cap-exceeded")
    assert world.published.states["port:*|tokens|month"].hard_cap == 10


def test_which_events_count_where(world: World) -> None:
    for scope in ("all", "org:o", "group:g", "port:p", "user:u"):
        world.put(Policy(scope, "cost", "month"))
        world.put(Policy(scope, "tokens", "month"))
        world.cell(0, scope, 0, (3, 100, 70, 40, 2, 1))
    world.drain()
    found = {key: (s.used, s.unpriced_events) for key, s in world.published.states.items()}
    for scope in ("all", "org:o", "group:g", "port:p"):
        assert found[f"{scope}|cost|month"] == (40, 1)
        assert found[f"{scope}|tokens|month"] == (100, 2)
    assert found["user:u|cost|month"] == (70, 2)
    assert found["user:u|tokens|month"] == (100, 2)


def test_changes_of_status_come_first_then_the_oldest(world: World) -> None:
    for name in "abcd":
        world.put(monthly(f"port:{name}", 100))
    world.drain()
    for name, used in (("c", 10), ("a", 20), ("d", 81), ("b", 30), ("c", 40)):
        world.cell(0, f"port:{name}", 0, tokens(used))
    assert world.accounts.has_urgent
    keys = [key for _ in range(4) for key, _ in world.published.take(world.accounts, 1)]
    assert keys == [f"port:{name}|tokens|month" for name in "dcab"]
    assert not world.accounts.has_urgent


def test_a_period_that_ends_for_many_does_not_hold_up_what_an_event_does(world: World) -> None:
    for number in range(8):
        world.put(Policy(f"user:{number}", "tokens", "day", hard_cap=100))
    for name in "ab":
        world.put(monthly(f"port:{name}", 100))
    world.put(monthly("port:*", 100))
    world.drain()
    world.advance(DAY_MS)
    world.cell(0, "port:a", 0, tokens(1))
    world.cell(0, "port:b", 0, tokens(100))
    world.cell(0, "port:new", 0, tokens(1))
    assert world.accounts.has_urgent
    keys = [key for key, _ in world.published.take(world.accounts, 4)]
    later = [key for key, _ in world.published.take(world.accounts, 100)]
    assert keys[:3] == [f"port:{name}|tokens|month" for name in ("b", "new", "a")]
    assert [*keys[3:], *later] == [f"user:{number}|tokens|day" for number in range(8)]


def test_what_an_event_uses_of_a_new_period_goes_first(world: World) -> None:
    for name in "abc":
        world.put(Policy(f"port:{name}", "tokens", "day", hard_cap=100))
    world.cell(0, "port:a", 0, tokens(100))
    world.drain()
    world.cell(0, "port:b", 1, tokens(1))
    world.advance(DAY_MS)
    world.cell(0, "port:c", 0, tokens(100))
    keys = [key for key, _ in world.published.take(world.accounts)]
    assert keys == [f"port:{name}|tokens|day" for name in "bca"]


def test_a_status_that_came_back_before_it_was_published_is_not_urgent(world: World) -> None:
    for name in "ab":
        world.put(monthly(f"port:{name}", 100))
    world.drain()
    world.cell(0, "port:b", 0, tokens(1))
    world.cell(0, "port:a", 0, tokens(100))
    world.cell(0, "port:a", 0, tokens(2))
    keys = [key for key, _ in world.published.take(world.accounts)]
    assert keys == ["port:b|tokens|month", "port:a|tokens|month"]


def test_restored_records(world: World) -> None:
    world.put(monthly("port:a", 100))
    (state,) = world.accounts.states()
    world.accounts.restore_published("port:a|tokens|month", state_json(state, 9, NOW))
    world.accounts.restore_published("port:gone|tokens|month", state_json(state, 9, NOW))
    world.accounts.restore_published("rubbish", b"rubbish")
    world.accounts.restore_published("port:dead|tokens|month", None)
    world.accounts.restore_published(heartbeat_key(0), b"{}")
    assert {(c.key, c.state) for c in world.accounts.changes(10)} == {
        ("port:gone|tokens|month", None),
        ("rubbish", None),
    }


def test_expired_days_are_dropped_and_stay_out(world: World) -> None:
    world.put(Policy("user:*", "tokens", "rolling-30d", hard_cap=10))
    world.cell(0, "user:u", 0, tokens(5))
    world.cell(1, "user:u", -29, tokens(3))
    world.drain()
    assert world.accounts.expire(NOW + 2 * DAY_MS) == [TODAY - 29]
    world.accounts.apply_cells(1, [("user:u", TODAY - 29, tokens(4))])
    assert world.accounts.expire(NOW + 40 * DAY_MS) == [TODAY]
    assert [s.key for s in world.accounts.states()] == ["user:*|tokens|rolling-30d"]
    assert world.accounts.account_count == 1


def test_ids_without_cells_leave_nothing_behind(world: World) -> None:
    world.put(monthly("port:a", 1))
    world.put(monthly("port:*", 1))
    world.put(Policy("port:*", "cost", "day"))
    assert world.accounts.account_count == 4
    world.delete(("port:a", "tokens", "month"))
    assert world.accounts.account_count == 2
    world.delete(("port:*", "tokens", "month"))
    world.delete(("port:*", "cost", "day"))
    assert world.accounts.account_count == 0
    world.drain()


def test_only_policies_that_matter_here_are_kept() -> None:
    accounts = Accounts(lambda scope: scope == "port:a", NOW)
    for scope in ("port:a", "port:b", "port:*", "all"):
        accounts.put_policy(monthly(scope, 1))
    assert {policy.scope for policy in accounts.policies()} == {"port:a", "port:*"}
    accounts.delete_policy("port:b|tokens|month")
    accounts.delete_policy("port:a|tokens|month")
    assert {policy.scope for policy in accounts.policies()} == {"port:*"}


def test_cells_rest_once_the_day_after_theirs_is_over(world: World) -> None:
    def resting() -> dict[int, int]:
        cells = world.accounts._cells.items()  # pyright: ignore[reportPrivateUsage]
        counts = {
            day - TODAY: sum(type(one) is bytes for one in of.values()) for (day, _), of in cells
        }
        return {day: count for day, count in counts.items() if count}

    world.put(Policy("user:*", "cost", "rolling-30d", hard_cap=10**9))
    for user in range(1_000):
        world.cell(0, f"user:{user}", 0, (1, 2, 3, 3, 0, 0))
    assert resting() == {}
    world.advance(DAY_MS)
    world.cell(0, "user:1", 0, (1, 2, 3, 3, 0, 0))
    assert resting() == {}
    world.advance(DAY_MS)
    for _ in range(5):
        world.cell(0, "user:1", 0, (1, 2, 3, 3, 0, 0))
    assert resting() == {0: 1_000}
    world.cell(0, "user:1", -2, (2, 4, 10**30, 6, 0, 0))  # late, and beyond 64 bits
    world.cell(1, "user:1", -2, (2, 4, 6, 6, 0, 0))
    world.cell(0, "user:2", -2, (2, 4, 6, 6, 0, 0))
    world.drain()

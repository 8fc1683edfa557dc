"""States on the wire, and the decision, against the contract's tables."""

import json
from decimal import Decimal
from fractions import Fraction
from itertools import permutations
from math import inf
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.budgets import (
    Heartbeat,
    State,
    StateTable,
    heartbeat_json,
    heartbeat_key,
    is_heartbeat,
    parse_heartbeat,
    parse_state,
    state_json,
    state_of,
    status_of,
)
from pipeline.core.decision import (
    Asked,
    Request,
    Verdict,
    decide,
    decide_all,
    estimate_cost_nano,
    verdict_fields,
)
from pipeline.core.errors import CorruptRecord
from pipeline.core.policies import Policy
from pipeline.core.scopes import PERIODS
from pipeline.core.windows import DAY_MS, parse_ms, window

NOW = parse_ms("2026-11-22T10:15:03.120Z")

CONTRACT_EXAMPLE = (
    b'{"scope":"port:harbor-7","unit":"tokens","period":"month",'
    b'"period_start":"2026-11-01T00:00:00Z","resets_at":"2026-12-01T00:00:00Z",'
    b'"status":"soft-cap-exceeded","used":123456,"remaining":376544,"soft_cap":100000,'
    b'"hard_cap":500000,"unpriced_events":0,"version":811,'
    b'"as_of":"2026-11-22T10:15:03.120Z","on_stale":"allow"}'
)


def state(
    scope: str = "port:a",
    used: int = 0,
    hard: int | None = 100,
    unit: str = "tokens",
    period: str = "month",
    **policy: Any,
) -> State:
    rules = Policy(scope, unit, period, hard_cap=hard, **policy)
    return state_of(rules, scope, window(period, NOW), used, 0, NOW)


def asked(*states: State, freshness: str = "LIVE", reserved: int = 0) -> list[Asked]:
    return [Asked(found, NOW, freshness, reserved) for found in states]


def verdict(*states: State, tokens: int = 0, cost_nano: int = 0, **how: Any) -> Verdict:
    request = Request(port_id="a", estimated_tokens=tokens, estimated_cost_nano=cost_nano)
    return decide(asked(*states), request, **how)


class TestWire:
    def test_the_contracts_example(self) -> None:
        found = state("port:harbor-7", 123456, 500_000, soft_cap=100_000)
        assert state_json(found, 811, NOW) == CONTRACT_EXAMPLE
        record = parse_state(b"port:harbor-7|tokens|month", CONTRACT_EXAMPLE)
        assert record == (found, 811, NOW)

    def test_costs_are_decimal_strings(self) -> None:
        found = state("user:u", 5_500_000_000, 5_000_000_000, "cost", soft_cap=1)
        fields = json.loads(state_json(found, 1, NOW))
        assert (fields["used"], fields["remaining"]) == ("5.5", "-0.5")
        assert (fields["hard_cap"], fields["soft_cap"]) == ("5", "0.000000001")

    def test_no_hard_cap_no_remaining(self) -> None:
        fields = json.loads(state_json(state(hard=None), 1, NOW))
        assert fields["remaining"] is None
        assert fields["hard_cap"] is None

    @given(
        st.sampled_from(["all", "port:*", "port=*", 'user:"|%:ä\n', "org:*"]),
        st.integers(-(10**25), 10**25),
        st.none() | st.integers(0, 10**20),
        st.sampled_from(["tokens", "cost"]),
        st.sampled_from(PERIODS),
        st.integers(0, 2**53),
    )
    def test_states_come_back(
        self, scope: str, used: int, hard: int | None, unit: str, period: str, version: int
    ) -> None:
        found = state(scope, used, hard, unit, period)
        value = state_json(found, version, NOW)
        assert parse_state(found.key, value) == (found, version, NOW)

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            (b'"used":123456', b'"used":"123456"'),
            (b'"used":123456', b'"used":1.5'),
            (b'"used":123456,', b""),
            (b"harbor-7", b"harbor-8"),
            (b"soft-cap-exceeded", b"fine"),
            (b"allow", b"perhaps"),
            (b"2026-11-01T00:00:00Z", b"November"),
            (b'"version":811', b'"version":null'),
            (b"{", b"["),
        ],
    )
    def test_what_is_no_state_is_refused(self, old: bytes, new: bytes) -> None:
        with pytest.raises(CorruptRecord):
            parse_state("port:harbor-7|tokens|month", CONTRACT_EXAMPLE.replace(old, new, 1))

    def test_heartbeats(self) -> None:
        beat = Heartbeat(3, NOW, {10: 7, 0: 1234})
        value = heartbeat_json(beat)
        assert value == b'{"as_of":"2026-11-22T10:15:03.120Z","through":{"0":1234,"10":7}}'
        assert heartbeat_key(3) == "!heartbeat|3"
        assert parse_heartbeat(b"!heartbeat|3", value) == beat
        assert is_heartbeat(b"!heartbeat|3")
        assert is_heartbeat("!heartbeat|3")
        assert not is_heartbeat(b"port:a|tokens|day")
        for bad in (b"{}", b"[]", b"x", b'{"as_of":"x","through":{}}'):
            with pytest.raises(CorruptRecord):
                parse_heartbeat("!heartbeat|3", bad)


@pytest.mark.parametrize(
    ("used", "expected", "policy"),
    [
        (80, "ok", {"hard_cap": 100}),
        (81, "soft-cap-exceeded", {"hard_cap": 100}),
        (99, "soft-cap-exceeded", {"hard_cap": 100}),
        (100, "hard-cap-exceeded", {"hard_cap": 100}),
        (100, "disabled", {"hard_cap": 100, "enabled": False}),
        (0, "hard-cap-exceeded", {"hard_cap": 0}),
        (50, "ok", {"soft_cap": 50}),
        (51, "soft-cap-exceeded", {"soft_cap": 50}),
        (90, "ok", {"hard_cap": 100, "soft_cap": 95}),
        (1, "soft-cap-exceeded", {"hard_cap": 100, "warn_threshold_pct": 0}),
        (0, "ok", {"hard_cap": 100, "warn_threshold_pct": 0}),
        (10**30, "ok", {}),
    ],
)
def test_status(used: int, expected: str, policy: dict[str, Any]) -> None:
    assert status_of(Policy("all", "tokens", "day", **policy), used, NOW) == expected


class TestOnePolicy:
    @pytest.mark.parametrize(
        ("used", "tokens", "allowed", "reason", "warning"),
        [
            (0, 0, True, "ok", False),
            (80, 20, True, "ok", False),
            (80, 21, False, "estimated-exceeds-cap", False),
            (81, 0, True, "ok", True),
            (81, 19, True, "ok", True),
            (100, 0, False, "hard-cap-exceeded", False),
            (150, 1, False, "hard-cap-exceeded", False),
        ],
    )
    def test_the_rules(
        self, used: int, tokens: int, allowed: bool, reason: str, warning: bool
    ) -> None:
        found = verdict(state(used=used), tokens=tokens)
        assert (found.allowed, found.reason) == (allowed, reason)
        assert found.soft_cap_warning == warning
        assert (found.used, found.hard_cap, found.remaining) == (used, 100, 100 - used)
        assert (found.scope, found.unit, found.period) == ("port:a", "tokens", "month")
        assert found.resets_at == "2026-12-01T00:00:00Z"
        assert found.as_of == "2026-11-22T10:15:03.120Z"
        assert found.freshness == "LIVE"

    def test_each_unit_has_its_own_estimate(self) -> None:
        cost = state(unit="cost", hard=100)
        assert verdict(cost, tokens=1000).allowed
        assert verdict(cost, cost_nano=101).reason == "estimated-exceeds-cap"
        assert verdict(state(), cost_nano=101).allowed

    def test_disabled_allows_whatever_is_used(self) -> None:
        found = verdict(state(used=500, enabled=False), tokens=10**9)
        assert (found.allowed, found.reason, found.remaining) == (True, "disabled", inf)
        assert not found.soft_cap_warning

    def test_no_hard_cap(self) -> None:
        found = verdict(state(used=500, hard=None, soft_cap=499), tokens=10**9)
        assert (found.allowed, found.reason) == (True, "ok")
        assert found.soft_cap_warning
        assert (found.hard_cap, found.remaining) == (None, inf)
        assert verdict_fields(found)["remaining"] is None

    def test_no_policy(self) -> None:
        found = verdict()
        assert (found.allowed, found.reason, found.remaining) == (True, "no-policy", inf)
        assert verdict_fields(found) == {
            "allowed": True,
            "reason": "no-policy",
            "scope": None,
            "unit": None,
            "period": None,
            "used": None,
            "hard_cap": None,
            "remaining": None,
            "soft_cap_warning": False,
            "resets_at": None,
            "as_of": None,
            "freshness": "LIVE",
        }

    def test_cost_is_decimal_in_python_and_text_on_the_wire(self) -> None:
        found = verdict(state("user:u", 1, 5_000_000_000, "cost"))
        assert found.remaining == Decimal("4.999999999")
        fields = verdict_fields(found)
        assert (fields["used"], fields["hard_cap"]) == ("0.000000001", "5")
        assert fields["remaining"] == "4.999999999"

    def test_reservations_count_as_used(self) -> None:
        (policy,) = asked(state(used=90), reserved=10)
        found = decide([policy], Request(port_id="a"))
        assert (found.reason, found.used, found.remaining) == ("hard-cap-exceeded", 100, 0)


class TestManyPolicies:
    def test_a_refusal_wins(self) -> None:
        found = verdict(state("user:u", 0), state("all", 100), state("port:a", 99))
        assert (found.allowed, found.scope) == (False, "all")

    def test_among_refusals_the_latest_reset_answers(self) -> None:
        found = verdict(
            state("user:u", 100, period="day"),
            state("all", 100, period="month"),
            state("port:a", 100, period="week"),
        )
        assert (found.scope, found.resets_at) == ("all", "2026-12-01T00:00:00Z")

    def test_among_permits_the_lowest_share_answers_exactly(self) -> None:
        # As floats both shares are 1/3.
        third = state("user:u", 2 * 10**20, 3 * 10**20)
        less = state("all", 2 * 10**20 + 1, 3 * 10**20)
        assert verdict(third, less).scope == "all"
        assert verdict(less, third).scope == "all"

    def test_shares_not_amounts(self) -> None:
        assert verdict(state("user:u", 0, 10), state("all", 1000, 2000)).scope == "all"

    def test_what_sets_no_limit_answers_last(self) -> None:
        limited = state("all", 0, 100)
        unlimited = state("user:u", 50, None, soft_cap=9)
        disabled = state("user:u", 99, 100, enabled=False, period="day")
        for order in permutations([limited, unlimited, disabled]):
            assert verdict(*order).scope == "all"
        assert verdict(disabled, unlimited).reason == "ok"

    @pytest.mark.parametrize("used", [50, 100])
    def test_ties(self, used: int) -> None:
        """Permits and refusals alike; all windows here end at the same midnight."""
        ranked = [
            state(scope, used, unit=unit, period=period)
            for scope in ("user:u", "group:g", "port:a", "org:o", "all")
            for unit in ("tokens", "cost")
            for period in ("day", "week", "rolling-30d")
        ]
        assert len({found.resets_at_ms for found in ranked}) == 1
        for first in range(len(ranked)):
            found = verdict(*reversed(ranked[first:]))
            best = ranked[first]
            assert (found.scope, found.unit, found.period) == (best.scope, best.unit, best.period)

    def test_each_policy_is_reported(self) -> None:
        request = Request(port_id="a")
        policies = asked(state("all", 10), state("user:u", 100), state("port:a", 90))
        found = decide_all(policies, request)
        assert [(v.scope, v.allowed) for v in found] == [
            ("user:u", False),
            ("port:a", True),
            ("all", True),
        ]
        assert found[0] == decide(policies, request)


class TestFreshness:
    @pytest.mark.parametrize(("on_stale", "allowed"), [("allow", True), ("deny", False)])
    @pytest.mark.parametrize("used", [0, 100])
    def test_when_stale_the_policy_decides(self, used: int, on_stale: str, allowed: bool) -> None:
        found = decide(
            asked(state(used=used, on_stale=on_stale), freshness="STALE"),
            Request(port_id="a", estimated_tokens=1000),
            on_stale="deny" if allowed else "allow",
        )
        assert (found.allowed, found.reason, found.freshness) == (allowed, "stale", "STALE")

    @pytest.mark.parametrize(
        ("used", "warned"), [(79, False), (80, False), (81, True), (100, True), (130, True)]
    )
    @pytest.mark.parametrize("soft", [None, 80])
    def test_above_the_soft_line_a_stale_permit_warns(
        self, used: int, warned: bool, soft: int | None
    ) -> None:
        policies = asked(state(used=used, soft_cap=soft), freshness="STALE")
        found = decide(policies, Request(port_id="a"))
        assert (found.allowed, found.soft_cap_warning) == (True, warned)

    def test_what_is_reserved_beyond_the_hard_cap_is_above_the_line(self) -> None:
        policies = asked(state(used=70), freshness="STALE", reserved=31)
        assert decide(policies, Request(port_id="a")).soft_cap_warning

    def test_one_stale_partition_does_not_make_the_others_stale(self) -> None:
        live, stale = asked(state("all", 10)), asked(state("user:u"), freshness="STALE")
        found = decide(live + stale, Request(user_id="u"))
        assert (found.scope, found.reason, found.freshness) == ("all", "ok", "LIVE")

    def test_a_disabled_policy_never_refuses(self) -> None:
        found = verdict(state(enabled=False, on_stale="deny"), freshness="STALE")
        assert (found.allowed, found.reason) == (True, "disabled")

    @pytest.mark.parametrize("freshness", ["STALE", "INITIALIZING"])
    @pytest.mark.parametrize(("on_stale", "allowed"), [("allow", True), ("deny", False)])
    def test_while_no_policy_is_known_the_setting_decides(
        self, freshness: str, on_stale: str, allowed: bool
    ) -> None:
        found = verdict(freshness=freshness, on_stale=on_stale)
        assert (found.allowed, found.reason) == (allowed, "stale")
        assert found.freshness == freshness

    def test_while_initializing_unknown_policies_may_exist(self) -> None:
        known = state(used=0)
        assert not verdict(known, freshness="INITIALIZING", on_stale="deny").allowed
        assert verdict(known, freshness="INITIALIZING", on_stale="allow").allowed
        denying = state(used=0, on_stale="deny")
        assert not verdict(denying, freshness="INITIALIZING", on_stale="allow").allowed

    def test_off_allows(self) -> None:
        found = verdict(state(used=100), freshness="OFF", on_stale="deny")
        assert (found.allowed, found.freshness) == (True, "OFF")


class TestStateTable:
    def put(self, table: StateTable, found: State, version: int = 1) -> bool:
        return table.put(found.key.encode(), state_json(found, version, NOW)) is not None

    def states(self, table: StateTable, *scopes: str, now_ms: int = NOW) -> list[State]:
        return [record.state for record in table.asked(scopes, now_ms)]

    def test_an_older_version_is_ignored(self) -> None:
        table = StateTable()
        assert self.put(table, state(used=2), 2)
        assert not self.put(table, state(used=1), 1)
        assert self.put(table, state(used=3), 2)
        (found,) = self.states(table, "port:a")
        assert found.used == 3

    def test_an_id_without_a_record_reads_the_wildcards(self) -> None:
        table = StateTable()
        self.put(table, state("port:*", 0, 10))
        self.put(table, state("port:a", 7, 20))
        self.put(table, state("port:*", 0, 10, period="day"))
        found = {(s.scope, s.period): (s.used, s.hard_cap) for s in self.states(table, "port:a")}
        assert found == {("port:a", "month"): (7, 20), ("port:a", "day"): (0, 10)}
        found = {(s.scope, s.period): (s.used, s.hard_cap) for s in self.states(table, "port:x")}
        assert found == {("port:x", "month"): (0, 10), ("port:x", "day"): (0, 10)}
        assert self.states(table, "user:a", "all") == []

    def test_the_id_star_reads_its_own_record(self) -> None:
        table = StateTable()
        self.put(table, state("port:*", 0, 10))
        self.put(table, state("port=*", 7, 10))
        (found,) = self.states(table, *Request(port_id="*").scopes)
        assert found.used == 7

    def test_a_tombstone_removes(self) -> None:
        table = StateTable()
        self.put(table, state(used=2))
        assert len(table) == 1
        table.put(b"port:a|tokens|month", None)
        table.put(b"port:b|tokens|month", None)
        assert len(table) == 0
        assert self.states(table, "port:a") == []

    @pytest.mark.parametrize("period", PERIODS)
    def test_a_state_past_its_reset_has_nothing_used(self, period: str) -> None:
        table = StateTable()
        full = state(used=100, period=period)
        self.put(table, full)
        assert self.states(table, "port:a", now_ms=full.resets_at_ms - 1) == [full]
        later_ms = full.resets_at_ms + 3 * DAY_MS
        (found,) = self.states(table, "port:a", now_ms=later_ms)
        span = window(period, later_ms)
        assert (found.used, found.status) == (0, "ok")
        assert (found.period_start_ms, found.resets_at_ms) == (span.start_ms, span.resets_at_ms)
        assert verdict(found).allowed

    def test_what_blocks_everything_still_does_after_the_reset(self) -> None:
        table = StateTable()
        self.put(table, state(hard=0))
        self.put(table, state(hard=0, enabled=False, period="day"))
        found = {s.period: s.status for s in self.states(table, "port:a", now_ms=NOW + 40 * DAY_MS)}
        assert found == {"month": "hard-cap-exceeded", "day": "disabled"}


def test_scopes_of_a_request() -> None:
    request = Request(port_id="p", user_id="u", organization_id="o", group_id="g")
    assert set(request.scopes) == {"all", "port:p", "user:u", "org:o", "group:g"}
    assert Request().scopes == ("all",)


def test_the_cost_estimate() -> None:
    assert estimate_cost_nano(7, 1000, 5) == 7
    assert estimate_cost_nano(0, 1000, 5) == 0
    assert estimate_cost_nano(None, 1000, 5) == 5000
    assert estimate_cost_nano(None, 1001, Fraction(1, 2)) == 501
    assert estimate_cost_nano(None, 1000, None) == 0


shares = st.tuples(st.integers(0, 12), st.integers(1, 12))


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["user:u", "group:g", "port:a", "org:o", "all"]),
            st.sampled_from(["tokens", "cost"]),
            st.sampled_from(PERIODS),
            shares,
        ),
        min_size=1,
        unique_by=lambda drawn: drawn[:3],
    ),
    st.integers(0, 5),
)
def test_the_decision_against_the_contracts_sentences(
    drawn: list[tuple[str, str, str, tuple[int, int]]], estimate: int
) -> None:
    states = [state(scope, used, hard, unit, period) for scope, unit, period, (used, hard) in drawn]
    found = verdict(*states, tokens=estimate, cost_nano=estimate)

    def refused(one: State) -> bool:
        return one.remaining is not None and (one.remaining <= 0 or estimate > one.remaining)

    refusing = [one for one in states if refused(one)]
    assert found.allowed == (not refusing)
    (answering,) = [
        one
        for one in states
        if (one.scope, one.unit, one.period) == (found.scope, found.unit, found.period)
    ]
    if refusing:
        assert refused(answering)
        assert answering.resets_at_ms == max(one.resets_at_ms for one in refusing)
    else:
        least = min(Fraction(one.remaining or 0, one.hard_cap or 1) for one in states)
        assert Fraction(answering.remaining or 0, answering.hard_cap or 1) == least

"""The gate: freshness, periods, wildcards and what this process holds beside the states."""

import threading
from typing import Any

import pytest

from pipeline.core.decision import Verdict
from pipeline.core.windows import DAY_MS, parse_ms
from producers import reservations
from producers.gate import Gate, Ids
from producers.mirror import STALE_AFTER_S
from producers.reservations import OPEN_S, SENT_S
from tests.producers.states import beat, record, state

NOW = parse_ms("2026-11-22T10:15:03.120Z")
NOBODY: Ids = (None, None, None, None)
PORT: Ids = ("a", None, None, None)
USER: Ids = (None, "u", None, None)
BOTH: Ids = ("a", "u", None, None)


class Bench:
    """A gate, the clocks it goes by, and the deployment it follows."""

    def __init__(self, partitions: int = 1, on_stale: str = "allow") -> None:
        self.now_s = 100.0
        self.wall_ms = NOW
        self.partitions = partitions
        self.gate = Gate(on_stale, lambda: self.now_s, lambda: self.wall_ms / 1000)

    def live(self) -> "Bench":
        self.gate.begin(self.partitions)
        self.gate.caught_up()
        self.beat()
        return self

    def put(self, partition: int = 0, version: int = 1, **fields: Any) -> None:
        self.gate.take(partition, *record(state(at_ms=self.now_ms, **fields), version, self.now_ms))

    def beat(self, through: dict[int, int] | None = None, only: int | None = None) -> None:
        for partition in range(self.partitions) if only is None else [only]:
            self.gate.take(partition, *beat(partition, self.now_ms, through))

    @property
    def now_ms(self) -> int:
        return NOW + int((self.now_s - 100.0) * 1000)

    def check(self, ids: Ids = PORT, tokens: int = 0, cost_nano: int = 0) -> Verdict:
        return self.gate.check(ids, tokens, cost_nano)

    def used(self, ids: Ids = PORT) -> Any:
        return self.check(ids).used


class TestFreshness:
    @pytest.mark.parametrize(("on_stale", "allowed"), [("allow", True), ("deny", False)])
    def test_before_it_has_caught_up_the_setting_decides(
        self, on_stale: str, allowed: bool
    ) -> None:
        bench = Bench(on_stale=on_stale)
        bench.gate.begin(1)
        bench.put(hard=0)
        found = bench.check()
        assert (found.allowed, found.reason, found.freshness) == (allowed, "stale", "INITIALIZING")
        bench.gate.caught_up()
        assert bench.check().reason == "hard-cap-exceeded"

    def test_stale_after_5_s_by_each_policys_own_rule(self) -> None:
        bench = Bench().live()
        bench.put(used=100)
        bench.put(scope="user:u", used=0, on_stale="deny")
        bench.now_s += STALE_AFTER_S - 0.1
        assert not bench.check(PORT).allowed
        assert bench.check(USER).allowed
        bench.now_s += 0.1
        assert (bench.check(PORT).allowed, bench.check(PORT).reason) == (True, "stale")
        assert (bench.check(USER).allowed, bench.check(USER).reason) == (False, "stale")
        bench.beat()
        assert not bench.check(PORT).allowed
        assert bench.check(USER).allowed

    @pytest.mark.parametrize(("on_stale", "allowed"), [("allow", True), ("deny", False)])
    def test_stale_without_a_policy_the_setting_decides(self, on_stale: str, allowed: bool) -> None:
        bench = Bench(on_stale=on_stale).live()
        assert bench.check().reason == "no-policy"
        bench.now_s += STALE_AFTER_S
        found = bench.check()
        assert (found.allowed, found.reason, found.freshness) == (allowed, "stale", "STALE")

    def test_each_partition_by_itself(self) -> None:
        bench = Bench(partitions=2).live()
        bench.put(0, scope="port:a", used=100)
        bench.put(1, scope="user:u", used=100)
        bench.now_s += 3
        bench.beat(only=0)
        bench.now_s += 2
        assert bench.check(PORT).freshness == "LIVE"
        assert bench.check(USER).freshness == "STALE"
        assert bench.gate.freshness == "STALE"
        bench.now_s += 3.5
        assert bench.check(PORT).freshness == "STALE"
        bench.beat(only=1)
        assert bench.check(PORT).freshness == "STALE"
        assert bench.check(USER).freshness == "LIVE"

    def test_as_of_moves_on_with_heartbeats(self) -> None:
        bench = Bench().live()
        bench.put()
        assert bench.check().as_of == "2026-11-22T10:15:03.120Z"
        bench.now_s += 1.5
        bench.beat()
        assert bench.check().as_of == "2026-11-22T10:15:04.620Z"


class TestPeriods:
    def test_at_the_end_of_a_period_nothing_is_used(self) -> None:
        bench = Bench().live()
        bench.put(used=100, period="day")
        seconds_left = (DAY_MS - NOW % DAY_MS) / 1000
        for _ in range(10):  # heartbeats keep coming
            bench.now_s += seconds_left / 10 - 0.01
            bench.beat()
        assert not bench.check().allowed
        bench.now_s += 0.2
        bench.beat()
        found = bench.check()
        assert (found.allowed, found.used) == (True, 0)
        assert found.resets_at == "2026-11-24T00:00:00Z"

    def test_a_machines_clock_that_runs_ahead_opens_nothing(self) -> None:
        bench = Bench().live()
        bench.put(used=100, period="day")
        bench.wall_ms += 3 * DAY_MS
        bench.now_s += 2
        assert not bench.check().allowed


class TestWildcards:
    def test_an_id_gets_a_record_of_its_own(self) -> None:
        bench = Bench().live()
        bench.put(scope="port:*", hard=100)
        assert bench.check(PORT, 100).allowed
        assert bench.check(PORT, 101).scope == "port:a"
        bench.put(scope="port:a", used=60, hard=100)
        assert not bench.check(PORT, 41).allowed
        bench.put(scope="port:*", hard=10, version=2)
        assert bench.check(("b", None, None, None), 10).allowed
        assert not bench.check(("b", None, None, None), 11).allowed
        bench.gate.take(0, b"port:*|tokens|month", None)
        assert bench.check(("b", None, None, None)).reason == "no-policy"

    def test_the_id_star_is_an_id(self) -> None:
        bench = Bench().live()
        bench.put(scope="port:*", hard=100)
        bench.put(scope="port=*", used=100, hard=100)
        assert not bench.check(("*", None, None, None)).allowed
        assert bench.check(PORT).allowed


class TestReservations:
    def test_several_policies_at_once_in_both_units(self) -> None:
        bench = Bench().live()
        bench.put(scope="all", hard=1000)
        bench.put(scope="port:a", hard=100)
        bench.put(scope="user:u", hard=90, unit="cost")
        verdict, hold = bench.gate.admit(BOTH, 40, 30)
        assert verdict.allowed
        assert hold is not None
        assert bench.used(NOBODY) == 40
        assert bench.used(PORT) == 40
        assert not bench.check(USER, 0, 61).allowed
        assert not bench.gate.admit(BOTH, 61, 0)[0].allowed
        bench.gate.release(hold)
        bench.gate.release(hold)
        assert bench.used(PORT) == 0
        assert bench.gate.held == 0

    def test_a_refused_call_holds_nothing(self) -> None:
        bench = Bench().live()
        bench.put(hard=10)
        verdict, hold = bench.gate.admit(PORT, 11, 0)
        assert (verdict.allowed, hold) == (False, None)
        assert bench.used() == 0

    def test_billed_to_the_user_it_counts_in_money_for_the_user_alone(self) -> None:
        bench = Bench().live()
        bench.put(scope="port:a", hard=100, unit="cost")
        bench.put(scope="user:u", hard=100, unit="cost")
        bench.put(scope="port:a", hard=100)
        bench.gate.admit(BOTH, 5, 70, org_billed=False)
        assert bench.check(PORT, 95, 100).allowed
        assert not bench.check(PORT, 96, 0).allowed
        assert not bench.check(USER, 0, 31).allowed

    def test_settled_with_what_was_used(self) -> None:
        bench = Bench().live()
        bench.put(hard=100)
        _, hold = bench.gate.admit(PORT, 40, 0)
        assert hold is not None
        assert bench.gate.settle(hold, PORT, 25, 0) is hold
        assert bench.used() == 25

    def test_settled_for_others_than_it_was_asked_for(self) -> None:
        bench = Bench().live()
        bench.put(hard=100)
        bench.put(scope="user:u", hard=100)
        _, hold = bench.gate.admit(PORT, 40, 0)
        assert hold is not None
        other = bench.gate.settle(hold, USER, 25, 0)
        assert other is not hold
        assert (bench.used(PORT), bench.used(USER)) == (0, 25)
        assert bench.gate.held == 1

    def test_let_go_by_the_partition_of_each_scope(self) -> None:
        bench = Bench(partitions=2).live()
        bench.put(0, scope="port:a", hard=100)
        bench.put(1, scope="user:u", hard=100)
        bench.check(BOTH)
        hold = bench.gate.hold(BOTH, 10, 0)
        bench.gate.sent(hold, 3, 7)
        for through, port, user in (
            ({3: 7}, 10, 10),
            ({4: 99}, 10, 10),
            ({3: 8}, 0, 10),
        ):
            bench.now_s += 0.1
            bench.beat(through, only=0)
            assert (bench.used(PORT), bench.used(USER)) == (port, user)
        bench.beat({3: 8}, only=1)
        assert bench.used(USER) == 0
        assert bench.gate.held == 0

    def test_where_a_wildcard_stands_in_all_partitions_must_contain_it(self) -> None:
        bench = Bench(partitions=2).live()
        bench.put(0, scope="port:*", hard=100)
        bench.gate.sent(bench.gate.hold(PORT, 10, 0), 0, 7)
        bench.beat({0: 8}, only=0)
        assert bench.used() == 10
        bench.beat({0: 8}, only=1)
        assert bench.used() == 0

    def test_a_heartbeat_quicker_than_the_acknowledgement(self) -> None:
        bench = Bench().live()
        bench.put(hard=100)
        hold = bench.gate.hold(PORT, 10, 0)
        bench.beat({0: 8})
        bench.gate.sent(hold, 0, 7)
        assert bench.used() == 0
        assert bench.gate.held == 0

    def test_many_are_let_go_in_order(self) -> None:
        bench = Bench().live()
        bench.put(hard=10**6)
        for offset in range(100):
            bench.gate.sent(bench.gate.hold(PORT, 10, 0), 0, offset)
        for contained in (0, 1, 50, 50, 100):
            bench.now_s += 0.1
            bench.beat({0: contained})
            assert bench.used() == 10 * (100 - contained)

    def test_open_for_too_long_it_lapses(self) -> None:
        bench = Bench().live()
        bench.put(hard=100)
        bench.gate.admit(PORT, 40, 0)
        bench.now_s += OPEN_S / 2
        _, settled = bench.gate.admit(PORT, 1, 0)
        assert settled is not None
        bench.gate.settle(settled, PORT, 1, 0)
        bench.now_s += OPEN_S / 2 + 1
        bench.beat()
        assert bench.used() == 1
        assert bench.gate.lapsed == 1
        bench.gate.sent(settled, 0, 5)
        bench.now_s += SENT_S + 1
        bench.beat()
        assert bench.used() == 0
        assert bench.gate.lapsed == 2

    def test_the_number_of_held_calls_is_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(reservations, "MAX_HOLDS", 3)
        bench = Bench().live()
        bench.put(hard=100)
        holds = [bench.gate.hold(PORT, 10, 0) for _ in range(5)]
        assert (bench.used(), bench.gate.held, bench.gate.lapsed) == (30, 3, 2)
        for hold in holds:
            bench.gate.release(hold)
        assert (bench.used(), bench.gate.held) == (0, 0)

    def test_scopes_nobody_holds_are_forgotten(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("producers.gate.MAX_VIEWS", 10)
        bench = Bench().live()
        bench.put(scope="port:*", hard=100)
        bench.gate.hold(("kept", None, None, None), 60, 0)
        for number in range(100):
            bench.check((f"p{number}", None, None, None))
        assert bench.used(("kept", None, None, None)) == 60


def test_threads_never_let_more_through_than_fits() -> None:
    bench = Bench().live()
    bench.put(hard=1000)
    admitted: list[int] = []

    def ask() -> None:
        for _ in range(500):
            if bench.gate.admit(PORT, 3, 0)[0].allowed:
                admitted.append(3)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(admitted) == 999

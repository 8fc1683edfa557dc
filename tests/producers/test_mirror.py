"""The mirror of ``budget.state``: what it takes, and how far it says it can be trusted."""

from pipeline.core.budgets import Heartbeat, StateRecord
from pipeline.core.scopes import RecordKey
from pipeline.core.windows import DAY_MS, parse_ms
from producers.mirror import STALE_AFTER_S, Mirror
from tests.producers.states import beat, record, state

NOW = parse_ms("2026-11-22T10:15:03.120Z")


def found(mirror: Mirror, *scopes: str, now_ms: int = NOW, now_s: float = 0.0) -> list[tuple]:
    asked = mirror.asked(scopes, now_ms, now_s)
    return [(one.state.scope, one.state.used, one.freshness) for one in asked]


def live_mirror(partitions: int = 2) -> Mirror:
    mirror = Mirror()
    mirror.begin(partitions)
    for partition in range(partitions):
        mirror.take(partition, *beat(partition, NOW), 0.0)
    mirror.caught_up(0.0)
    return mirror


def test_nothing_counts_before_it_has_caught_up() -> None:
    mirror = Mirror()
    mirror.begin(1)
    mirror.take(0, *record(state(used=7, at_ms=NOW)), 0.0)
    assert mirror.freshness(0.0) == "INITIALIZING"
    assert found(mirror, "port:a") == []
    mirror.caught_up(1.0)
    assert mirror.freshness(1.0) == "LIVE"
    assert found(mirror, "port:a") == [("port:a", 7, "LIVE")]


def test_what_was_taken_is_told() -> None:
    mirror = live_mirror()
    key, value = record(state(used=7, at_ms=NOW), 2)
    taken = mirror.take(0, key, value, 0.0)
    assert isinstance(taken, StateRecord)
    assert taken.state.used == 7
    assert mirror.take(0, *record(state(used=6, at_ms=NOW), 1), 0.0) is None
    assert mirror.take(0, key, None, 0.0) == RecordKey("port:a", "tokens", "month")
    assert isinstance(mirror.take(1, *beat(1, NOW + 1, {0: 3}), 0.0), Heartbeat)
    assert found(mirror, "port:a") == []


def test_what_cannot_be_read_leaves_the_last_state() -> None:
    mirror = live_mirror()
    key, value = record(state(used=7, at_ms=NOW))
    mirror.take(0, key, value, 0.0)
    for bad in (b"{}", b"no json", value.replace(b"month", b"week", 1)):
        assert mirror.take(0, key, bad, 0.0) is None
    assert mirror.take(0, b"\xff", value, 0.0) is None
    assert mirror.take(0, b"!heartbeat|0", b"{}", 0.0) is None
    assert mirror.unreadable == 5
    assert found(mirror, "port:a") == [("port:a", 7, "LIVE")]


def test_a_partition_is_stale_once_as_of_has_not_advanced() -> None:
    mirror = live_mirror()
    mirror.take(0, *record(state("port:a", at_ms=NOW)), 0.0)
    mirror.take(1, *record(state("user:u", at_ms=NOW)), 0.0)
    mirror.take(0, *beat(0, NOW + 4000), 4.0)
    mirror.take(1, *beat(1, NOW), 4.0)  # a heartbeat that does not advance is no sign of life
    assert found(mirror, "port:a", "user:u", now_s=4.9) == [
        ("port:a", 0, "LIVE"),
        ("user:u", 0, "LIVE"),
    ]
    assert mirror.freshness(4.9) == "LIVE"
    assert mirror.turns_stale_s(4.9) == STALE_AFTER_S
    assert found(mirror, "port:a", "user:u", now_s=STALE_AFTER_S) == [
        ("port:a", 0, "LIVE"),
        ("user:u", 0, "STALE"),
    ]
    assert mirror.freshness(STALE_AFTER_S) == "STALE"
    mirror.take(1, *beat(1, NOW + 1), 6.0)
    assert mirror.freshness(6.0) == "LIVE"


def test_freshness_goes_by_arrival_not_by_comparing_clocks() -> None:
    mirror = Mirror()
    mirror.begin(1)
    mirror.take(0, *beat(0, NOW - 3 * DAY_MS), 0.0)
    mirror.caught_up(10.0)
    assert mirror.freshness(10.0 + STALE_AFTER_S - 0.1) == "LIVE"
    assert mirror.freshness(10.0 + STALE_AFTER_S) == "STALE"


def test_a_partition_without_any_heartbeat_becomes_stale() -> None:
    mirror = Mirror()
    mirror.begin(3)
    mirror.caught_up(0.0)
    assert mirror.freshness(0.0) == "LIVE"
    assert mirror.freshness(STALE_AFTER_S) == "STALE"


def test_a_wildcard_stands_in_as_fresh_as_the_worst_partition() -> None:
    mirror = live_mirror()
    mirror.take(0, *record(state("port:*", at_ms=NOW)), 0.0)
    mirror.take(0, *beat(0, NOW + 6000), 6.0)
    assert found(mirror, "port:new", now_s=6.0) == [("port:new", 0, "STALE")]


def test_as_of_is_that_of_the_partition() -> None:
    mirror = live_mirror()
    mirror.take(0, *record(state("port:a", at_ms=NOW), as_of_ms=NOW - 60_000), 0.0)
    mirror.take(0, *record(state("port:*", at_ms=NOW), as_of_ms=NOW - 60_000), 0.0)
    mirror.take(0, *beat(0, NOW + 700), 0.0)
    own, stand_in = mirror.asked(["port:a", "port:b"], NOW, 0.0)
    assert (own.as_of_ms, stand_in.as_of_ms) == (NOW + 700, NOW)


def test_sent_again_the_old_states_hold_until_all_are_there() -> None:
    mirror = live_mirror()
    mirror.take(0, *record(state("port:a", used=5, at_ms=NOW), 3), 0.0)
    mirror.take(0, *record(state("port:gone", used=5, at_ms=NOW), 3), 0.0)
    mirror.take(0, *beat(0, NOW + 10, {0: 9}), 0.0)
    mirror.begin(2)
    mirror.take(0, *beat(0, NOW, {0: 1}), 0.1)  # an old one, still in the log
    assert mirror.through(0) == {0: 9}
    mirror.take(0, *record(state("port:a", used=4, at_ms=NOW), 2), 0.1)
    assert found(mirror, "port:a", "port:gone") == [
        ("port:a", 5, "LIVE"),
        ("port:gone", 5, "LIVE"),
    ]
    mirror.take(0, *record(state("port:a", used=6, at_ms=NOW), 4), 0.2)
    mirror.caught_up(0.2)
    assert found(mirror, "port:a", "port:gone") == [("port:a", 6, "LIVE")]


def test_time_goes_by_the_newest_fresh_heartbeat() -> None:
    mirror = Mirror()
    assert mirror.now_ms(0.0) is None
    mirror = live_mirror()
    assert mirror.now_ms(2.0) == NOW + 2000
    mirror.take(0, *beat(0, NOW + 2500), 2.0)
    assert mirror.now_ms(2.0) == NOW + 2500
    assert mirror.now_ms(60.0) is None

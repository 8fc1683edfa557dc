"""What a rejected record says of its original, and whose time judges its replay."""

from itertools import pairwise

import pytest

from pipeline.core.event_codec import TimeLimits
from pipeline.core.home import judging_time_ms
from pipeline.core.replays import (
    RejectedSource,
    earliest_copy_ms,
    keeping_ms,
    kept_time_ms,
    read_rejected,
    replay_headers,
)
from pipeline.core.windows import DAY_MS

NOW_MS = 1_795_342_503_120
LIMITS = TimeLimits.of(7, 300)
OWN = [("trace", b"\xff"), ("reason", b"mine"), ("empty", None)]
ADDED = [
    ("reason", b"too-old"),
    ("detail", b"occurred_at: too early"),
    ("source-topic", b"usage.events"),
    ("source-partition", b"3"),
    ("source-offset", b"17"),
]


def source(*headers: tuple[str, bytes | None]) -> RejectedSource:
    found = read_rejected([*headers, *ADDED])
    assert found is not None
    return found


def test_only_what_the_worker_added_is_taken_off() -> None:
    found = source(*OWN)
    assert found.headers == OWN
    assert (found.reason, found.topic, found.partition, found.offset) == (
        "too-old", "usage.events", 3, 17,
    )  # fmt: skip
    assert (found.forwarded_ms, found.is_replay) == (None, False)


def test_a_forwarded_one_came_when_it_came_first() -> None:
    found = source(*OWN, ("forwarded-from", b"1/5/86400000"))
    assert found.headers == OWN
    assert found.forwarded_ms == DAY_MS


def test_a_replay_is_known_as_one() -> None:
    assert source(*OWN, ("replayed-from", b"1/5")).is_replay


@pytest.mark.parametrize(
    "headers",
    [
        [],
        ADDED[1:],
        [*ADDED[:4], ("source-offset", b"-1")],
        [*ADDED[:3], ("source-partition", b"x"), ADDED[4]],
        [*ADDED[:4], ("source-offset", None)],
        [*ADDED, ("one", b"more")],
        [*reversed(ADDED)],
    ],
)
def test_other_records_are_not_taken(headers: list[tuple[str, bytes | None]]) -> None:
    assert read_rejected(headers) is None


def kept(age_ms: int, rejected_ago_ms: int, **forwarded: int) -> int | None:
    """The kept time of an event ``age_ms`` old now, as how long ago it is."""
    rejected_ms = NOW_MS - rejected_ago_ms
    headers = [("forwarded-from", f"1/5/{NOW_MS - ago}".encode()) for ago in forwarded.values()]
    time_ms = kept_time_ms(
        source(*headers), rejected_ms, (NOW_MS - age_ms) * 1000, NOW_MS, LIMITS, keeping_ms(9)
    )
    return None if time_ms is None else NOW_MS - time_ms


def test_the_time_of_the_original_is_kept_while_ids_are_remembered() -> None:
    assert kept(10 * DAY_MS, 5 * DAY_MS) == 5 * DAY_MS
    assert kept(10 * DAY_MS, 5 * DAY_MS, forwarded=6 * DAY_MS) == 6 * DAY_MS
    assert kept(10 * DAY_MS, 8 * DAY_MS) == 8 * DAY_MS
    assert kept(10 * DAY_MS, 8 * DAY_MS + 1) is None


@pytest.mark.parametrize(
    ("rejected_ago", "came_ago", "asked_ago"),
    [(0, None, 9), (5, None, 14), (20, None, 29), (1, 6, 15), (1, 8, 17), (1, 400, 17), (0, -1, 9)],
)
def test_the_ledger_is_asked_from_a_horizon_before_the_time_that_judges(
    rejected_ago: int, came_ago: int | None, asked_ago: int
) -> None:
    came = (
        [] if came_ago is None else [("forwarded-from", b"1/5/%d" % (NOW_MS - came_ago * DAY_MS))]
    )
    asked_ms = earliest_copy_ms(source(*came), NOW_MS - rejected_ago * DAY_MS, NOW_MS, 9)
    assert (NOW_MS - asked_ms) / DAY_MS == asked_ago


def test_an_event_that_was_in_the_future_is_judged_now() -> None:
    hour_ms = 3_600_000
    assert kept(0, hour_ms) is None
    assert kept(hour_ms - 300_000, hour_ms) == hour_ms
    assert kept(hour_ms - 300_001, hour_ms) is None


def test_the_earliest_of_all_times_judges() -> None:
    record = replay_headers(source(*OWN), NOW_MS - DAY_MS)
    assert record[:-1] == OWN
    assert record[-1] == ("replayed-from", f"3/17/{NOW_MS - DAY_MS}".encode())
    forwarded = [*record, ("forwarded-from", f"1/5/{NOW_MS - 5}".encode())]
    assert judging_time_ms(record, NOW_MS) == NOW_MS - DAY_MS
    assert judging_time_ms(forwarded, NOW_MS) == NOW_MS - DAY_MS
    plain = replay_headers(source(*OWN), None)
    assert plain[-1] == ("replayed-from", b"3/17")
    assert judging_time_ms(plain, NOW_MS) == NOW_MS
    ahead = replay_headers(source(*OWN), NOW_MS + DAY_MS)
    assert judging_time_ms(ahead, NOW_MS) == NOW_MS


def test_no_kept_time_outlives_the_memory_of_ids() -> None:
    times = [kept(10 * DAY_MS, days * DAY_MS) for days in range(30)]
    assert all(time_ms is None or time_ms < 9 * DAY_MS for time_ms in times)
    assert all(later is None for time, later in pairwise(times) if time is None)

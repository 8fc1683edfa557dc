"""The simulator: the same for the same seed, every case covered, the burst crosses the caps."""

import hashlib
import json
from datetime import UTC, datetime

import pytest

from producers.malformed import MAKERS
from producers.partitions import home_partition, murmur2
from producers.simulator import (
    BURST_LABEL,
    CAPPED_PORT,
    Sent,
    expectations,
    simulate,
    steady,
)

END = datetime(2026, 11, 22, 12, 30, tzinfo=UTC)
SPECIAL = {
    "valid",
    "duplicate",
    "altered-duplicate",
    "misrouted",
    "late",
    "cloudevents-structured",
    "cloudevents-binary",
    "reported-cost",
    "user-billed",
    "tagged",
    "self-hosted",
    "cache-hit",
    "unpriced",
    BURST_LABEL,
}


def digest(sent: list[Sent]) -> str:
    seen = hashlib.sha256()
    for record in sent:
        seen.update(repr(tuple(record)).encode())
    return seen.hexdigest()


def test_same_seed_gives_the_same_day() -> None:
    first = simulate(7, 2_000, END)
    assert digest(first) == digest(simulate(7, 2_000, END))
    assert digest(first) != digest(simulate(8, 2_000, END))


def test_no_seed_begins_with_a_repeat_of_nothing() -> None:
    for seed in (527, 2389):  # here a repeat would be drawn before any original
        assert len(simulate(seed, 1_000, END)) == 1_000


def test_every_case_occurs_and_counts_add_up() -> None:
    sent = simulate(events=22_000, end=END)
    expected = expectations(sent, END)
    assert len(sent) == expected.records == 22_000
    assert set(expected.labels) == SPECIAL | {f"rejected:{reason}" for reason in MAKERS}
    assert set(expected.rejected) == set(MAKERS)
    total = expected.accepted + expected.duplicates + sum(expected.rejected.values())
    assert total == expected.records
    assert expected.forwarded > 100


def test_a_short_day_still_has_every_reason() -> None:
    assert set(expectations(simulate(3, 1_000, END), END).rejected) == set(MAKERS)
    with pytest.raises(ValueError, match="events"):
        simulate(3, 999, END)


def test_last_event_is_at_the_end_and_the_burst_crosses_both_caps() -> None:
    sent = simulate(events=3_000, end=END)
    assert json.loads(sent[-1].value or b"")["occurred_at"] == "2026-11-22T12:30:00Z"
    expected = expectations(sent, END)
    assert (
        expected.tokens_before_burst
        < expected.soft_cap
        < expected.hard_cap
        < expected.tokens_after_burst
    )
    used = expected.tokens_before_burst
    for record in sent:
        if record.label == BURST_LABEL and record.key == CAPPED_PORT.encode():
            body = json.loads(record.value or b"")
            used += body["input_tokens"] + body["output_tokens"]
    assert used == expected.tokens_after_burst


def test_a_month_that_began_during_the_burst_counts_from_its_start() -> None:
    end = datetime(2026, 12, 1, 0, 1, tzinfo=UTC)
    expected = expectations(simulate(events=2_000, end=end), end)
    assert expected.tokens_before_burst == 0
    assert 0 < expected.soft_cap < expected.hard_cap < expected.tokens_after_burst


def test_misrouted_events_name_a_foreign_partition() -> None:
    for partitions in (2, 4, 12):
        for record in simulate(events=2_000, end=END, partitions=partitions):
            if record.label == "misrouted":
                assert record.key is not None
                assert record.partition is not None
                assert 0 <= record.partition < partitions
                assert record.partition != home_partition(record.key, partitions)
            else:
                assert record.partition is None


def test_murmur2_is_the_one_of_kafkas_java_client() -> None:
    # Vectors from Apache Kafka's own UtilsTest, as unsigned numbers.
    assert murmur2(b"21") == -973932308 % 2**32
    assert murmur2(b"foobar") == -790332482 % 2**32
    assert murmur2(b"a-little-bit-long-string") == -985981536 % 2**32
    assert murmur2(b"abc") == 479470107


def test_steady_events_are_whole_distinct_and_in_order() -> None:
    pairs = list(steady(30_000, seed=5, end=END, events_per_s=10_000))
    bodies = [json.loads(value) for _, value in pairs]
    assert len({body["event_id"] for body in bodies}) == 30_000
    assert len({body["port_id"] for body in bodies}) == 200
    times = [datetime.fromisoformat(body["occurred_at"]) for body in bodies]
    assert times == sorted(times)
    assert times[-1] < END
    assert all(
        key.decode() == body["port_id"] for (key, _), body in zip(pairs, bodies, strict=True)
    )
    assert 300 < sum(len(value) for _, value in pairs) / len(pairs) < 360
    other = json.loads(next(iter(steady(1, seed=6)))[1])
    assert other["event_id"] not in {body["event_id"] for body in bodies}

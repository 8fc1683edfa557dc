"""The pure parts of the API: rate limits, bounds, the ring of changes, the seams of an array."""

import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pipeline.core.errors import ConfigurationError, InvalidField
from pipeline.core.rejections import Rejection
from pipeline.core.scopes import RecordKey
from pipeline.web.bodies import InFlight
from pipeline.web.event_forms import MAX_EVENTS, NDJSON, Found, Submitted, take_apart
from pipeline.web.event_log import EventLog
from pipeline.web.key_file import KeyTable, create_key, read_keys
from pipeline.web.problems import Problem
from pipeline.web.rate_limit import Rate, RateLimits, parse_rate
from pipeline.web.state_ring import Entry, Position, StateRing


def test_a_bucket_lets_through_its_rate_and_says_how_long_to_wait() -> None:
    limits, rate = RateLimits(), Rate(3, 60)
    assert [limits.wait_s(("k",), rate, 100.0) for _ in range(3)] == [0, 0, 0]
    assert limits.wait_s(("k",), rate, 100.0) == pytest.approx(20)
    assert limits.wait_s(("k",), rate, 110.0) == pytest.approx(10)
    assert limits.wait_s(("k",), rate, 120.0) == 0
    assert limits.wait_s(("other",), rate, 120.0) == 0


def test_buckets_are_bounded() -> None:
    limits = RateLimits(most=10)
    for number in range(1_000):
        limits.wait_s((str(number),), Rate(1, 60), 0.0)
    assert limits.wait_s(("999",), Rate(1, 60), 0.0) > 0
    assert limits.wait_s(("0",), Rate(1, 60), 0.0) == 0


@pytest.mark.parametrize("text", ["", "5", "0/min", "5/day", "-5/min", "5 /min", "1e3/s"])
def test_a_rate_that_is_none_is_refused(text: str) -> None:
    assert parse_rate("20/min") == (20, 60)
    with pytest.raises(InvalidField):
        parse_rate(text)


def test_memory_is_promised_before_it_is_used() -> None:
    in_flight = InFlight(100)
    with in_flight.holding(60):
        with pytest.raises(Problem) as refused, in_flight.holding(41):
            raise AssertionError
        assert refused.value.status == 503
        assert refused.value.headers["Retry-After"]
        with in_flight.holding(40):
            assert in_flight.held_bytes == 100
    assert in_flight.held_bytes == 0


async def test_without_a_broker_nothing_is_claimed_accepted() -> None:
    log = EventLog({"bootstrap_servers": "127.0.0.1:1"}, "usage.events", InFlight(100))
    with pytest.raises(Problem) as refused:
        await log.send([(b"p", b"{}", [])])
    assert refused.value.status == 503
    assert log.problems()


def value_of(one: Found) -> bytes | None:
    value = one.value if isinstance(one, Submitted) else one
    return None if isinstance(value, Rejection) else value


@pytest.mark.parametrize(
    ("body", "values"),
    [
        (b'[{"a":1} , {"b":[2,{}]}]', [b'{"a":1}', b'{"b":[2,{}]}']),
        (b'[{"a":"],[\\""}, {x}]', [b'{"a":"],[\\""}', b"{x}"]),
        (b"[1,]", [b"1", b""]),
        (b" [{}] ", [b"{}"]),
    ],
)
def test_an_array_comes_apart_at_its_seams(body: bytes, values: list[bytes]) -> None:
    found = take_apart(body, "application/json")
    assert [value_of(one) for one in found] == values


@pytest.mark.parametrize("body", [b"[{]", b"[1}", b"[1][2]", b"[", b"[1"])
def test_an_array_without_seams_is_refused_whole(body: bytes) -> None:
    assert take_apart(body, "application/json") == [
        Rejection("malformed-json", "body: no JSON array")
    ]


def entry(partition: int, offset: int) -> Entry:
    return Entry(partition, offset, RecordKey("port:a", "tokens", "month"), None)


def test_a_subscriber_resumes_exactly_where_it_was() -> None:
    ring = StateRing("0123abcd", 2, entries=4)
    for partition, offset in ((0, 0), (1, 5), (0, 1), (1, 9)):
        ring.add(entry(partition, offset))
        ring.passed(partition, offset + 1)
    event_id = ring.event_id((1, 6), 1_000.0)
    position = ring.resume(event_id, 1_001.0)
    assert position is not None
    found = ring.since(position, 100)
    assert found is not None
    assert [(one.partition, one.offset) for one in found] == [(0, 1), (1, 9)]
    assert ring.after(position, 100, found) == ring.end == Position(4, (2, 10))
    assert ring.resume(event_id, 1_000.0 + 13 * 3600) is None
    assert ring.resume(event_id.replace("0123", "9999"), 1_001.0) is None
    assert ring.resume(ring.event_id((3, 6), 1_000.0), 1_001.0) is None  # of the future
    assert ring.resume(ring.event_id((1,), 1_000.0), 1_001.0) is None
    for offset in range(2, 6):
        ring.add(entry(0, offset))
        ring.passed(0, offset + 1)
    assert ring.since(position, 100) is None  # fell behind
    assert ring.resume(event_id, 1_001.0) is None


def test_keys_made_at_the_same_time_are_all_kept(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    texts: list[str] = []

    def make(name: str) -> None:
        texts.append(create_key(path, name, "read", who="t", now=datetime.now(UTC))[1])

    threads = [threading.Thread(target=make, args=(f"k{n}",)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    table = KeyTable(read_keys(path))
    assert len({key.name for text in texts if (key := table.find(text))}) == 12
    assert table.find(texts[0][:-1] + "x") is None
    assert table.find("") is None


@pytest.mark.parametrize("text", ["{", "[]", '{"keys": [{"id": 1}]}', '{"keys": 5}', "\xff"])
def test_a_damaged_keys_file_is_an_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigurationError, match="damaged"):
        read_keys(path)
    path.write_text("")
    assert read_keys(path) == ()


@pytest.mark.parametrize(
    ("name", "head", "one", "between", "tail"),
    [
        (NDJSON[0], b" \n", b" {} \r", b"\n", b"\n \n"),
        ("application/json", b"[", b"{}", b",", b"]"),
        ("application/json", b"[", b"{'}", b",", b"]"),
    ],
)
def test_a_request_has_a_bounded_number_of_events(
    name: str, head: bytes, one: bytes, between: bytes, tail: bytes
) -> None:
    found = take_apart(head + between.join([one] * MAX_EVENTS) + tail, name)
    assert len(found) == MAX_EVENTS
    assert all(value_of(each) == one.strip() for each in found)
    with pytest.raises(Problem, match="more than 1,000 events") as refused:
        take_apart(head + between.join([one] * (MAX_EVENTS + 1)) + tail, name)
    assert refused.value.status == 413


def test_white_space_is_no_event() -> None:
    assert take_apart(b" " * 500_000 + b"\n" * 500_000, NDJSON[0]) == []

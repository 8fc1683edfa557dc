"""The recount's reader of events: its own times, and its agreement with the worker's reader."""

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.audit.recount.envelopes import Headers, Unreadable
from pipeline.audit.recount.events import Reading, read_event
from pipeline.audit.recount.instants import NoInstant, parse_instant
from pipeline.core.event_codec import decode_event
from pipeline.core.events import Event
from pipeline.core.rejections import Rejection
from producers.malformed import encode
from producers.simulator import simulate

END = datetime(2026, 11, 22, 12, tzinfo=UTC)
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


# -- times ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01t01:00:00.0000019+01:00", 1),
        ("1969-12-31T23:59:59.999999z", -1),
        ("2016-12-31T23:59:60Z", 1_483_228_799_999_999),
        ("2017-01-01T00:59:60.5+01:00", 1_483_228_799_999_999),
    ],
)
def test_times(text: str, expected: int) -> None:
    assert parse_instant(text) == expected


@pytest.mark.parametrize("text", ["2026-11-22T10:00:60Z", "2026-11-22 10:00:00Z", "2026-11-22"])
def test_bad_times(text: str) -> None:
    with pytest.raises(NoInstant):
        parse_instant(text)


# -- against the worker's core ---------------------------------------------------------------------


def reading_or_reason(value: bytes | None, headers: Headers) -> Reading | str:
    try:
        return read_event(value, headers)
    except Unreadable as unreadable:
        return unreadable.reason


def assert_same_reading(value: bytes | None, headers: Headers = ()) -> None:
    decoded = decode_event(value, headers)
    reading = reading_or_reason(value, headers)
    if isinstance(reading, str):
        assert isinstance(decoded, Rejection), (reading, decoded, value)
        assert decoded.reason == reading, value
        return
    assert isinstance(decoded, Event), (decoded, value)
    for name in ("event_id", "occurred_at_us", "port_id", "provider", "model", "kind", "feature"):
        assert getattr(decoded, name) == getattr(reading, name)
    for name, count in reading.counts.items():
        assert getattr(decoded, name) == count
    for name, text in reading.texts.items():
        assert getattr(decoded, name) == text
    assert decoded.tags == reading.tags
    for name in ("self_hosted", "cache_hit", "estimated", "billing_scope"):
        assert getattr(decoded, name) == getattr(reading, name)
    reported = None if decoded.reported_cost == "" else Decimal(decoded.reported_cost)
    assert reported == reading.reported_cost


odd_values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-1, 3),
    st.sampled_from([10**10, 10**10 + 1, 10**7, 1e-9, 1e-10, 0.1, 1e7, 1.0, -0.0, 1e400]),
    st.sampled_from(["", "0", "-0", "1.", ".5", "+3", "1e3", "1.0000000001", "-1", "9" * 21]),
    st.sampled_from(["2026-11-22T10:00:00Z", "2026-02-29T10:00:00Z", "0000-01-01T00:00:00Z"]),
    st.sampled_from(["llm", "org", "user", "x" * 128, "x" * 129, "x" * 257, "\ud83d\ude00 é"]),
    st.sampled_from([{}, {"a": "b"}, {"a": 1}, {"k" * 65: ""}, [], ["a"]]),
)
names = st.sampled_from([*Event.__struct_fields__, "occurred_at", "audio_seconds", "data", "id"])
bodies = st.dictionaries(names, odd_values, max_size=6).map(lambda changes: {**BODY, **changes})
content_types = st.sampled_from(
    [
        (),
        (("content-type", b"application/json"),),
        (("Content-Type", b"application/cloudevents+json"),),
        (("content-type", b"application/cloudevents-batch+json"),),
        (("ce_specversion", b"1.0"), ("ce_id", b"from-header")),
        (("ce_specversion", b"0.3"),),
        (("ce_subject", b"\xff"),),
    ]
)


@given(bodies, content_types)
@settings(max_examples=400, deadline=None)
def test_both_readers_give_the_same_answer(body: dict[str, Any], headers: Headers) -> None:
    assert_same_reading(json.dumps(body).encode(), headers)
    envelope = {"specversion": "1.0", "id": "outer", "time": "2026-11-22T09:00:00Z", **body}
    assert_same_reading(json.dumps({**envelope, "data": body}).encode(), headers)


@given(st.binary(max_size=40), st.integers(0, 200), content_types)
@settings(max_examples=300, deadline=None)
def test_both_readers_agree_on_damaged_bytes(junk: bytes, at: int, headers: Headers) -> None:
    whole = event(tags={"a": "\u00e9"}, note="\\ud83d\\ude00")
    assert_same_reading(junk, headers)
    assert_same_reading(whole[:at] + junk + whole[at:], headers)
    assert_same_reading(whole[:at] + whole[at + len(junk) :], headers)


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"\xef\xbb\xbf{}",
        b"[" * 300 + b"]" * 300,
        b'{"a":' * 256 + b"1" + b"}" * 256,
        b'{"a":' * 257 + b"1" + b"}" * 257,
        b'{"event_id":"\\ud800"}',
        b'{"event_id":"\\ud83d\\ude00"}',
        b'{"\\udc00":1}',
        b'{"a":"\\\\ud800"}',
        b'{"a":NaN}',
        b'{"a":-Infinity}',
        b'{"a":' + b"9" * 5_000 + b"}",
        event(reported_cost=""),
        event(audio_seconds=""),
    ],
)
def test_both_readers_agree_on_edges(value: bytes | None) -> None:
    assert_same_reading(value)


def test_both_readers_agree_on_the_simulators_day() -> None:
    for one in simulate(events=4_000, end=END):
        assert_same_reading(one.value, one.headers)
